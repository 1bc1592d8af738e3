"""Images that are made when they are asked for: decoded, or resized, a few at a time.

They are read like a tensor [N, c, h, w], by rows, so that whoever scores or shows images does not
know how they are kept.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Int, UInt8
from torch import Tensor

from workers.distill.data.crop_writing import CropSource

Rows: TypeAlias = slice | Tensor | Sequence[int]


class LazyImages(ABC):
    """Images uint8 [N, c, h, w], of which rows are made on demand and given to a device."""

    def __init__(self, count: int, size: tuple[int, int, int]) -> None:
        self._rows = torch.arange(count)
        self._size = size
        self.device = torch.device("cpu")

    @property
    def shape(self) -> torch.Size:
        """Return [N, c, h, w]."""
        return torch.Size((len(self._rows), *self._size))

    @property
    def dtype(self) -> torch.dtype:
        """Return uint8."""
        return torch.uint8

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Rows) -> UInt8[Tensor, "n c h w"]:
        """Return some images on the device, channels last; as a tensor reads rows."""
        return self._make(self._rows[_on_cpu(rows)]).to(self.device, non_blocking=True)

    def subset(self, rows: Rows) -> Self:
        """Return some of the images, none of which is made yet."""
        other = copy.copy(self)
        other._rows = self._rows[_on_cpu(rows)]
        return other

    def to(self, device: torch.device) -> Self:
        """Return the same images, which are given to another device."""
        other = copy.copy(self)
        other.device = device
        return other

    def source(self, device: torch.device) -> CropSource:
        """Return what cuts crops of these images for training on a device."""
        raise NotImplementedError(f"{type(self).__name__} are not trained on")

    @abstractmethod
    def at_ratio(self, crop_ratio: float) -> "LazyImages":
        """Return the same images, of whose shorter side this share is shown."""

    def at_size(self, height: int, width: int) -> Self:
        """Return the same images, shown in another size."""
        other = copy.copy(self)
        other._size = (self._size[0], height, width)
        return other

    @abstractmethod
    def _make(self, index: Int[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the images with these numbers, channels last."""


StoredImages: TypeAlias = UInt8[Tensor, "N c h w"] | LazyImages
"""Images of a split: in a mapped file or on a device, or made when they are asked for."""


def select(images: StoredImages, rows: Tensor) -> UInt8[Tensor, "n c h w"] | LazyImages:
    """Return some of the images, without making them."""
    return images[rows] if isinstance(images, Tensor) else images.subset(rows)


def shown(images: StoredImages, crop_ratio: float | None) -> StoredImages:
    """Return images as they are scored with a `crop_ratio`; None: as they are stored."""
    if crop_ratio is None:
        return images
    if isinstance(images, Tensor):
        return CentreViews(images, crop_ratio)
    return images.at_ratio(crop_ratio)


def resized(images: StoredImages, height: int, width: int) -> LazyImages:
    """Return images as they are scored in another size, resized from what is stored."""
    if isinstance(images, Tensor):
        images = CentreViews(images, 1.0).to(images.device)
    return images.at_size(height, width)


class CentreViews(LazyImages):
    """Stored images as `crop_ratio` shows them: resized, and cut at their centre."""

    def __init__(self, images: UInt8[Tensor, "N c h w"], crop_ratio: float) -> None:
        channels, height, width = images.shape[1:]
        super().__init__(len(images), (channels, height, width))
        self._images, self._ratio = images, crop_ratio

    def at_ratio(self, crop_ratio: float) -> "CentreViews":
        """Return the same images with another ratio."""
        other = copy.copy(self)
        other._ratio = crop_ratio
        return other

    def _make(self, index: Int[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        # Resized on the CPU, where whole numbers can be, so that all devices score the same pixels.
        images = self._images[index.to(self._images.device)].cpu()
        return centre_view(images, self._size[1:], self._ratio)


def centre_view(
    images: UInt8[Tensor, "n c h w"], size: tuple[int, int], crop_ratio: float = 1.0
) -> UInt8[Tensor, "n c H W"]:
    """Return images resized until they just cover `size` / `crop_ratio`, their centre cut to it.

    Bilinear, averaged where they become smaller; channels last.
    Checked against: huggingface/pytorch-image-models, timm/data/transforms_factory.py
    (`transforms_imagenet_eval`: the shorter side becomes floor(size / ratio)).
    """
    covered = [int(side / crop_ratio) for side in size]
    height, width = images.shape[2:]
    factor = max(covered[0] / height, covered[1] / width)
    tall, wide = max(covered[0], round(height * factor)), max(covered[1], round(width * factor))
    images = images.contiguous(memory_format=torch.channels_last)
    if (tall, wide) != (height, width):
        images = F.interpolate(
            images, size=(tall, wide), mode="bilinear", antialias=True, align_corners=False
        )
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    cut = images[:, :, top : top + size[0], left : left + size[1]]
    return cut.contiguous(memory_format=torch.channels_last)


def _on_cpu(rows: Rows) -> Rows:
    return rows.cpu() if isinstance(rows, Tensor) else rows
