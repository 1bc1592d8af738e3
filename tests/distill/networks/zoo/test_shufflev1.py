"""ShuffleNet computes what is published, under the published names."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.distill.networks import plain
from workers.distill import errors

WIDTHS = [48, 60, 96]
BLOCKS = (4, 8, 4)


def second_time(layers: plain.Layers, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    maps = layers.norm("bn1", layers.conv("conv1", images)).relu()
    stages, before = [], []
    for stage, count in enumerate(BLOCKS, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}."
            groups = 1 if stage == 1 and block == 0 else 3
            hidden = layers.conv(f"{prefix}conv1", maps, groups=groups)
            hidden = plain.shuffled(layers.norm(f"{prefix}bn1", hidden).relu(), groups)
            hidden = layers.conv(
                f"{prefix}conv2", hidden, stride=1 if block else 2, groups=hidden.shape[1]
            )
            hidden = layers.norm(f"{prefix}bn2", hidden).relu()
            made = layers.norm(f"{prefix}bn3", layers.conv(f"{prefix}conv3", hidden, groups=3))
            if block:
                total = made + maps
            else:
                total = torch.cat([made, functional.avg_pool2d(maps, 3, 2, 1)], dim=1)
            maps = total.relu()
        before.append(total)
        stages.append(maps)
    return layers.linear("linear", maps.mean(dim=(2, 3))), stages, before


class TestShuffleV1:
    def test_computes_what_is_published(self) -> None:
        network = plain.build("retort/shufflev1", widths=WIDTHS).eval()
        logits, stages, before = second_time(plain.Layers(network.state_dict()), plain.pictures())
        plain.check(network.observe(plain.pictures()), logits=logits, stages=stages, before=before)

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        expected = {"conv1.weight", "linear.weight", "linear.bias", *plain.norm_names("bn1")}
        for stage, count in enumerate(BLOCKS, start=1):
            for block in range(count):
                for number in (1, 2, 3):
                    expected |= {f"layer{stage}.{block}.conv{number}.weight"}
                    expected |= plain.norm_names(f"layer{stage}.{block}.bn{number}")
        assert plain.names(plain.build("retort/shufflev1", widths=WIDTHS)) == expected

    @pytest.mark.parametrize("widths", [[48, 48, 96], [96, 60, 48], [40, 60, 96], [24, 48, 96]])
    def test_stages_must_grow_in_steps_that_divide(self, widths: list[int]) -> None:
        with pytest.raises(errors.UnknownNetwork, match="argument 'widths'"):
            plain.build("retort/shufflev1", widths=widths)
