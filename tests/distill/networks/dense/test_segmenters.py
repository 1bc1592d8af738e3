"""Segmentation networks of torchvision give logits of pixels and keep their parameter names."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models.segmentation
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.networks import catalog, folding, interface, weights
from workers.distill.networks.dense import segmenters

NAMES = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50")
LIGHT = "lraspp_mobilenet_v3_large"


def build(
    name: str, *, channels: int = 3, size: tuple[int, int] = (32, 40), **arguments: Any
) -> interface.Network:
    torch.manual_seed(0)
    return catalog.build(
        f"torchvision/{name}",
        classes=5,
        channels=channels,
        height=size[0],
        width=size[1],
        arguments=arguments,
    )


@functools.cache
def built(name: str) -> interface.Network:
    """Build a network once for the tests that change nothing of it."""
    return build(name).eval()


def pictures(channels: int = 3, size: tuple[int, int] = (32, 40)) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


def published(name: str, **options: Any) -> nn.Module:
    make = getattr(torchvision.models.segmentation, name)
    torch.manual_seed(3)
    made: nn.Module = make(weights=None, weights_backbone=None, num_classes=5, **options)
    return made.eval()


class TestSegmenter:
    @pytest.mark.parametrize("name", NAMES)
    def test_gives_the_logits_that_torchvision_gives(self, name: str) -> None:
        plain, network = published(name), copy.deepcopy(built(name))
        network.load_state_dict(plain.state_dict(), strict=True)
        with torch.no_grad():
            expected = plain(pictures())["out"]
            assert torch.equal(network(pictures()), expected)
            assert torch.equal(network.observe(pictures()).logits, expected)
        assert expected.shape == (2, 5, 32, 40)

    @pytest.mark.parametrize("name", NAMES)
    def test_shows_the_last_map_of_its_backbone(self, name: str) -> None:
        network = built(name)
        with torch.no_grad(), interface.Tap(network, ["backbone"]) as tap:
            seen = network.observe(pictures())
        maps: Any = tap.outputs["backbone"]
        assert seen.final is maps["high" if name == LIGHT else "out"]
        assert torch.equal(seen.pooled, seen.final.mean(dim=(2, 3)))
        assert seen.pooled.shape == (2, network.pooled_width)
        assert seen.final is seen.stages[-1]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("fcn_resnet50", [(256, 4), (512, 8), (1024, 8), (2048, 8)]),
            ("lraspp_mobilenet_v3_large", [(16, 2), (24, 4), (40, 8), (960, 16)]),
        ],
    )
    def test_shows_the_stages_of_its_backbone(
        self, name: str, expected: list[tuple[int, int]]
    ) -> None:
        network = built(name)
        assert network.stages_info == tuple(interface.StageInfo(*stage) for stage in expected)
        with torch.no_grad():
            seen = network.observe(pictures())
        assert [(stage.shape[1], 32 // stage.shape[2]) for stage in seen.stages] == expected

    @pytest.mark.parametrize("name", NAMES)
    def test_shows_its_logits_before_they_are_enlarged(self, name: str) -> None:
        with torch.no_grad():
            seen = built(name).observe(pictures())
        assert seen.coarse_logits is not None
        size = (seen.logits.shape[2], seen.logits.shape[3])
        enlarged = nn.functional.interpolate(
            seen.coarse_logits, size=size, mode="bilinear", align_corners=False
        )
        assert torch.equal(enlarged, seen.logits)

    def test_an_average_of_the_whole_image_needs_two_images(self) -> None:
        assert built("deeplabv3_mobilenet_v3_large").smallest_batch == 2
        assert built(LIGHT).smallest_batch == 1

    def test_is_for_segmentation_and_still_the_foreign_class(self) -> None:
        network = built(LIGHT)
        assert network.task == "segmentation"
        assert isinstance(network, torchvision.models.segmentation.LRASPP)
        assert network.pooled_classifier() is None

    def test_takes_other_channels(self) -> None:
        network = build(LIGHT, channels=1).eval()
        assert network(pictures(1)).shape == (2, 5, 32, 40)

    def test_copies_are_independent(self) -> None:
        network = built(LIGHT)
        twin = copy.deepcopy(network)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
            assert network(pictures()).abs().sum() > 0
            assert float(twin(pictures()).abs().sum()) == 0

    def test_norms_show_what_they_receive(self) -> None:
        network = built(LIGHT)
        with torch.no_grad():
            _, received = interface.observe_norms(network, pictures())
        assert [seen.name for seen in received] == list(interface.batch_norms(network))

    def test_is_folded_to_the_same_answers(self) -> None:
        network = copy.deepcopy(built(LIGHT))
        folded = folding.folded(network, pictures())
        assert not interface.batch_norms(folded)
        torch.testing.assert_close(folded(pictures()), network(pictures()), rtol=1e-3, atol=1e-4)

    def test_gradients_reach_images_and_parameters(self) -> None:
        network = build(LIGHT).train()
        images = pictures().requires_grad_()
        network.observe(images).logits.square().sum().backward()
        assert images.grad is not None
        assert float(images.grad.abs().sum()) > 0
        assert all(parameter.grad is not None for parameter in network.parameters())


class TestAuxiliaryClassifier:
    def test_checkpoint_that_holds_one_needs_the_argument(self, tmp_path: Path) -> None:
        plain = published("deeplabv3_mobilenet_v3_large", aux_loss=True)
        torch.save(plain.state_dict(), tmp_path / "file")
        with pytest.raises(errors.KeysMismatch) as caught:
            weights.load_into(
                copy.deepcopy(built("deeplabv3_mobilenet_v3_large")), tmp_path / "file"
            )
        assert caught.value.missing_keys == []
        assert all(key.startswith("aux_classifier.") for key in caught.value.unexpected_keys)

        network = build("deeplabv3_mobilenet_v3_large", aux_loss=True).eval()
        weights.load_into(network, tmp_path / "file")
        with torch.no_grad():
            assert torch.equal(network(pictures()), plain(pictures())["out"])

    def test_is_held_but_never_run(self) -> None:
        network = build("deeplabv3_mobilenet_v3_large", aux_loss=True).train()
        network.observe(pictures()).logits.sum().backward()
        unused = {name for name, value in network.named_parameters() if value.grad is None}
        assert unused == {
            name for name, _ in network.named_parameters() if name.startswith("aux_classifier.")
        }
        _, received = interface.observe_norms(network.eval(), pictures())
        assert not any(seen.name.startswith("aux_classifier") for seen in received)

    def test_network_that_has_none_says_so(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="does not use auxiliary loss"):
            build(LIGHT, aux_loss=True)


class TestNames:
    def test_lists_the_segmentation_networks(self) -> None:
        assert set(NAMES) | {"deeplabv3_resnet101"} <= set(segmenters.names())
        assert "resnet18" not in segmenters.names()
        assert list(segmenters.names()) == sorted(segmenters.names())


class TestKeywords:
    @pytest.mark.parametrize("name", ["drop_rate", "width_mult", "taps"])
    def test_what_torchvision_would_drop_is_refused(self, name: str) -> None:
        value: Any = ["backbone"] if name == "taps" else 0.5
        with pytest.raises(errors.UnknownNetwork, match=f"no argument '{name}'; it accepts aux"):
            build(LIGHT, **{name: value})

    def test_weights_of_the_backbone_are_never_fetched(self) -> None:
        assert segmenters.keywords({}) == {"weights_backbone": None}
        assert segmenters.keywords({"aux_loss": True})["weights_backbone"] is None

    def test_classifiers_take_no_auxiliary_loss(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="aux_loss"):
            build("resnet18", aux_loss=True)


class TestRebuild:
    @pytest.mark.parametrize(
        ("reference", "arguments"),
        [(f"torchvision/{LIGHT}", {}), ("retort/fcn", {"widths": [4, 3]})],
    )
    def test_delivered_students_rebuild_from_their_file(
        self, tmp_path: Path, reference: str, arguments: dict[str, Any]
    ) -> None:
        torch.manual_seed(0)
        network = catalog.build(
            reference, classes=5, channels=3, height=32, width=40, arguments=arguments
        ).eval()
        said = {
            "network": reference,
            "arguments": arguments,
            "classes": 5,
            "input": {"channels": 3, "height": 32, "width": 40},
        }
        weights.save_student(
            tmp_path / "student.safetensors", network, {weights.HEADER_KEY: json.dumps(said)}
        )
        torch.manual_seed(1)
        again, _ = weights.rebuild(tmp_path / "student.safetensors")
        with torch.no_grad():
            assert torch.equal(again.eval()(pictures()), network(pictures()))
