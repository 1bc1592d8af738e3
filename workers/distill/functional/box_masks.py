"""Which positions of a map belong to objects, by their boxes.

Boxes are [N, M, 4] in pixels of the map: x1, y1, x2, y2, the last two exclusive, with a flag [N, M]
for each that is there. Rows of a map are y, columns x.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CANDIDATES = 9
"""Anchors of each level that are considered for a box."""
SMALLEST_DIAGONAL = 1e-6


def scale_weights(
    boxes: Float[Tensor, "N M 4"], exist: Bool[Tensor, "N M"], size: tuple[int, int]
) -> tuple[Float[Tensor, "N h w"], Float[Tensor, "N h w"]]:
    """Return the weights of foreground and background for maps of this height and width.

    A position that a box touches weighs 1 / (number of positions that the box touches), the largest
    of overlapping boxes; each other position 1 / (number of them). So large and small objects count
    alike, and so does the background.

    Source: Yang et al., CVPR 2022, arXiv:2111.11837 (FGD).
    Differs: the authors' code also covers a row and a column beyond a box.
    """
    touched = _touched(boxes, size) & exist[:, :, None, None]
    counts = touched.sum((2, 3), keepdim=True).clamp_min(1)
    if boxes.shape[1] == 0:
        foreground = boxes.new_zeros((len(boxes), *size))
    else:
        foreground = (touched.to(boxes.dtype) / counts).amax(1)
    background = (foreground == 0).to(boxes.dtype)
    return foreground, background / background.sum((1, 2), keepdim=True).clamp_min(1)


def anchor_mask(
    boxes: Float[Tensor, "N M 4"],
    exist: Bool[Tensor, "N M"],
    anchors: Float[Tensor, "h w K 4"],
    *,
    share: float,
) -> Bool[Tensor, "N h w"]:
    """Return the positions with an anchor that overlaps a box at least so well.

    The overlap must exceed `share` times the best one that any anchor has with that box; a box that
    no anchor overlaps marks nothing.

    Source: Wang et al., CVPR 2019, arXiv:1906.03609 (FGFI).
    """
    height, width = anchors.shape[:2]
    every = anchors.flatten(0, 2)
    marked = []
    # Image by image: all overlaps of a batch with hundreds of thousands of anchors are too many.
    for of_image, there in zip(boxes, exist, strict=True):
        overlaps = overlap(of_image, every) * there[:, None]
        best = overlaps.amax(1, keepdim=True) if overlaps.numel() else overlaps.sum(1, keepdim=True)
        near = (overlaps > share * best).any(0)
        marked.append(near.view(height, width, -1).any(2))
    return torch.stack(marked)


def valuable_region(
    boxes: Float[Tensor, "N M 4"],
    exist: Bool[Tensor, "N M"],
    anchors: Float[Tensor, "L 4"],
    level_counts: Sequence[int],
    *,
    share: float,
) -> Bool[Tensor, "N L"]:
    """Return the anchors that overlap a box, but less than those that would learn it.

    An anchor would learn a box from an overlap on that is the mean and the deviation of the
    overlaps of its candidates, the 9 anchors of each level that are nearest to its centre (ATSS,
    arXiv:1912.02424). The region has a DIoU between `share` of that overlap and all of it.

    Source: Zheng et al., CVPR 2022, arXiv:2102.12252, algorithm 1 (LD).
    """
    marked = []
    for of_image, there in zip(boxes, exist, strict=True):
        overlaps = overlap(of_image, anchors)
        apart = torch.cdist(_centers(of_image), _centers(anchors))
        candidates = torch.cat(
            [
                one.gather(1, far.sort(dim=1, stable=True).indices[:, :CANDIDATES])
                for one, far in zip(
                    torch.split(overlaps, list(level_counts), 1),
                    torch.split(apart, list(level_counts), 1),
                    strict=True,
                )
            ],
            dim=1,
        )
        # A single candidate has no deviation.
        spread = candidates.std(1, correction=min(1, candidates.shape[1] - 1))
        needed = (candidates.mean(1) + spread)[:, None]
        near = overlaps - (apart / _diagonals(of_image, anchors)).square()
        chosen = (near >= share * needed) & (near <= needed) & there[:, None]
        marked.append(chosen.any(0))
    return torch.stack(marked)


def overlap(one: Float[Tensor, "N 4"], other: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Return intersection over union of all pairs of boxes; 0 for boxes without area."""
    corner = torch.maximum(one[:, None, :2], other[:, :2])
    sides = (torch.minimum(one[:, None, 2:], other[:, 2:]) - corner).clamp_min(0)
    shared = sides.prod(2)
    areas = [(each[:, 2:] - each[:, :2]).clamp_min(0).prod(1) for each in (one, other)]
    union = areas[0][:, None] + areas[1] - shared
    return shared / torch.where(union > 0, union, 1)


def _centers(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 2"]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _diagonals(one: Float[Tensor, "N 4"], other: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Return the diagonal of the smallest box around each pair; at least a tiny one."""
    first = torch.minimum(one[:, None, :2], other[:, :2])
    last = torch.maximum(one[:, None, 2:], other[:, 2:])
    return (last - first).square().sum(2).sqrt().clamp_min(SMALLEST_DIAGONAL)


def _touched(boxes: Float[Tensor, "N M 4"], size: tuple[int, int]) -> Bool[Tensor, "N M h w"]:
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    x1, y1, x2, y2 = boxes[..., None].unbind(2)
    in_rows = (rows < y2) & (rows + 1 > y1)
    in_columns = (columns < x2) & (columns + 1 > x1)
    return in_rows[:, :, :, None] & in_columns[:, :, None, :]
