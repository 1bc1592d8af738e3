"""Targets of detection: rows of boxes, padded to a table, and what is done to them.

A row has `COLUMNS` numbers: class (from 0), the corners x1, y1, x2, y2 (pixels of the stored image;
x2 and y2 are exclusive), area (pixels of the original picture), flag. Padding has the class
`NO_CLASS` and zeros. All functions are pure, and take any leading dimensions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workers.distill import errors

CLASS, X1, Y1, X2, Y2, AREA, FLAG = range(7)
COLUMNS = 7
NO_CLASS = -1
"""Class of a row that pads a table and holds no box."""
ORDINARY, CROWD, DIFFICULT = 0, 1, 2
"""Flags. Boxes with another flag than `ORDINARY` are never trained on."""
SMALLEST_SIDE = 1.0
"""Sides below it, in pixels of the original picture, are no box."""


def is_box(targets: Float[Tensor, "*N 7"]) -> Bool[Tensor, "*N"]:
    """Return which rows hold a box and no padding."""
    return targets[..., CLASS] != NO_CLASS


def is_ordinary(targets: Float[Tensor, "*N 7"]) -> Bool[Tensor, "*N"]:
    """Return which rows hold a box that is neither a crowd nor difficult."""
    return is_box(targets) & (targets[..., FLAG] == ORDINARY)


def padded(rows: Sequence[Float[Tensor, "_ 7"]], *, most: int) -> Float[Tensor, "N M 7"]:
    """Return one table of the rows of several images, each with at most M = `most` boxes."""
    table = torch.zeros(len(rows), most, COLUMNS)
    table[..., CLASS] = NO_CLASS
    for place, boxes in zip(table, rows, strict=True):
        place[: len(boxes)] = boxes
    return table


def flip(targets: Float[Tensor, "*N 7"], width: int) -> Float[Tensor, "*N 7"]:
    """Return the boxes as a left-right mirrored image of this width has them."""
    flipped = targets.clone()
    flipped[..., X1] = width - targets[..., X2]
    flipped[..., X2] = width - targets[..., X1]
    return torch.where(is_box(targets)[..., None], flipped, targets)


def rescale(
    targets: Float[Tensor, "*N 7"], x_factor: float, y_factor: float
) -> Float[Tensor, "*N 7"]:
    """Return the boxes as an image has them whose sides were multiplied by these factors.

    Areas stay: they are those of the original picture.
    """
    factors = targets.new_ones(COLUMNS)
    factors[[X1, X2]] = x_factor
    factors[[Y1, Y2]] = y_factor
    return targets * factors


def clip(targets: Float[Tensor, "*N 7"], height: int, width: int) -> Float[Tensor, "*N 7"]:
    """Return the boxes cut off at the border of an image; areas stay.

    A box outside of the image keeps its row, with a side of zero.
    """
    clipped = targets.clone()
    clipped[..., [X1, X2]] = targets[..., [X1, X2]].clamp(0, width)
    clipped[..., [Y1, Y2]] = targets[..., [Y1, Y2]].clamp(0, height)
    return clipped


def counts(targets: Float[Tensor, "*N 7"], classes: int) -> list[int]:
    """Return the number of ordinary boxes of each class."""
    numbers = targets[..., CLASS][is_ordinary(targets)]
    return torch.bincount(numbers.long(), minlength=classes).tolist()


def check_boxes(
    targets: Tensor, *, images: int, classes: int, height: int, width: int, split: str
) -> None:
    """Raise `BadDataset` unless the targets of a split are boxes as this module describes them."""
    shape = tuple(targets.shape)
    if (
        targets.dtype != torch.float32
        or len(shape) != 3
        or shape[0] != images
        or shape[1] < 1
        or shape[2] != COLUMNS
    ):
        raise errors.BadDataset(
            f"boxes of the {split} split should be float32 [{images}, M, {COLUMNS}] with M of 1 or "
            f"more, got {str(targets.dtype).removeprefix('torch.')} {list(shape)}",
            split=split,
        )
    number, flag = targets[..., CLASS], targets[..., FLAG]
    x1, y1, x2, y2 = (targets[..., column] for column in (X1, Y1, X2, Y2))
    holds = is_box(targets)
    rules = {
        "has a number that is not finite": targets.isfinite().all(-1),
        f"has a class that is not one of 0 to {classes - 1}": ~holds
        | ((number >= 0) & (number < classes) & (number == number.floor())),
        "has no positive width and height": ~holds | ((x2 > x1) & (y2 > y1)),
        f"is not inside of the image of {height}x{width}": ~holds
        | ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)),
        "has a negative area": targets[..., AREA] >= 0,
        f"has a flag other than {ORDINARY}, {CROWD} and {DIFFICULT}": (flag == ORDINARY)
        | (flag == CROWD)
        | (flag == DIFFICULT),
        "is padding, but not zero": holds | (targets[..., X1:] == 0).all(-1),
    }
    for fault, holds_everywhere in rules.items():
        if not bool(holds_everywhere.all()):
            image, row = (~holds_everywhere).nonzero()[0].tolist()
            raise errors.BadDataset(
                f"box {row} of image {image} of the {split} split {fault}: "
                f"{targets[image, row].tolist()}",
                split=split,
            )
