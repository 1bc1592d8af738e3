"""The prepared form of a data set, which every upload is converted to and the engine reads.

A folder with `dataset.json` (what the set is) and one safetensors file a split, `images` as uint8
[N, C, H, W] and `labels` with a row for each image, whose form the task defines: int64 [N] for
classification (`UNLABELLED` where an image has no class), masks [N, H, W] for segmentation, boxes
[N, M, 7] for detection (`boxes.py`), which has `scales` as well. Reading maps the files and copies
nothing. A classification set may be stored encoded instead: then the pictures are in tar files
(`shards.py`), the safetensors file is their index, and images are decoded when they are used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import torch
from jaxtyping import Float, Int, Integer, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Input, Task
from workers.distill.data import encoded_images, shards
from workers.distill.data.lazy_images import StoredImages
from workers.distill.files import tensorfile

SPLITS = ("train", "validation", "test")
RECORD_FILE = "dataset.json"
IGNORE_INDEX = 255
"""Value of the pixels of a mask that belong to no class and do not count."""
UNLABELLED = -1
"""Class of the images that have none."""
BLOCK_PIXELS = 1 << 20
"""Pixels that are counted at a time."""


class EncodedPictures(pydantic.BaseModel):
    """How the pictures of a data set are stored that are decoded when they are used."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    kinds: dict[str, int]
    """Pictures by the suffix of their files: `jpg`, `png`, `webp`."""
    size_bytes: int
    """Of all their files."""
    smallest: list[int]
    """Height and width of the picture with the smallest area."""
    largest: list[int]
    moments_of: int
    """Training images from which mean and standard deviation were measured."""


class DatasetRecord(pydantic.BaseModel):
    """The content of `dataset.json`: task, classes, sizes of the splits, input."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    task: Task = "classification"
    classes: list[str]
    """Empty where no image has a label, so that only a teacher says which classes there are."""
    splits: dict[Literal["train", "validation", "test"], int]
    boxes: dict[str, list[int]] | None = None
    """In detection: ordinary boxes of each class by split, without crowds and difficult ones."""
    labelled: dict[str, int] | None = None
    """Images with a class by split; None where all have one."""
    input: Input
    flip: bool = False
    encoded: EncodedPictures | None = None
    """None where images are stored decoded, all in one size."""
    notes: list[str] = []

    def sizes(self) -> dict[str, int]:
        """Return the images of each split, by any name."""
        return {str(name): count for name, count in self.splits.items()}

    @pydantic.model_validator(mode="after")
    def _has_classes(self) -> "DatasetRecord":
        if not self.classes and (self.labelled is None or any(self.labelled.values())):
            raise ValueError("classes is empty, and there are labels")
        return self


@dataclass(frozen=True)
class ImageSplit:
    """Images, which may be made on demand, with their labels in the form that the task defines."""

    images: StoredImages
    labels: Shaped[Tensor, "N *T"]
    scales: Float[Tensor, " N"] | None = None
    """In detection: stored pixels per pixel of the original picture, along a side."""


@dataclass(frozen=True)
class Split(ImageSplit):
    """Images that are stored decoded, with their labels."""

    images: UInt8[Tensor, "N c h w"]


@dataclass(frozen=True)
class StoredDataset:
    """A prepared data set in its folder."""

    record: DatasetRecord
    folder: Path

    def split(self, name: str) -> Split:
        """Return a split as `open_split` does, of a data set whose images are stored decoded.

        Raises `BadDataset` for another one, too.
        """
        return decoded(self.open_split(name), name)

    def open_split(self, name: str) -> ImageSplit:
        """Return a split, mapped from its file, its labels as they are stored.

        Raises `BadDataset` when the images are not as recorded. Only the task can check labels:
        `BaseTask.open_split` does both.
        """
        if self.record.encoded is not None:
            return _read_encoded(self.folder, name, self.record)
        return _read_split(self.folder / f"{name}.safetensors", name, self.record)


def decoded(split: ImageSplit, name: str) -> Split:
    """Return a split whose images are stored decoded; raises `BadDataset` for another one."""
    if not isinstance(split, Split):
        raise errors.BadDataset(
            f"the {name} split is stored as encoded pictures, which is not read here; upload the "
            'data set anew with input {"storage": "decoded"}',
            split=name,
        )
    return split


def load(folder: Path) -> StoredDataset:
    """Return the data set of a folder; a split is read when `split` is called.

    Raises `BadDataset` when the record is missing, malformed, or names a split without images.
    """
    path = folder / RECORD_FILE
    try:
        record = DatasetRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise errors.BadDataset(f"the data set has no readable {RECORD_FILE}: {error}") from error
    except pydantic.ValidationError as error:
        raise errors.BadDataset(f"{RECORD_FILE} is malformed: {error}") from error
    for name in SPLITS:
        if record.splits.get(name, 0) < 1:  # type: ignore[call-overload]  # names are the literals
            raise errors.BadDataset(f"the data set has no images in its {name} split", split=name)
    return StoredDataset(record, folder)


def write(folder: Path, record: DatasetRecord, splits: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Write a data set; the same content gives the same bytes.

    Each split is a tuple of images and labels, and for detection of scales.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in splits.items():
        # The last name is left out where there are two tensors.
        tensors = dict(zip(("images", "labels", "scales"), content, strict=False))
        tensorfile.write(folder / f"{name}.safetensors", tensors, header={})
    write_record(folder, record)


def write_record(folder: Path, record: DatasetRecord) -> None:
    """Write `dataset.json`. Call it last: a folder that has the file is complete."""
    temporary = folder / (RECORD_FILE + ".tmp")
    # Fields of other tasks are left out.
    text = record.model_dump_json(indent=1, exclude_none=True)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD_FILE)


def moments(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel for images [N, C, H, W].

    Of pixels scaled to 0..1, rounded to six digits. Sums are exact integers, so the result does not
    depend on the order of addition.
    """
    channels, pixels = images.shape[1], images[:, 0].size
    counts = np.zeros((channels, 256), dtype=np.int64)
    for image in images:
        for channel in range(channels):
            for rows in _blocks(image[channel]):
                # Counting widens every value to eight bytes, so it is done in small blocks.
                counts[channel] += np.bincount(rows.ravel(), minlength=256)
    values = np.arange(256)
    total = [int(row @ values) for row in counts]
    squares = [int(row @ values**2) for row in counts]
    mean = [value / pixels / 255 for value in total]
    # Python integers have any size: the difference below is exact.
    variance = [
        (square * pixels - value * value) / pixels**2 / 255**2
        for square, value in zip(squares, total, strict=True)
    ]
    # A channel without contrast has standard deviation 1, so that nothing divides by zero.
    std = [round(value**0.5, 6) or 1.0 for value in variance]
    return [round(value, 6) for value in mean], std


def labelled_counts(labels: Mapping[str, NDArray[np.generic]]) -> dict[str, int] | None:
    """Return how many of the labels [N] of each split are classes; None where all are."""
    counts = {name: int((numbers != UNLABELLED).sum()) for name, numbers in labels.items()}
    return None if all(counts[name] == len(labels[name]) for name in labels) else counts


def in_blocks(masks: Integer[Tensor, "N h w"]) -> Iterator[Integer[Tensor, "n h w"]]:
    """Yield masks a few at a time, `BLOCK_PIXELS` or one mask, so that a large set costs little."""
    yield from torch.split(masks, max(1, BLOCK_PIXELS // masks[0].numel()))


def class_counts(masks: Integer[Tensor, "N h w"], classes: int) -> Int[Tensor, " C"]:
    """Return how many pixels each class has; those of `IGNORE_INDEX` have none."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for some in in_blocks(masks):
        known = some[some != IGNORE_INDEX]
        counts += torch.bincount(known.flatten(), minlength=classes).cpu()
    return counts


def _blocks(plane: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the rows of a channel [H, W] in blocks of about `BLOCK_PIXELS`."""
    step = max(1, BLOCK_PIXELS // max(1, plane.shape[1]))
    for start in range(0, len(plane), step):
        yield plane[start : start + step]


def _read_encoded(folder: Path, name: str, record: DatasetRecord) -> ImageSplit:
    try:
        index = tensorfile.read(folder / f"{name}.safetensors")
        labels = index["labels"]
    except errors.UploadRefused as error:
        raise errors.BadDataset(f"the {name} split is damaged: {error.message}") from error
    except (OSError, KeyError) as error:
        raise errors.BadDataset(
            f"the {name} split cannot be read: {error!r}", split=name
        ) from error
    reader = shards.ShardReader(folder, name, index)
    if len(reader) != record.sizes().get(name) or labels.shape != (len(reader),):
        raise errors.BadDataset(
            f"the {name} split should have {record.sizes().get(name)} pictures, and its index has "
            f"{len(reader)}, with labels {list(labels.shape)}",
            split=name,
        )
    size = record.input
    images = encoded_images.EncodedImages(reader, (size.channels, size.height, size.width))
    return ImageSplit(images, labels)


def _read_split(path: Path, name: str, record: DatasetRecord) -> Split:
    try:
        tensors = tensorfile.read(path)
        images, labels, scales = tensors["images"], tensors["labels"], tensors.get("scales")
    except errors.UploadRefused as error:
        raise errors.BadDataset(f"the {name} split is damaged: {error.message}") from error
    except (OSError, KeyError) as error:
        raise errors.BadDataset(
            f"the {name} split cannot be read: {error!r}", split=name
        ) from error
    size = record.input
    count = record.splits.get(name)  # type: ignore[call-overload]  # any name may be asked for
    expected = (count, size.channels, size.height, size.width)
    if tuple(images.shape) != expected or images.dtype != torch.uint8:
        raise errors.BadDataset(
            f"images of the {name} split should be uint8 {list(expected)}, got "
            f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}",
            split=name,
        )
    if labels.dim() == 0 or len(labels) != len(images):
        raise errors.BadDataset(
            f"the {name} split has {len(images)} images and labels of shape {list(labels.shape)}",
            split=name,
        )
    if scales is not None:
        _check_scales(scales, len(images), name)
    return Split(images, labels, scales)


def _check_scales(scales: Tensor, count: int, name: str) -> None:
    is_fitting = tuple(scales.shape) == (count,) and scales.dtype == torch.float32
    if not is_fitting or not bool((scales.isfinite() & (scales > 0)).all()):
        raise errors.BadDataset(
            f"scales of the {name} split should be {count} positive float32 numbers", split=name
        )


def check_class_numbers(numbers: Tensor, record: DatasetRecord, name: str) -> None:
    """Raise `BadDataset` unless the targets of a split are numbers of the record's classes."""
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0 or highest >= len(record.classes):
        raise errors.BadDataset(
            f"labels of the {name} split run from {lowest} to {highest}, but there are "
            f"{len(record.classes)} classes",
            split=name,
        )
