"""Backbones give maps at the strides that a pyramid needs, or are refused by name."""

import pytest
import torch

from workers.distill import errors
from workers.distill.networks import interface
from workers.distill.networks.dense import pyramids


def build(
    *, levels: int | None = None, most: int = 4, channels: int = 3, **given: object
) -> tuple[pyramids.Pyramid, tuple[int, ...]]:
    torch.manual_seed(0)
    accepted = pyramids.Arguments.model_validate({"width": 4, "fpn_channels": 32, **given})
    return pyramids.build(accepted, channels, levels=levels, most=most, reference="retort/any")


class TestSmallResNet:
    def test_stages_halve_the_map(self) -> None:
        network = pyramids.SmallResNet(width=4, blocks=2, channels=1)
        maps = network(torch.zeros(2, 1, 32, 48))
        assert [tuple(one.shape) for one in maps] == [
            (2, 8, 8, 12),
            (2, 16, 4, 6),
            (2, 16, 2, 3),
        ]


class TestPyramid:
    def test_finest_maps_know_of_the_coarsest(self) -> None:
        pyramid, strides = build(levels=2)
        assert strides == (4, 8, 16)
        images = torch.randn(2, 3, 32, 32)
        maps = pyramid(images)
        assert {name: tuple(one.shape) for name, one in maps.items()} == {
            "0": (2, 32, 8, 8),
            "1": (2, 32, 4, 4),
        }
        maps["0"].sum().backward()
        deepest = pyramid.body.get_submodule("layer3.1.conv2").weight
        assert isinstance(deepest, torch.nn.Parameter)
        assert deepest.grad is not None

    def test_every_parameter_is_read(self) -> None:
        pyramid, _ = build(levels=1)
        sum(one.sum() for one in pyramid(torch.randn(2, 3, 32, 32)).values()).backward()
        assert all(parameter.grad is not None for parameter in pyramid.parameters())


class TestBuild:
    def test_networks_of_timm_give_their_maps_from_stride_four_on(self) -> None:
        pyramid, strides = build(backbone="timm/mobilenetv3_small_050", channels=1)
        assert strides == (4, 8, 16, 32)
        maps = pyramid(torch.zeros(2, 1, 64, 64))
        assert [one.shape[2] for one in maps.values()] == [16, 8, 4, 2]

    def test_all_maps_are_read_but_no_more_than_asked_for(self) -> None:
        assert build()[0].levels == 3
        assert build(most=2)[0].levels == 2

    @pytest.mark.parametrize(
        ("backbone", "reason"),
        [
            ("timm/nothing", "timm has no network 'nothing'"),
            ("timm/vit_tiny_patch16_224", "needs maps at strides 4, 8, 16..., and vit_tiny"),
        ],
    )
    def test_what_gives_no_pyramid_is_refused(self, backbone: str, reason: str) -> None:
        with pytest.raises(errors.UnknownNetwork, match=reason) as caught:
            build(backbone=backbone)
        assert caught.value.details["argument"] == "backbone"
        assert "or small_resnet" in caught.value.message


class TestSmallestBatch:
    def test_is_two_where_the_coarsest_map_is_one_pixel(self) -> None:
        for side, expected in ((32, 2), (33, 1)):
            sizes = interface.Sizes(3, 3, side, 16)
            assert pyramids.smallest_batch((4, 8, 16, 32), sizes) == expected
