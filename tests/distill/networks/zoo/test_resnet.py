"""Residual networks have the published sizes, names and stages, and show what they compute."""

import pytest
import torch
import torchvision.models
from torch import Tensor

from tests.distill.networks import plain
from workers.distill.networks import catalog, interface


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

    def test_deep_networks_for_small_images_have_names_of_their_own(self) -> None:
        network = a_resnet("resnet18", widths=[2, 2, 3, 4, 5])
        expected = {"conv1.weight", "linear.weight", "linear.bias", *plain.norm_names("bn1")}
        for stage in (1, 2, 3, 4):
            for block in (0, 1):
                prefix = f"layer{stage}.{block}"
                for number in (1, 2):
                    expected |= {f"{prefix}.conv{number}.weight"}
                    expected |= plain.norm_names(f"{prefix}.bn{number}")
        for stage in (2, 3, 4):
            prefix = f"layer{stage}.0.shortcut"
            expected |= {f"{prefix}.0.weight"} | plain.norm_names(f"{prefix}.1")
        assert plain.names(network) == expected
        bottlenecks = plain.names(a_resnet("resnet50", widths=[2, 2, 3, 4, 5]))
        assert {"layer1.0.shortcut.0.weight", "layer4.2.bn3.weight"} <= bottlenecks

    @pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
    def test_networks_for_large_images_have_torchvisions_names_and_shapes(self, name: str) -> None:
        with torch.device("meta"):
            theirs = torchvision.models.get_model(name, weights=None).state_dict()
            mine = catalog.build(
                f"retort/imagenet_{name}",
                classes=1000,
                channels=3,
                height=224,
                width=224,
                arguments={},
            ).state_dict()
        assert {key: tensor.shape for key, tensor in mine.items()} == {
            key: tensor.shape for key, tensor in theirs.items()
        }

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_networks_for_large_images_compute_what_torchvisions_do(self, name: str) -> None:
        network = plain.build(f"retort/imagenet_{name}", side=64).eval()
        theirs = torchvision.models.get_model(name, weights=None, num_classes=5).double().eval()
        theirs.load_state_dict(network.state_dict())
        images = plain.pictures(64)
        torch.testing.assert_close(network(images), theirs(images))

    def test_the_norm_of_a_stage_is_what_the_shortcut_is_added_to(self) -> None:
        for name, last in (("resnet18", "1.bn2"), ("resnet50", "2.bn3")):
            network = a_resnet(name, widths=[2, 2, 3, 4, 5])
            assert network.stage_norms()[0] is network.get_submodule(f"layer1.{last}")

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
