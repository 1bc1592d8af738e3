"""Bring pictures of many sizes to one, with their boxes or masks, without cropping them.

A picture is scaled with its aspect ratio kept until it just fits, placed at the top left, and the
rest is filled. Boxes are scaled by what each side really became, in whole pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.distill.data import dataset
from workers.distill.data.formats import conversion, pictures

FILL = 114
"""Grey of the padding."""
LONGEST_SIDE = 640
"""Of the canvas in pixels, unless the uploader gives a size."""


@dataclass(frozen=True)
class Placement:
    """Size that one picture gets on the canvas, in pixels."""

    height: int
    width: int
    x_factor: float
    """Stored pixels per original pixel, along each axis."""
    y_factor: float

    @property
    def scale(self) -> float:
        """Stored pixels per original pixel: the square root of the ratio of areas."""
        return float((self.x_factor * self.y_factor) ** 0.5)


@dataclass(frozen=True)
class Canvas:
    """The size of all images of a data set, in pixels."""

    height: int
    width: int

    def placement(self, height: int, width: int) -> Placement:
        """Return how a picture of this size lies on the canvas."""
        scale = min(self.height / height, self.width / width)
        tall = min(self.height, max(1, round(height * scale)))
        wide = min(self.width, max(1, round(width * scale)))
        return Placement(tall, wide, wide / width, tall / height)

    def place(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return a grey or RGB picture on the canvas, as uint8 [C, H, W]."""
        at = self.placement(image.height, image.width)
        if (at.height, at.width) != (image.height, image.width):
            image = image.resize((at.width, at.height), Image.Resampling.BILINEAR)
        pixels = pictures.to_array(image)
        placed = np.full((len(pixels), self.height, self.width), FILL, dtype=np.uint8)
        placed[:, : at.height, : at.width] = pixels
        return placed

    def place_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a mask [H, W] on the canvas; the padding belongs to no class."""
        height, width = mask.shape
        at = self.placement(height, width)
        if (at.height, at.width) != (height, width):
            image = Image.fromarray(mask).resize((at.width, at.height), Image.Resampling.NEAREST)
            mask = np.asarray(image)
        placed = np.full((self.height, self.width), dataset.IGNORE_INDEX, dtype=np.uint8)
        placed[: at.height, : at.width] = mask
        return placed

    def notes(self, sizes: Iterable[tuple[int, int]]) -> list[str]:
        """Return notes about pictures of these sizes (height, width) that do not fill the canvas.

        Such as are scaled, and such as are padded.
        """
        scaled = padded = count = 0
        for height, width in sizes:
            at = self.placement(height, width)
            count += 1
            scaled += (at.height, at.width) != (height, width)
            padded += (at.height, at.width) != (self.height, self.width)
        size = f"{self.height}x{self.width} (height x width)"
        notes = []
        if scaled:
            notes.append(f"{scaled} of {count} pictures were scaled to fit into {size}")
        if padded:
            notes.append(
                f"{padded} of {count} pictures do not fill {size}: the rest is grey ({FILL})"
            )
        return notes


def canvas_for(sizes: Iterable[tuple[int, int]], hints: conversion.InputHints) -> Canvas:
    """Return the canvas for pictures of these sizes (height, width), at least one.

    It has the uploader's size; else the largest height and width, scaled down together to a longer
    side of `LONGEST_SIDE`.
    """
    given = hints.size()
    if given is not None:
        return Canvas(*given)
    heights, widths = zip(*sizes, strict=True)
    height, width = max(heights), max(widths)
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return Canvas(max(1, round(height * scale)), max(1, round(width * scale)))
