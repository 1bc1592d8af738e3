"""Maps pooled in boxes by products of matrices, where a CPU is sooner done than with the library.

RoIAlign averages bilinear samples, so what a cell of a box takes of a map is the product of a
weight of its row and one of its column: pooling is two products of matrices, and so is its
gradient. torchvision's kernel on the CPU adds the gradient up sample by sample, which with images
of 96 pixels a side was a third of a training step.

Source: He et al., ICCV 2017, arXiv:1703.06870, section 3 (RoIAlign).
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = 1600
"""Positions of a map up to which the products are sooner done; they grow with each."""


def pool(
    pooler: Any,  # Any: torchvision's MultiScaleRoIAlign
    maps: Mapping[str, Tensor],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    sizes: list[tuple[int, int]],
) -> Float[Tensor, "R c a b"]:
    """Return what torchvision's `pooler` does of boxes of each image, to rounding."""
    levels = [maps[name] for name in pooler.featmap_names if name in maps]
    learns = any(level.requires_grad for level in levels) and torch.is_grad_enabled()
    is_small = any(level.shape[2] * level.shape[3] <= LARGEST for level in levels)
    if levels[0].device.type != "cpu" or not learns or not is_small or pooler.sampling_ratio < 1:
        pooled: Tensor = pooler(maps, list(boxes), sizes)
        return pooled
    library: Any = importlib.import_module("torchvision.ops.poolers")
    if pooler.scales is None or pooler.map_levels is None:
        pooler.scales, pooler.map_levels = library._setup_scales(
            levels, sizes, pooler.canonical_scale, pooler.canonical_level
        )
    rows = library._convert_to_roi_format(list(boxes))
    numbers = pooler.map_levels(list(boxes)) if len(levels) > 1 else rows.new_zeros(len(rows))
    found, places = [], []
    for number, (level, scale) in enumerate(zip(levels, pooler.scales, strict=True)):
        here = torch.where(numbers == number)[0]
        places.append(here)
        if level.shape[2] * level.shape[3] <= LARGEST:
            found.append(
                align(level, rows[here], scale, pooler.output_size, samples=pooler.sampling_ratio)
            )
        else:
            found.append(
                library.roi_align(
                    level, rows[here], pooler.output_size, scale, pooler.sampling_ratio
                )
            )
    return torch.cat(found)[torch.cat(places).argsort()]


def align(
    maps: Float[Tensor, "N c h w"],
    boxes: Float[Tensor, "R 5"],
    scale: float,
    cells: tuple[int, int],
    *,
    samples: int,
) -> Float[Tensor, "R c a b"]:
    """Return the mean of `samples` x `samples` bilinear samples in each cell of each box.

    `boxes` have the number of their image, which does not fall from row to row, and x1, y1, x2, y2
    in pixels, of which `scale` are a position of the maps.
    """
    channels, height, width = maps.shape[1:]
    _, left, top, right, bottom = (scale * boxes).unbind(1)
    down = _shares(top, bottom, height, cells[0], samples)
    across = _shares(left, right, width, cells[1], samples)
    counts = torch.bincount(boxes[:, 0].long(), minlength=len(maps)).tolist()
    parts = (torch.split(shares, counts) for shares in (down, across))
    found = []
    for image, rows, columns in zip(maps, *parts, strict=True):
        # Channels last, as the engine's maps are stored.
        lines = image.permute(1, 2, 0).reshape(height, width * channels)
        taken = (rows.flatten(0, 1) @ lines).view(len(rows), cells[0], width, channels)
        found.append(columns[:, None] @ taken)
    return torch.cat(found).permute(0, 3, 1, 2)


def _shares(
    start: Float[Tensor, " R"], end: Float[Tensor, " R"], size: int, cells: int, samples: int
) -> Float[Tensor, "R cells size"]:
    """Return what each of `cells` equal parts from start to end takes of `size` positions."""
    # The library's rule for boxes of less than a position, and for samples beyond the border.
    length = (end - start).clamp_min(1)
    steps = (torch.arange(cells * samples, dtype=start.dtype) + 0.5) / (cells * samples)
    at = start[:, None] + length[:, None] * steps
    is_inside = (at >= -1) & (at <= size)
    distances = at.clamp(0, size - 1)[..., None] - torch.arange(size, dtype=start.dtype)
    shares = (1 - distances.abs()).clamp_min(0) * is_inside[..., None]
    return shares.view(len(start), cells, samples, size).mean(2)
