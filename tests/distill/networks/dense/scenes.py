"""Batches of two images and their boxes, for tests of detectors."""

import torch
from torch import Tensor

SIDE = 64


def targets(*images: list[list[float]]) -> Tensor:
    """Return rows of class, x1, y1, x2, y2, area, flag, padded to the most that an image has."""
    most = max(1, *(len(rows) for rows in images))
    shown = torch.zeros(len(images), most, 7)
    shown[..., 0] = -1
    for index, rows in enumerate(images):
        for place, row in enumerate(rows):
            shown[index, place, : len(row)] = torch.tensor(row)
            if len(row) == 5:
                shown[index, place, 5] = (row[3] - row[1]) * (row[4] - row[2])
    return shown


def two_boxes() -> Tensor:
    """Return boxes of the first and of the last of three classes, and an image without any."""
    return targets([[0, 4, 4, 20, 24], [2, 30, 28, 60, 56]], [])


def pictures(count: int = 2, side: int = SIDE, channels: int = 3) -> Tensor:
    """Return noise, and in the first image two bright rectangles where `two_boxes` has boxes."""
    images = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))
    images[0, 0, 4:24, 4:20] += 3
    images[0, -1, 28:56, 30:60] += 3
    return images


def as_library(rows: Tensor, *, first_class: int) -> list[dict[str, Tensor]]:
    """Return the same targets as torchvision takes them."""
    return [
        {
            "boxes": torch.stack([row[1:5] for row in image if row[0] >= 0])
            if (image[:, 0] >= 0).any()
            else torch.zeros(0, 4),
            "labels": torch.tensor(
                [int(row[0]) + first_class for row in image if row[0] >= 0]
            ).long(),
        }
        for image in rows
    ]
