"""Residual networks have the published sizes, names and stages, and show what they compute."""

import pytest
import torch
from torch import Tensor

from workers.distill.networks import catalog, interface

# The guide's table: parameters at 100 classes and 3 channels, widths of stem and stages.
PUBLISHED = {
    "resnet8": (83_892, (16, 16, 32, 64)),
    "resnet14": (181_108, (16, 16, 32, 64)),
    "resnet20": (278_324, (16, 16, 32, 64)),
    "resnet32": (472_756, (16, 16, 32, 64)),
    "resnet44": (667_188, (16, 16, 32, 64)),
    "resnet56": (861_620, (16, 16, 32, 64)),
    "resnet110": (1_736_564, (16, 16, 32, 64)),
    "resnet8x4": (1_233_540, (32, 64, 128, 256)),
    "resnet32x4": (7_433_860, (32, 64, 128, 256)),
}


def a_resnet(
    name: str, *, channels: int = 3, side: int = 32, **arguments: object
) -> interface.Network:
    torch.manual_seed(0)
    return catalog.build(
        f"retort/{name}",
        classes=100,
        channels=channels,
        height=side,
        width=side,
        arguments=arguments,
    )


def pictures(*, channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


class TestResNet:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_has_the_published_number_of_parameters_and_stages(self, name: str) -> None:
        count, (stem, *stages) = PUBLISHED[name]
        network = a_resnet(name)
        assert sum(parameter.numel() for parameter in network.parameters()) == count
        seen = network.eval().observe(pictures())
        assert seen.stem is not None
        assert seen.stem.shape[1:] == (stem, 32, 32)
        expected = [(stages[0], 32, 32), (stages[1], 16, 16), (stages[2], 8, 8)]
        assert [tuple(stage.shape[1:]) for stage in seen.stages] == expected
        assert [tuple(before.shape[1:]) for before in seen.pre_activations] == expected
        assert network.stages_info == tuple(
            interface.StageInfo(width, stride)
            for width, stride in zip(stages, (1, 2, 4), strict=True)
        )
        assert network.pooled_width == seen.pooled.shape[1] == stages[2]

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        names = set(a_resnet("resnet14").state_dict())
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{part}" for part in norm)}
        for stage in (1, 2, 3):
            for block in (0, 1):
                prefix = f"layer{stage}.{block}."
                expected |= {f"{prefix}conv{number}.weight" for number in (1, 2)}
                expected |= {f"{prefix}bn{number}.{part}" for number in (1, 2) for part in norm}
        for stage in (2, 3):
            prefix = f"layer{stage}.0.downsample."
            expected |= {f"{prefix}0.weight", *(f"{prefix}1.{part}" for part in norm)}
        assert names == expected

    def test_widening_the_first_stage_adds_a_projection(self) -> None:
        assert "layer1.0.downsample.0.weight" in a_resnet("resnet8x4").state_dict()

    @pytest.mark.parametrize("is_training", [True, False])
    def test_observes_the_logits_that_forward_gives(self, is_training: bool) -> None:
        network = a_resnet("resnet8").train(is_training)
        images = pictures()
        assert torch.equal(network.observe(images).logits, network(images))

    def test_stages_are_the_activated_pre_activations(self) -> None:
        seen = a_resnet("resnet14").eval().observe(pictures())
        for before, stage in zip(seen.pre_activations, seen.stages, strict=True):
            assert (before < 0).any()
            assert torch.equal(stage, before.relu())

    def test_embedding_is_what_the_classifier_reads(self) -> None:
        network = a_resnet("resnet8").eval()
        seen = network.observe(pictures())
        weights = network.state_dict()
        assert torch.equal(seen.pooled, seen.stages[-1].mean(dim=(2, 3)))
        expected = seen.pooled @ weights["fc.weight"].T + weights["fc.bias"]
        # Two orders of the same float32 sums of 64 terms.
        torch.testing.assert_close(seen.logits, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (1, 28), (4, 64)])
    def test_takes_any_channels_and_sizes_down_to_eight(self, channels: int, side: int) -> None:
        network = a_resnet("resnet8", channels=channels, side=side).eval()
        seen = network.observe(pictures(channels=channels, side=side))
        assert seen.logits.shape == (2, 100)
        assert seen.stages[-1].shape[2] == side // 4

    def test_widths_replace_all_four(self) -> None:
        network = a_resnet("resnet8", widths=[4, 6, 8, 10]).eval()
        seen = network.observe(pictures())
        assert seen.stem is not None
        assert [seen.stem.shape[1], *(stage.shape[1] for stage in seen.stages)] == [4, 6, 8, 10]

    def test_equal_seeds_give_equal_weights(self) -> None:
        first, second = a_resnet("resnet8").state_dict(), a_resnet("resnet8").state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)
