"""NPZ archives of NumPy arrays: `x_train`, `y_train`, further splits, or `images` and `labels`.

For segmentation, labels are masks [N, H, W], in which 255 means no class, and an array `classes`
may give the number of classes or their names; otherwise they are counted.
Arrays of objects are refused, since they are pickles. A header is compared with the size of the
data behind it before memory is allocated.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, conversion
from workers.distill.data.formats.base import Format

KEYS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
MOST_CLASSES = 100_000


def convert(
    upload: Path, _scratch: Path, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Read an NPZ archive and write it as a prepared data set."""
    arrays = _read(upload, archives.Limits())
    given: dict[str, conversion.ImagesAndLabels] = {}
    if "images" in arrays:
        arrays = {"x_train": arrays["images"], "y_train": arrays.get("labels"), **arrays}
    for suffix, split in KEYS.items():
        if f"x_{suffix}" in arrays:
            images = _images(f"x_{suffix}", arrays[f"x_{suffix}"])
            given[split] = (images, _labels_for_task(f"y_{suffix}", arrays, images, task))
    if "train" not in given:
        raise errors.UploadRefused(
            "unsupported_format",
            "the NPZ file needs arrays 'x_train' and 'y_train', or 'images' and 'labels'; it has "
            + (", ".join(sorted(arrays)) or "none"),
        )
    sizes = {images.shape[1:] for images, _ in given.values()}
    if len(sizes) > 1:
        raise errors.UploadRefused("mixed_sizes", f"the splits differ in size: {sorted(sizes)}")
    if len(given["train"][1]) == 0:
        raise errors.UploadRefused("no_images", "the training split has no images")
    named = arrays.get("classes") if task == "segmentation" else None
    return conversion.write_arrays(
        folder,
        given,
        classes=_counted_classes(given) if named is None else _given_classes(named, given),
        flip=False,
        hints=hints,
        notes=["pictures are not mirrored in training: the file does not say whether they may be"],
        task=task,
    )


def _labels_for_task(
    name: str,
    arrays: dict[str, Any],  # Any: as `_read` returns them
    images: NDArray[np.uint8],
    task: Task,
) -> NDArray[np.int64] | NDArray[np.uint8]:
    labels = arrays.get(name)
    if labels is None:
        raise errors.UploadRefused("bad_labels", f"the NPZ file has no array {name!r}")
    return _masks(name, labels, images) if task == "segmentation" else _labels(name, labels, images)


def _counted_classes(given: Mapping[str, conversion.ImagesAndLabels]) -> list[str]:
    highest = _highest(given)
    if not 1 <= highest < MOST_CLASSES:
        raise errors.UploadRefused(
            "bad_labels",
            f"the highest label is {highest}; labels count from 0, there are at least two classes, "
            f"and at most {MOST_CLASSES}",
        )
    return [str(label) for label in range(highest + 1)]


def _given_classes(
    named: NDArray[Any],  # Any: a number, or names
    given: Mapping[str, conversion.ImagesAndLabels],
) -> list[str]:
    """Return the class names that the file gives, or numbers where it gives their count only."""
    if named.ndim == 0 and np.issubdtype(named.dtype, np.integer):
        # Bounded before it is counted out.
        classes = [str(number) for number in range(min(int(named), MOST_CLASSES))]
    elif named.ndim == 1 and named.dtype.kind == "U":
        classes = [str(name) for name in named]
    else:
        raise errors.UploadRefused(
            "bad_labels",
            f"'classes' is {named.dtype} {list(named.shape)}; give their number, or a list of "
            "their names",
        )
    if not 2 <= len(classes) <= dataset.IGNORE_INDEX or len(set(classes)) < len(classes):
        raise errors.UploadRefused(
            "bad_labels", f"'classes' has to name 2 to {dataset.IGNORE_INDEX} different classes"
        )
    highest = _highest(given)
    if highest >= len(classes):
        raise errors.UploadRefused(
            "bad_labels",
            f"the highest class in the masks is {highest}, but 'classes' has {len(classes)}: they "
            "count from 0",
        )
    return classes


def _highest(given: Mapping[str, conversion.ImagesAndLabels]) -> int:
    """Return the highest class number of any image or pixel."""
    return max(
        int(labels[labels != dataset.IGNORE_INDEX].max() if labels.ndim > 1 else labels.max())
        for _, labels in given.values()
        if len(labels)
    )


def _read(path: Path, limits: archives.Limits) -> dict[str, Any]:  # Any: arrays of any kind
    arrays: dict[str, Any] = {}
    allowed = min(
        limits.total_bytes, max(limits.ratio_free_bytes, limits.ratio * path.stat().st_size)
    )
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    continue
                allowed -= entry.file_size
                if allowed < 0:
                    raise errors.UploadRefused(
                        "too_large", "the NPZ file unpacks to more than is allowed for its size"
                    )
                with archive.open(entry) as stream:
                    name = entry.filename.removesuffix(".npy")
                    arrays[name] = _array(name, stream, entry.file_size)
    except (
        EOFError,
        MemoryError,
        NotImplementedError,
        OSError,
        RuntimeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise errors.UploadRefused(
            "unreadable", f"the file is not a readable NPZ archive: {error}"
        ) from error
    return arrays


def _array(name: str, stream: archives.Readable, size: int) -> NDArray[Any]:
    """Read one array, after comparing its header with the number of its bytes."""
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"array {name!r} has the unknown version {version}")
    shape, is_fortran, kind = read_header(stream)
    if kind.hasobject:
        raise errors.UploadRefused(
            "unsafe_archive", f"array {name!r} holds pickled objects; save numbers only"
        )
    if math.prod(shape) * kind.itemsize > size:
        raise ValueError(f"array {name!r} of shape {shape} is cut short")
    count = math.prod(shape)
    flat = np.frombuffer(stream.read(count * kind.itemsize), dtype=kind, count=count)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _images(name: str, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return uint8 images [N, C, H, W]."""
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4:
        first, last = (pixels.shape[axis] in conversion.GREY_OR_RGB for axis in (1, 3))
        if first and last:
            # Both layouts are possible: pictures are more often square than not.
            first = pixels.shape[1] != pixels.shape[2] or pixels.shape[2] == pixels.shape[3]
        if not first and last:
            pixels = pixels.transpose(0, 3, 1, 2)
        elif not first:
            raise errors.UploadRefused(
                "unsupported_format",
                f"{name} has shape {list(pixels.shape)}; give grey or RGB images as [N, C, H, W] "
                "or [N, H, W, C]",
            )
    else:
        raise errors.UploadRefused(
            "unsupported_format", f"{name} has {pixels.ndim} dimensions; images have 3 or 4"
        )
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise errors.UploadRefused(
            "unsupported_format", f"{name} is {pixels.dtype}; give uint8, or floats in 0..1"
        )
    # Written so that a NaN is refused as well.
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise errors.UploadRefused(
            "unsupported_format",
            f"{name} holds floats outside 0..1 ({pixels.min()} to {pixels.max()}); divide by 255, "
            "or give uint8",
        )
    return np.ascontiguousarray(np.rint(pixels * 255).astype(np.uint8))


def _masks(name: str, masks: NDArray[Any], images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return masks as uint8 [N, H, W]; raises `UploadRefused` unless they fit their images."""
    if masks.ndim != 3 or not np.issubdtype(masks.dtype, np.integer):
        raise errors.UploadRefused(
            "bad_labels",
            f"{name} is {masks.dtype} {list(masks.shape)}; give one whole number a pixel, as "
            "[N, H, W]",
        )
    expected = (len(images), *images.shape[2:])
    if masks.shape != expected:
        raise errors.UploadRefused(
            "bad_labels", f"{name} has shape {list(masks.shape)} for images of {list(expected)}"
        )
    if masks.size and not (masks.min() >= 0 and masks.max() <= dataset.IGNORE_INDEX):
        raise errors.UploadRefused(
            "bad_labels",
            f"{name} has classes outside 0..{dataset.IGNORE_INDEX - 1}, and other than "
            f"{dataset.IGNORE_INDEX}, which means none",
        )
    if masks.size and not np.any(masks != dataset.IGNORE_INDEX):
        raise errors.UploadRefused(
            "bad_labels", f"no pixel of {name} has a class: all are {dataset.IGNORE_INDEX}"
        )
    return np.ascontiguousarray(masks.astype(np.uint8))


def _labels(name: str, labels: NDArray[Any], images: NDArray[np.uint8]) -> NDArray[np.int64]:
    count = len(images)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise errors.UploadRefused(
            "bad_labels",
            f"{name} is {labels.dtype} {list(labels.shape)}; give one whole number an image",
        )
    if len(labels) != count:
        raise errors.UploadRefused(
            "bad_labels", f"{name} has {len(labels)} labels for {count} images"
        )
    if count and (int(labels.min()) < 0 or int(labels.max()) >= MOST_CLASSES):
        raise errors.UploadRefused("bad_labels", f"{name} has labels outside 0..{MOST_CLASSES - 1}")
    return np.ascontiguousarray(labels.astype(np.int64))


FORMAT = Format(
    name="npz",
    title="NumPy arrays in one .npz file",
    description=(
        "Arrays `x_train` and `y_train`, with `x_val`, `y_val`, `x_test` and `y_test` if there are "
        "such splits, or `images` and `labels`. Images are [N, H, W], [N, C, H, W] or "
        "[N, H, W, C], grey or RGB, uint8 or floats in 0..1. Labels are whole numbers [N]; for "
        "segmentation masks [N, H, W], in which 255 means no class, and `classes` may give the "
        "number of classes or their names."
    ),
    tasks=("classification", "segmentation"),
    suffixes=(".npz",),
    convert=convert,
)
