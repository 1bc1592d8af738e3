"""Suppression that ends early gives the library's proposals."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import nms

from workers.distill.networks import catalog
from workers.distill.networks.dense import region_proposals

LEVELS = [900, 240]


def of_detector(**arguments: int) -> Any:
    """Return the network that proposes boxes in a small detector."""
    small = {"width": 4, "blocks": 1, "fpn_channels": 32, "representation_size": 16}
    built: Any = catalog.build(
        "retort/fasterrcnn",
        classes=3,
        channels=3,
        height=64,
        width=64,
        arguments={**small, **arguments},
    )
    return built.rpn


def crowded(count: int, side: int, seed: int) -> Tensor:
    """Return boxes that overlap each other much, some beyond the image and some without area."""
    draw = torch.Generator().manual_seed(seed)
    corners = side * torch.rand(count, 2, generator=draw) - 4
    sides = side / 3 * torch.rand(count, 2, generator=draw)
    sides[::50] = 0
    return torch.cat([corners, corners + sides], dim=1)


class TestFirstKept:
    @pytest.mark.parametrize("most", [1, 7, 60, 10_000])
    def test_are_the_first_that_are_kept_of_all(self, most: int) -> None:
        boxes = crowded(700, 40, seed=1)
        scores = torch.rand(700, generator=torch.Generator().manual_seed(2)).sort(descending=True)
        wanted = nms(boxes, scores.values, 0.5)
        found = region_proposals.first_kept(boxes, scores.values, 0.5, most=most)
        assert torch.equal(found, wanted[:most])
        assert 60 < len(wanted) < 700


class TestFilterProposals:
    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("levels", [LEVELS, [300, 100], [1200], [0, 1140]])
    def test_are_those_of_the_library(self, train: bool, levels: list[int]) -> None:
        network = of_detector(rpn_post_nms_top_n_train=40)
        network.train(train)
        network.score_thresh = 0.3
        library = copy.copy(network)
        library.__class__ = RegionProposalNetwork
        assert type(network) is not RegionProposalNetwork
        count = sum(levels)
        boxes = torch.stack([crowded(count, 64, seed) for seed in (3, 4)])
        draw = torch.Generator().manual_seed(5)
        objectness = 3 * torch.randn(2 * count, 1, generator=draw)
        sizes = [(64, 64), (48, 60)]
        found = network.filter_proposals(boxes, objectness, sizes, levels)
        wanted = library.filter_proposals(boxes, objectness, sizes, levels)
        for one, other in zip(found, wanted, strict=True):
            assert len(one) == 2
            for ours, theirs in zip(one, other, strict=True):
                assert torch.equal(ours, theirs)

    def test_of_an_image_whose_objects_are_unlikely_are_none(self) -> None:
        network = of_detector().eval()
        network.score_thresh = 0.5
        boxes = crowded(1140, 64, seed=3)[None]
        found, scores = network.filter_proposals(
            boxes, torch.full((1140, 1), -9.0), [(64, 64)], LEVELS
        )
        assert found[0].shape == (0, 4)
        assert scores[0].shape == (0,)
