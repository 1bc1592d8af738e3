"""Crops of the images of a split, cut from where the images are.

On the CPU that is the mapped file: only the pages of a batch are read, and nothing is copied but
its crops, so a set may be larger than memory. On another device it is a padded copy there. Both
give the same bytes in the same order (channels last).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Int, UInt8
from torch import Tensor

from workers.distill.data import crop_writing
from workers.distill.data.crop_writing import CropSource, Loading
from workers.distill.data.lazy_images import LazyImages, StoredImages
from workers.distill.data.transforms import random_crops
from workers.distill.data.types import AnyCrops, CropRow, Crops, ResizedCropRow, ResizedCrops


@dataclass(frozen=True)
class AtOnce:
    """A batch that is made when its result is asked for."""

    make: Callable[[], UInt8[Tensor, "n c h w"]]

    def result(self) -> UInt8[Tensor, "n c h w"]:
        """Make the images."""
        return self.make()

    def cancel(self) -> None:
        """Do nothing: nothing was begun."""


def crop_source(
    images: StoredImages, *, pad_y: int, pad_x: int, device: torch.device
) -> CropSource:
    """Return the source for a device; no crop reaches beyond the padding."""
    if isinstance(images, LazyImages):
        return images.source(device)
    if device.type == "cpu":
        return MappedImages(images)
    return DeviceImages(images, pad_y=pad_y, pad_x=pad_x, device=device)


class _OneSize:
    """Sizes of images that all have one, and batches that are made when they are used."""

    ahead = 0

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self._height, self._width, self.device = height, width, device

    def sizes(self, index: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Return height and width of the images, once for each."""
        return torch.full_like(index, self._height), torch.full_like(index, self._width)

    def begin(self, index: Int[Tensor, " n"], crops: AnyCrops) -> Loading:
        """Return what cuts the crops when its result is asked for."""
        return AtOnce(lambda: self.cut(index, crops))

    def cut(self, index: Int[Tensor, " n"], crops: AnyCrops) -> UInt8[Tensor, "n c h w"]:
        """Return a crop of each image that `index` names; channels last."""
        raise NotImplementedError


class MappedImages(_OneSize):
    """Images where they lie: in the mapped file of a split."""

    def __init__(self, images: UInt8[Tensor, "N c h w"]) -> None:
        # Cutting slices is several times faster in NumPy, whose calls cost less.
        self._images = images.numpy()
        super().__init__(images.shape[2], images.shape[3], torch.device("cpu"))

    def cut(self, index: Int[Tensor, " n"], crops: AnyCrops) -> UInt8[Tensor, "n c h w"]:
        """Return a crop of each image that `index` names; channels last."""
        channels, height, width = self._images.shape[1:]
        result = np.zeros((len(index), height, width, channels), dtype=np.uint8)
        if isinstance(crops, Crops) and not any(
            moved.numpy().any() for moved in (crops.top, crops.left, crops.mirrored)
        ):
            # Whole images: one call for all of them, which matters where images are small.
            result[:] = self._images[index.numpy()].transpose(0, 2, 3, 1)
            return torch.from_numpy(result).permute(0, 3, 1, 2)
        rows: Sequence[CropRow | ResizedCropRow] = crops.rows()
        for place, crop, row in zip(index.tolist(), rows, result, strict=True):
            crop_writing.cut_one(self._images[place], crop, row.transpose(2, 0, 1))
        return torch.from_numpy(result).permute(0, 3, 1, 2)


class DeviceImages(_OneSize):
    """Padded images in the memory of a device."""

    def __init__(
        self, images: UInt8[Tensor, "N c h w"], *, pad_y: int, pad_x: int, device: torch.device
    ) -> None:
        self._channels = images.shape[1]
        super().__init__(images.shape[2], images.shape[3], device)
        self._pad_y, self._pad_x = pad_y, pad_x
        padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
        # One row per pixel, channels together: a crop is then a plain look-up of rows, and what
        # comes out is channels-last without a copy.
        pixels = padded.permute(0, 2, 3, 1).reshape(-1, self._channels)
        self._pixels = pixels.contiguous().to(device)

    def cut(self, index: Int[Tensor, " n"], crops: AnyCrops) -> UInt8[Tensor, "n c h w"]:
        """Return a crop of each image that `index` names; channels last."""
        if isinstance(crops, ResizedCrops):
            size = (self._height, self._width)
            return random_crops.resize_parts(self._whole(index), crops, size)
        wide = self._width + 2 * self._pad_x
        tall = self._height + 2 * self._pad_y
        columns = torch.arange(self._width, device=self.device)
        columns = torch.where(crops.mirrored[:, None], self._width - 1 - columns, columns)
        columns = columns + (crops.left + self._pad_x)[:, None]
        rows = torch.arange(self._height, device=self.device)
        rows = rows + (crops.top + self._pad_y)[:, None]
        rows = (index[:, None] * tall + rows) * wide
        places = rows[:, :, None] + columns[:, None, :]
        cut = self._pixels.index_select(0, places.reshape(-1))
        shape = (len(index), self._height, self._width, self._channels)
        return cut.view(shape).permute(0, 3, 1, 2)

    def _whole(self, index: Tensor) -> UInt8[Tensor, "n c h w"]:
        tall, wide = self._height + 2 * self._pad_y, self._width + 2 * self._pad_x
        images = self._pixels.view(-1, tall, wide, self._channels)[index].permute(0, 3, 1, 2)
        y, x = self._pad_y, self._pad_x
        return images[:, :, y : y + self._height, x : x + self._width]
