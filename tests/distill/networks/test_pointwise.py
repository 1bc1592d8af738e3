"""Strided convolutions of 1x1: the same numbers without oneDNN's fault, in any layout."""

import copy

import pytest
import torch
from torch import nn

from workers.distill.networks import catalog, folding, pointwise
from workers.distill.networks.interface import Network


def network_with_few_channels() -> Network:
    return catalog.build(
        "retort/resnet8",
        classes=3,
        channels=1,
        height=48,
        width=48,
        arguments={"widths": [8, 8, 8, 16]},
    )


class TestSubsample:
    def test_finds_the_convolutions_that_onednn_may_get_wrong(self) -> None:
        network = nn.Sequential(
            nn.Conv2d(8, 4, 1, stride=2),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.Conv2d(4, 16, 1, stride=2, groups=2),
            nn.Conv2d(16, 4, 1, stride=2),
            nn.Conv2d(4, 4, 1, stride=2, padding=1),
        )
        pointwise.subsample(network)
        changed = [isinstance(part, pointwise.SubsampledConv2d) for part in network]
        assert changed == [True, False, False, False, False, False]

    def test_keeps_outputs_and_names(self) -> None:
        plain = network_with_few_channels()
        changed = copy.deepcopy(plain)
        pointwise.subsample(changed)
        assert any(isinstance(part, pointwise.SubsampledConv2d) for part in changed.modules())
        assert changed.state_dict().keys() == plain.state_dict().keys()
        images = torch.randn(2, 1, 48, 48)
        torch.testing.assert_close(changed.eval()(images), plain.eval()(images))

    @pytest.mark.parametrize(("size", "stride"), [((48, 48), 2), ((7, 10), 3), ((5, 4), (2, 1))])
    def test_has_the_gradients_of_the_convolution(
        self, size: tuple[int, int], stride: int | tuple[int, int]
    ) -> None:
        # In float64 and contiguous, where oneDNN is not asked.
        plain = nn.Conv2d(8, 16, 1, stride=stride).double()
        changed = copy.deepcopy(plain).float()
        pointwise.subsample(changed)
        changed.to(memory_format=torch.channels_last)
        images = torch.randn(8, 8, *size).contiguous(memory_format=torch.channels_last)
        expected, got = plain(images.double()), changed(images)
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (got * weights.float()).sum().backward()
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
        for name, value in plain.named_parameters():
            gradient = changed.get_parameter(name).grad
            assert gradient is not None
            torch.testing.assert_close(gradient.double(), value.grad, rtol=1e-4, atol=1e-3)

    def test_still_folds_the_batch_norm_behind_it(self) -> None:
        network = network_with_few_channels()
        pointwise.subsample(network)
        folded = folding.folded(network, torch.randn(2, 1, 48, 48))
        assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
