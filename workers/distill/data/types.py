"""Batches: the input of a training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Real, Shaped, UInt8
from torch import Tensor

from workers.distill.config.training import CrossEntropy, TaskLoss


class CropRow(NamedTuple):
    """The crop of one image, as `Crops` has it without a scale."""

    top: int
    left: int
    mirrored: bool


class ResizedCropRow(NamedTuple):
    """The crop of one image, as `ResizedCrops` has it."""

    top: int
    left: int
    tall: int
    wide: int
    mirrored: bool
    interpolation: str


@dataclass(frozen=True)
class Crops:
    """Crops of the size of the image, cut from it after resizing, and then mirrored or not.

    `top` and `left` are where a crop begins in its resized image; what it shows outside is padding.
    `height` and `width` are those of the image, `scale` is the factor of its sides (None: 1).
    """

    top: Int[Tensor, " N"]
    left: Int[Tensor, " N"]
    mirrored: Bool[Tensor, " N"]
    height: int
    width: int
    scale: Float[Tensor, " N"] | None = None

    def part(self, start: int, end: int) -> "Crops":
        """Return the crops of one batch."""
        rows = slice(start, end)
        return Crops(
            self.top[rows],
            self.left[rows],
            self.mirrored[rows],
            self.height,
            self.width,
            None if self.scale is None else self.scale[rows],
        )

    def to(self, device: torch.device) -> "Crops":
        """Return the crops on a device."""
        top, left, mirrored = (
            column.to(device, non_blocking=True) for column in (self.top, self.left, self.mirrored)
        )
        scale = None if self.scale is None else self.scale.to(device, non_blocking=True)
        return Crops(top, left, mirrored, self.height, self.width, scale)

    def rows(self) -> list[CropRow]:
        """Return the crop of each image, regardless of `scale`."""
        columns = (self.top.tolist(), self.left.tolist(), self.mirrored.tolist())
        return list(map(CropRow, *columns))


@dataclass(frozen=True)
class ResizedCrops:
    """Parts of images, in pixels of each image, that are resized to one size, and then mirrored.

    `tall` and `wide` are the part's height and width.
    """

    top: Int[Tensor, " N"]
    left: Int[Tensor, " N"]
    tall: Int[Tensor, " N"]
    wide: Int[Tensor, " N"]
    mirrored: Bool[Tensor, " N"]
    interpolation: str

    def part(self, start: int, end: int) -> "ResizedCrops":
        """Return the crops of one batch."""
        return self._each(lambda column: column[start:end])

    def to(self, device: torch.device) -> "ResizedCrops":
        """Return the crops on a device."""
        return self._each(lambda column: column.to(device, non_blocking=True))

    def rows(self) -> list[ResizedCropRow]:
        """Return the crop of each image."""
        columns = (self.top, self.left, self.tall, self.wide, self.mirrored)
        top, left, tall, wide, mirrored = (column.tolist() for column in columns)
        rows = zip(top, left, tall, wide, mirrored, strict=True)
        return [
            ResizedCropRow(top, left, tall, wide, mirrored, self.interpolation)
            for top, left, tall, wide, mirrored in rows
        ]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ResizedCrops":
        columns = (self.top, self.left, self.tall, self.wide, self.mirrored)
        top, left, tall, wide, mirrored = map(change, columns)
        return ResizedCrops(top, left, tall, wide, mirrored, self.interpolation)


CROSS_ENTROPY = CrossEntropy()

AnyCrops: TypeAlias = Crops | ResizedCrops

CropTargets: TypeAlias = Callable[[Tensor, Crops], Tensor]
"""Returns targets [N, *T] as they are in crops of their images."""


@dataclass(frozen=True)
class Mixed:
    """The second image of each mixed one: its labels, and the share that the first one keeps."""

    labels: Shaped[Tensor, "N *T"]
    share: Float[Tensor, " N"]


@dataclass(frozen=True)
class Batch:
    """Images as stored (uint8, augmented), their labels, and their places in the split.

    Synthetic images may be floats of 0..255; their labels are their target classes, their places
    those in the replay buffer, and `weights` their importance weights (None: all equal; 0 marks
    padding, where batches of several clients are made equally long). `view` is
    the index of the stored view of an image with a teacher cache. `mixed` is set where images were
    mixed; `strong` holds a second, strongly augmented view of the same images where the method uses
    one. `class_weights` is what the targets of each class count (None: all alike), and
    `task_loss` which loss the task has. Without
    `has_all_labels` some images may have no class (`dataset.UNLABELLED`).
    """

    images: Real[Tensor, "N c h w"]
    labels: Shaped[Tensor, "N *T"]
    index: Int[Tensor, " N"]
    view: Int[Tensor, " N"] | None = None
    mixed: Mixed | None = None
    strong: UInt8[Tensor, "N c h w"] | None = None
    weights: Float[Tensor, " N"] | None = None
    class_weights: Float[Tensor, " C"] | None = None
    task_loss: TaskLoss = CROSS_ENTROPY
    has_all_labels: bool = True
    rows_of_all: int | None = None
    """Rows of the whole batch, where these are one rank's slice of it."""

    @property
    def rows(self) -> int:
        """Return the number of images of all ranks together."""
        return len(self.labels) if self.rows_of_all is None else self.rows_of_all

    def part(self, start: int, end: int) -> "Batch":
        """Return some rows of the batch, as a slice of it."""
        rows = slice(start, end)

        def cut(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        mixed = self.mixed
        return Batch(
            self.images[rows],
            self.labels[rows],
            self.index[rows],
            view=cut(self.view),
            mixed=None if mixed is None else Mixed(mixed.labels[rows], mixed.share[rows]),
            strong=cut(self.strong),
            weights=cut(self.weights),
            class_weights=self.class_weights,
            task_loss=self.task_loss,
            has_all_labels=self.has_all_labels,
            rows_of_all=self.rows,
        )
