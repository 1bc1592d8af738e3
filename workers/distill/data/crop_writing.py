"""What every source of crops offers, and how one crop of one image is written."""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from workers.distill.data.transforms import random_crops
from workers.distill.data.types import AnyCrops, CropRow, ResizedCropRow


class Loading(Protocol):
    """A batch of images that is being made."""

    def result(self) -> UInt8[Tensor, "n c h w"]:
        """Return the images where networks are, channels last, when they are done."""
        ...

    def cancel(self) -> None:
        """Leave out what was not begun: nobody wants the result."""
        ...


class CropSource(Protocol):
    """Images [N, c, h, w] from which crops are cut; what lies outside of an image is 0."""

    ahead: int
    """How many batches to begin before the one that is used."""
    device: torch.device
    """Where indices and crops are to be."""

    def sizes(self, index: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Return heights and widths of the images that resized crops are cut from.

        `index` and what is returned are on the CPU.
        """
        ...

    def begin(self, index: Int[Tensor, " n"], crops: AnyCrops) -> Loading:
        """Begin to cut a crop of each image that `index` names."""
        ...


def cut_one(
    image: NDArray[np.uint8], crop: CropRow | ResizedCropRow, target: NDArray[np.uint8]
) -> None:
    """Write one crop of an image [c, h, w] into `target` [c, H, W], which is all zeros."""
    height, width = target.shape[1:]
    if isinstance(crop, ResizedCropRow):
        part = (crop.top, crop.left, crop.tall, crop.wide)
        resized = random_crops.resize_part(
            torch.from_numpy(image), part, (height, width), crop.interpolation
        ).numpy()
        target[:] = resized[:, :, ::-1] if crop.mirrored else resized
        return
    # The rows and columns of the crop that the image covers.
    y1, y2 = max(0, -crop.top), min(height, height - crop.top)
    x1, x2 = max(0, -crop.left), min(width, width - crop.left)
    seen = image[:, y1 + crop.top : y2 + crop.top, x1 + crop.left : x2 + crop.left]
    if crop.mirrored:
        target[:, y1:y2, width - x2 : width - x1] = seen[:, :, ::-1]
    else:
        target[:, y1:y2, x1:x2] = seen
