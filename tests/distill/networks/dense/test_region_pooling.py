"""Pooling by products of matrices gives the library's values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from workers.distill.networks.dense import region_pooling

# Ordinary boxes, one of less than a position, one of the whole image, and one beyond its border.
BOXES = torch.tensor(
    [
        [0, 3.2, 4.1, 20.5, 11.7],
        [0, 7.0, 9.0, 8.0, 10.5],
        [2, 0.0, 0.0, 40.0, 28.0],
        [2, -9.0, 20.0, 47.0, 39.0],
    ],
    dtype=torch.float64,
)


def some_maps(height: int, width: int, seed: int = 0) -> Tensor:
    """Return maps of three images with four channels."""
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 4, height, width, generator=draw, dtype=torch.float64)
    return maps.contiguous(memory_format=torch.channels_last).requires_grad_()


def with_gradient(pooled: Tensor, *maps: Tensor) -> list[Tensor]:
    """Return the values, and the gradient of a sum that weighs each differently."""
    weights = torch.linspace(-1, 2, pooled.numel(), dtype=pooled.dtype).view(pooled.shape)
    return [pooled.detach(), *torch.autograd.grad((pooled * weights).sum(), maps)]


class TestAlign:
    @pytest.mark.parametrize(("cells", "samples"), [((7, 7), 2), ((2, 3), 1)])
    def test_is_the_librarys(self, cells: tuple[int, int], samples: int) -> None:
        maps = some_maps(7, 10)
        ours = region_pooling.align(maps, BOXES, 0.25, cells, samples=samples)
        theirs = roi_align(maps, BOXES, cells, 0.25, samples)
        for one, other in zip(with_gradient(ours, maps), with_gradient(theirs, maps), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)

    def test_of_no_box_is_empty(self) -> None:
        found = region_pooling.align(some_maps(7, 10), BOXES[:0], 0.25, (7, 7), samples=2)
        assert found.shape == (0, 4, 7, 7)


class TestPool:
    @pytest.mark.parametrize("names", [["fine", "coarse"], ["fine"], ["large", "fine"]])
    def test_is_the_librarys_over_levels(
        self, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(region_pooling, "LARGEST", 200)
        maps = {"large": some_maps(14, 20), "fine": some_maps(7, 10), "coarse": some_maps(4, 5, 1)}
        boxes = [BOXES[:2, 1:], BOXES[:0, 1:], BOXES[2:3, 1:]]
        sizes = [(28, 40)] * 3

        def pooler() -> Any:
            return MultiScaleRoIAlign(names, 7, 2, canonical_scale=32)

        ours = region_pooling.pool(pooler(), maps, boxes, sizes)
        theirs = pooler()(maps, boxes, sizes)
        used = [maps[name] for name in names]
        for one, other in zip(
            with_gradient(ours, *used), with_gradient(theirs, *used), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)

    def test_is_the_librarys_own_where_nothing_is_learned(self) -> None:
        maps = {"0": some_maps(7, 10).detach()}
        pooler = MultiScaleRoIAlign(["0"], 7, 2)
        boxes = [BOXES[:2, 1:], BOXES[:0, 1:], BOXES[2:3, 1:]]
        found = region_pooling.pool(pooler, maps, boxes, [(28, 40)] * 3)
        assert torch.equal(found, pooler(maps, boxes, [(28, 40)] * 3))
