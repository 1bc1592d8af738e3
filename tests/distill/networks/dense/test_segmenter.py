"""Our own segmenter gives the logits of every pixel and shows its pyramid."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.distill.networks.dense import scenes
from workers.distill.networks import catalog, folding, interface

SMALL: dict[str, Any] = {"width": 4, "blocks": 1, "fpn_channels": 8}


def build(size: tuple[int, int] = (64, 64), **arguments: Any) -> interface.Network:
    torch.manual_seed(0)
    return catalog.build(
        "retort/segmenter",
        classes=5,
        channels=3,
        height=size[0],
        width=size[1],
        arguments=arguments or SMALL,
    )


class TestSegmenter:
    def test_enlarges_its_coarse_logits(self) -> None:
        network = build().eval()
        with torch.no_grad():
            seen = network.observe(scenes.pictures())
        assert seen.logits.shape == (2, 5, 64, 64)
        assert seen.coarse_logits is not None
        assert seen.coarse_logits.shape == (2, 5, 16, 16)
        expected = functional.interpolate(
            seen.coarse_logits, size=(64, 64), mode="bilinear", align_corners=False
        )
        assert torch.equal(seen.logits, expected)
        assert torch.equal(network(scenes.pictures()), seen.logits)

    def test_shows_its_pyramid_and_the_map_that_it_classifies(self) -> None:
        network = build().eval()
        with torch.no_grad():
            seen = network.observe(scenes.pictures())
        assert [tuple(stage.shape[1:]) for stage in seen.stages] == [
            (8, 16, 16),
            (8, 8, 8),
            (8, 4, 4),
        ]
        assert network.stages_info == tuple(interface.StageInfo(8, stride) for stride in (4, 8, 16))
        assert seen.final is not None
        assert torch.equal(seen.pooled, seen.final.mean(dim=(2, 3)))
        assert network.pooled_width == 8

    def test_takes_sides_that_no_stride_divides(self) -> None:
        network = build((37, 50)).eval()
        with torch.no_grad():
            assert network(scenes.pictures()[:, :, :37, :50]).shape == (2, 5, 37, 50)

    def test_gradients_reach_every_parameter(self) -> None:
        for arguments in (SMALL, {"backbone": "timm/mobilenetv3_small_050", "fpn_channels": 8}):
            network = build(**arguments).train()
            network(scenes.pictures()).square().sum().backward()
            assert all(parameter.grad is not None for parameter in network.parameters())

    def test_is_folded_to_the_same_answers(self) -> None:
        network = build().eval()
        folded = folding.folded(network, scenes.pictures())
        assert not interface.batch_norms(folded)
        torch.testing.assert_close(
            folded(scenes.pictures()), network(scenes.pictures()), rtol=1e-3, atol=1e-4
        )

    def test_has_as_many_parameters_as_the_table_says(self) -> None:
        with torch.device("meta"):
            network = catalog.build(
                "retort/segmenter", classes=100, channels=3, height=64, width=64, arguments={}
            )
        count = sum(parameter.numel() for parameter in network.parameters())
        assert catalog.NETWORKS["retort/segmenter"].parameters_100 == count

    @pytest.mark.parametrize(("side", "smallest"), [(32, 2), (40, 1)])
    def test_a_map_of_one_pixel_needs_two_images(self, side: int, smallest: int) -> None:
        with torch.device("meta"):
            network = build((side, side), backbone="timm/resnet18")
        assert network.smallest_batch == smallest
