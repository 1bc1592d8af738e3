"""Crops of the images of a split, cut from where the images are.

On the CPU that is the mapped file: only the pages of a batch are read, and nothing is copied but
its crops, so a set may be larger than memory. On another device it is a padded copy there. Both
give the same bytes in the same order (channels last).
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Int, UInt8
from torch import Tensor

from workers.distill.data.types import Crops


class CropSource(Protocol):
    """Images [N, c, h, w] from which crops are cut; what lies outside of an image is 0."""

    def cut(self, index: Int[Tensor, " n"], crops: Crops) -> UInt8[Tensor, "n c h w"]:
        """Return a crop, not resized, of each image that `index` names; channels last."""
        ...


def crop_source(
    images: UInt8[Tensor, "N c h w"], *, pad_y: int, pad_x: int, device: torch.device
) -> CropSource:
    """Return the source for a device; no crop reaches beyond the padding."""
    if device.type == "cpu":
        return MappedImages(images)
    return DeviceImages(images, pad_y=pad_y, pad_x=pad_x, device=device)


class MappedImages:
    """Images where they lie: in the mapped file of a split."""

    def __init__(self, images: UInt8[Tensor, "N c h w"]) -> None:
        # Cutting slices is several times faster in NumPy, whose calls cost less.
        self._images = images.numpy()

    def cut(self, index: Int[Tensor, " n"], crops: Crops) -> UInt8[Tensor, "n c h w"]:
        """Return a crop of each image that `index` names; channels last."""
        channels, height, width = self._images.shape[1:]
        result = np.zeros((len(index), height, width, channels), dtype=np.uint8)
        if not any(moved.numpy().any() for moved in (crops.top, crops.left, crops.mirrored)):
            # Whole images: one call for all of them, which matters where images are small.
            result[:] = self._images[index.numpy()].transpose(0, 2, 3, 1)
            return torch.from_numpy(result).permute(0, 3, 1, 2)
        places = zip(
            index.tolist(),
            crops.top.tolist(),
            crops.left.tolist(),
            crops.mirrored.tolist(),
            result.transpose(0, 3, 1, 2),
            strict=True,
        )
        for place, top, left, mirrored, crop in places:
            # The rows and columns of the crop that the image covers.
            y1, y2 = max(0, -top), min(height, height - top)
            x1, x2 = max(0, -left), min(width, width - left)
            seen = self._images[place, :, y1 + top : y2 + top, x1 + left : x2 + left]
            if mirrored:
                crop[:, y1:y2, width - x2 : width - x1] = seen[:, :, ::-1]
            else:
                crop[:, y1:y2, x1:x2] = seen
        return torch.from_numpy(result).permute(0, 3, 1, 2)


class DeviceImages:
    """Padded images in the memory of a device."""

    def __init__(
        self, images: UInt8[Tensor, "N c h w"], *, pad_y: int, pad_x: int, device: torch.device
    ) -> None:
        self._channels, self._height, self._width = images.shape[1:]
        self._pad_y, self._pad_x, self._device = pad_y, pad_x, device
        padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
        # One row per pixel, channels together: a crop is then a plain look-up of rows, and what
        # comes out is channels-last without a copy.
        pixels = padded.permute(0, 2, 3, 1).reshape(-1, self._channels)
        self._pixels = pixels.contiguous().to(device)

    def cut(self, index: Int[Tensor, " n"], crops: Crops) -> UInt8[Tensor, "n c h w"]:
        """Return a crop of each image that `index` names; channels last."""
        wide = self._width + 2 * self._pad_x
        tall = self._height + 2 * self._pad_y
        columns = torch.arange(self._width, device=self._device)
        columns = torch.where(crops.mirrored[:, None], self._width - 1 - columns, columns)
        columns = columns + (crops.left + self._pad_x)[:, None]
        rows = torch.arange(self._height, device=self._device)
        rows = rows + (crops.top + self._pad_y)[:, None]
        rows = (index[:, None] * tall + rows) * wide
        places = rows[:, :, None] + columns[:, None, :]
        cut = self._pixels.index_select(0, places.reshape(-1))
        shape = (len(index), self._height, self._width, self._channels)
        return cut.view(shape).permute(0, 3, 1, 2)
