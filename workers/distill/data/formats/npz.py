"""NPZ archives of NumPy arrays: `x_train`, `y_train`, further splits, or `images` and `labels`.

Arrays are known by the usual names in any case: `X_train`, `train_images` (as MedMNIST has them),
`trainX`, `data`; `y`, `labels`, `targets`. Whole numbers are pixels of 0..255 whatever their dtype,
or scaled as pictures of more than 8 bits are. Labels are whole numbers, one-hot rows, or names; for
segmentation they are masks [N, H, W], in which 255 means no class. An image without a class has the
label -1. `classes` or `class_names` names
the classes, or gives their number.
Arrays of objects are refused, since they are pickles. A header is compared with the size of the
data behind it before memory is allocated.
"""

import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, conversion, file_kinds, folders, pictures
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload

Role = Literal["images", "labels", "classes"]
_WORDS: dict[str, Role] = {
    **dict.fromkeys(
        ["x", "images", "image", "imgs", "img", "data", "pixels", "pictures", "input", "inputs"],
        "images",
    ),
    **dict.fromkeys(["y", "labels", "label", "targets", "target", "lab", "lbl"], "labels"),
    **dict.fromkeys(["classes", "categories", "classnames", "labelnames"], "classes"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")
Arrays = dict[str, NDArray[Any]]
"""Arrays of any dtype, by split."""


@dataclass
class Content:
    """The arrays of an upload that make up a data set, with their names."""

    images: Arrays = field(default_factory=dict)
    labels: Arrays = field(default_factory=dict)
    classes: NDArray[Any] | None = None
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    """Name of each array, by its role and split."""


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Read an NPZ archive and write it as a prepared data set."""
    notes = list(upload.notes)
    content = _read(upload.path, archives.Limits(), notes)
    pixels = {
        split: _channels_first(content.names["images", split], array)
        for split, array in content.images.items()
    }
    sizes = {array.shape[1:] for array in pixels.values()}
    if len(sizes) > 1:
        raise errors.UploadRefused("mixed_sizes", f"the splits differ in size: {sorted(sizes)}")
    if len(pixels["train"]) == 0:
        raise errors.UploadRefused("no_images", "the training split has no images")
    images = _bytes_of_all(pixels, content, hints, notes)
    labels: Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]
    if task == "segmentation":
        labels = {
            split: _masks(content.names["labels", split], array, images[split])
            for split, array in content.labels.items()
        }
        named = content.classes
        classes = _counted_classes(labels) if named is None else _given_classes(named, labels)
    else:
        labels, classes = _labels_of_all(content, notes)
    return conversion.write_arrays(
        folder,
        {split: (images[split], labels[split]) for split in images},
        classes=classes,
        flip=False,
        hints=hints,
        notes=[
            *notes,
            "pictures are not mirrored in training: the file does not say whether they may be",
        ],
        task=task,
    )


def recognise(upload: Upload) -> None:
    """Raise `UploadRefused` unless the upload is a zip archive of NumPy arrays."""
    if not upload.is_npz:
        raise errors.UploadRefused("unsupported_format", "the file is no archive of NumPy arrays")


def _role(name: str) -> tuple[Role | None, str | None]:
    """Return what an array's name says that it holds, and its split; None for what it leaves out.

    Of a name with any other word, such as `fine_labels`, nothing is known.
    """
    role: Role | None = None
    split: str | None = None
    words = [word.lower() for word in _WORD.findall(name)]
    if words and words[-1] in ("name", "names"):
        return "classes", None
    for word in words:
        # `xtrain` and `trainx` have no sign between their words.
        glued = word[1:] if word[0] in "xy" else word[:-1] if word[-1] in "xy" else ""
        if word in folders.SPLIT_WORDS:
            split = folders.SPLIT_WORDS[word]
        elif glued in folders.SPLIT_WORDS:
            split = folders.SPLIT_WORDS[glued]
            role = _WORDS["x" if word.startswith("x") or word.endswith("x") else "y"]
        elif word in _WORDS and role is None:
            role = _WORDS[word]
        elif word not in ("set", "split", "all", "array", "np"):
            return None, None
    return role, split


def _read(path: Path, limits: archives.Limits, notes: list[str]) -> Content:
    """Read the arrays that are known by their names; note those that are left out."""
    allowed = min(
        limits.total_bytes, max(limits.ratio_free_bytes, limits.ratio * path.stat().st_size)
    )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {
                PurePosixPath(entry.filename).name.removesuffix(".npy"): entry
                for entry in archive.infolist()
                if entry.filename.endswith(".npy")
            }
            chosen = _choose(list(entries))
            content = Content(names=dict[tuple[str, str], str](chosen))
            for (role, split), name in chosen.items():
                entry = entries[name]
                allowed -= entry.file_size
                if allowed < 0:
                    raise errors.UploadRefused(
                        "too_large", "the NPZ file unpacks to more than is allowed for its size"
                    )
                with archive.open(entry) as stream:
                    array = _array(name, stream, entry.file_size, is_optional=role == "classes")
                if array is None:
                    notes.append(
                        f"the array {name!r} holds pickled objects and was not read: save names of "
                        "classes as text, by numpy.array(names, dtype=str)"
                    )
                elif role == "classes":
                    content.classes = array
                else:
                    (content.images if role == "images" else content.labels)[split] = array
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
        kind = file_kinds.kind_of(path)
        raise errors.UploadRefused(
            "unreadable",
            f"the file is not a readable NPZ archive: {error}"
            + (f"; it is {kind}" if kind else ""),
        ) from error
    left = sorted(set(entries) - set(chosen.values()))
    if left:
        notes.append(f"arrays that are not needed were left out: {', '.join(left)}")
    for split in [split for split in content.images if split not in content.labels]:
        notes.append(
            f"the {split} split was left out: {content.names['images', split]!r} has no labels"
        )
        del content.images[split]
    for split in [split for split in content.labels if split not in content.images]:
        notes.append(f"{content.names['labels', split]!r} was left out: it has no images")
        del content.labels[split]
    return content


def _choose(names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the names of the arrays to read, by role and split.

    Raises `UploadRefused` where two have the same role, and where there is no training split.
    """
    chosen: dict[tuple[str, str], str] = {}
    for name in names:
        role, split = _role(name)
        if role is None:
            continue
        key = (role, "" if role == "classes" else split or "train")
        if key in chosen:
            raise errors.UploadRefused(
                "unsupported_format",
                f"the NPZ file has two arrays of {role}"
                + (f" for the {key[1]} split" if key[1] else "")
                + f": {chosen[key]!r} and {name!r}; leave one out",
            )
        chosen[key] = name
    if not chosen and sorted(names) == ["arr_0", "arr_1"]:
        # What numpy.savez calls arrays that are given no names.
        chosen = {("images", "train"): "arr_0", ("labels", "train"): "arr_1"}
    if ("images", "train") not in chosen:
        raise errors.UploadRefused(
            "unsupported_format",
            "the NPZ file needs arrays 'x_train' and 'y_train', or 'images' and 'labels'; it has "
            + (", ".join(sorted(names)) or "none"),
        )
    if ("labels", "train") not in chosen:
        raise errors.UploadRefused(
            "bad_labels",
            f"the NPZ file has no array 'y_train' or 'labels' for {chosen['images', 'train']!r}; "
            f"it has {', '.join(sorted(names))}",
        )
    return chosen


def _array(
    name: str, stream: archives.Readable, size: int, *, is_optional: bool
) -> NDArray[Any] | None:
    """Read one array, after comparing its header with the number of its bytes.

    Arrays of objects are None if they are optional, else refused.
    """
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"array {name!r} has the unknown version {version}")
    try:
        shape, is_fortran, kind = read_header(stream)
    except tokenize.TokenError as error:
        # NumPy reads headers of its oldest versions by the tokens of Python.
        raise ValueError(f"array {name!r} has a damaged header: {error}") from error
    if kind.hasobject and is_optional:
        return None
    if kind.hasobject:
        raise errors.UploadRefused(
            "unsafe_archive",
            f"array {name!r} holds pickled objects, which may run code: save numbers, or text by "
            "dtype=str",
        )
    if math.prod(shape) * kind.itemsize > size:
        raise ValueError(f"array {name!r} of shape {shape} is cut short")
    count = math.prod(shape)
    flat = np.frombuffer(stream.read(count * kind.itemsize), dtype=kind, count=count)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _channels_first(name: str, pixels: NDArray[Any]) -> NDArray[Any]:
    """Return images as [N, C, H, W]."""
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim != 4:
        raise errors.UploadRefused(
            "unsupported_format", f"{name} has {pixels.ndim} dimensions; images have 3 or 4"
        )
    first, last = (pixels.shape[axis] in conversion.GREY_OR_RGB for axis in (1, 3))
    if first and last:
        # Both layouts are possible: pictures are more often square than not.
        first = pixels.shape[1] != pixels.shape[2] or pixels.shape[2] == pixels.shape[3]
    if not first and not last:
        raise errors.UploadRefused(
            "unsupported_format",
            f"{name} has shape {list(pixels.shape)}; give grey or RGB images as [N, C, H, W] "
            "or [N, H, W, C]",
        )
    return pixels if first else pixels.transpose(0, 3, 1, 2)


def _bytes_of_all(
    pixels: Arrays, content: Content, hints: conversion.InputHints, notes: list[str]
) -> dict[str, NDArray[np.uint8]]:
    """Return the images of all splits as uint8, by the range that they have together."""
    ranges = [_range(content.names["images", split], array) for split, array in pixels.items()]
    highest = max(ranges)
    are_fractions = any(array.dtype.kind == "f" for array in pixels.values()) and highest <= 1
    scale = pictures.GreyScale.of(int(highest), hints.max_value if highest > 255 else None)
    if are_fractions:
        notes.append("pixels of 0..1 were rounded to 256 levels")
    elif highest > 255:
        notes.append(
            f"pixels have more than 8 bits, with values up to {scale.highest}: they were scaled so "
            f"that {scale.white} becomes 255; input.max_value sets another value"
        )
    if any(array.dtype.kind == "b" for array in pixels.values()):
        notes.append("pixels of true and false are stored as 255 and 0")

    def to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
        if array.dtype.kind == "b":
            array = array.astype(np.uint8) * np.uint8(255)
        elif are_fractions:
            array = np.rint(array * 255)
        elif highest > 255:
            wide = np.minimum(array.astype(np.int64), scale.white)
            array = (wide * 255 + scale.white // 2) // scale.white
        return np.ascontiguousarray(array.astype(np.uint8, copy=False))

    return {split: to_bytes(array) for split, array in pixels.items()}


def _range(name: str, pixels: NDArray[Any]) -> float:
    """Return the highest value of images; raises `UploadRefused` for values that are no pixels."""
    if pixels.dtype.kind not in "buif":
        raise errors.UploadRefused(
            "unsupported_format", f"{name} is {pixels.dtype}; give numbers, such as uint8"
        )
    if not pixels.size or pixels.dtype.kind == "b":
        return 0.0
    lowest, highest = float(pixels.min()), float(pixels.max())
    # Written so that a NaN is refused as well.
    if not (lowest >= 0 and highest <= pictures.LARGEST_VALUE):
        raise errors.UploadRefused(
            "unsupported_format",
            f"{name} has values from {lowest:g} to {highest:g}; give uint8, or floats in 0..1",
        )
    if pixels.dtype.kind == "f" and highest > 1 and not _are_whole(pixels):
        raise errors.UploadRefused(
            "unsupported_format",
            f"{name} holds fractions outside 0..1 ({lowest:g} to {highest:g}); divide by 255, or "
            "give uint8",
        )
    return highest


def _are_whole(values: NDArray[Any]) -> bool:
    return bool(np.all(np.isfinite(values))) and bool(np.all(values == np.rint(values)))


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


def _labels_of_all(
    content: Content, notes: list[str]
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Return the class numbers of all splits [N], and the names of classes."""
    plain: Arrays = {}
    columns = 0
    for split, array in content.labels.items():
        name = content.names["labels", split]
        plain[split], width = _one_each(name, array, len(content.images[split]))
        columns = max(columns, width)
    if any(array.dtype.kind in "US" for array in plain.values()):
        return _numbered_names(plain, content, notes)
    known = {split: array[array != dataset.UNLABELLED] for split, array in plain.items()}
    if not any(map(len, known.values())):
        return {split: np.ascontiguousarray(array) for split, array in plain.items()}, (
            [] if content.classes is None else _names_of(content.classes)
        )
    lowest = min(int(array.min()) for array in known.values() if len(array))
    highest = max(int(array.max()) for array in known.values() if len(array))
    if lowest < 0 or highest >= conversion.MOST_CLASSES:
        raise errors.UploadRefused(
            "bad_labels",
            f"labels run from {lowest} to {highest}; they are 0 to "
            f"{conversion.MOST_CLASSES - 1} at most, and {dataset.UNLABELLED} for an image that "
            "has none",
        )
    count = max(highest + 1, columns)
    classes = None if content.classes is None else _names_of(content.classes)
    starts_at_one = lowest == 1 and not columns and (classes is None or len(classes) == highest)
    if starts_at_one:
        notes.append(
            f"labels count from 1 to {highest}: label 1 is class 0, and so on up to class "
            f"{highest - 1}"
        )
        plain = {
            split: np.where(array == dataset.UNLABELLED, array, array - 1)
            for split, array in plain.items()
        }
        classes = classes or [str(label) for label in range(1, highest + 1)]
        count = highest
    if classes is None:
        classes = [str(label) for label in range(count)]
    if count > len(classes):
        raise errors.UploadRefused(
            "bad_labels",
            f"the highest label is {highest}, but {content.names['classes', '']!r} has "
            f"{len(classes)}: they count from 0",
        )
    if len(classes) < 2:
        raise errors.UploadRefused(
            "bad_labels",
            f"the highest label is {highest}; labels count from 0, there are at least two classes",
        )
    return {split: np.ascontiguousarray(array) for split, array in plain.items()}, classes


def _one_each(name: str, labels: NDArray[Any], count: int) -> tuple[NDArray[Any], int]:
    """Return one label an image, int64 or text [N], and the columns of one-hot rows, else 0."""
    columns = 0
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(labels.shape) and len(labels) != count:
        raise errors.UploadRefused(
            "bad_labels", f"{name} has {len(labels)} labels for {count} images"
        )
    is_number = labels.dtype.kind in "buif"
    if labels.ndim == 2 and is_number:
        columns = labels.shape[1]
        if not np.all((labels == 0) | (labels == 1)):
            raise errors.UploadRefused(
                "bad_labels",
                f"{name} has shape {list(labels.shape)} and values other than 0 and 1; give one "
                "whole number an image, or one-hot rows",
            )
        if not np.all(labels.sum(axis=1) == 1):
            raise errors.UploadRefused(
                "bad_labels",
                f"{name} has rows with no class or with several: each image needs exactly one",
            )
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or not (labels.dtype.kind in "US" or is_number):
        raise errors.UploadRefused(
            "bad_labels",
            f"{name} is {labels.dtype} {list(labels.shape)}; give one whole number an image",
        )
    if labels.dtype.kind == "f" and not _are_whole(labels):
        raise errors.UploadRefused(
            "bad_labels", f"{name} has fractions; give one whole number an image"
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    is_large = (
        is_number and len(labels) > 0 and bool(np.abs(labels.astype(np.float64)).max() > 2**53)
    )
    if is_large:
        raise errors.UploadRefused(
            "bad_labels", f"{name} has labels beyond {conversion.MOST_CLASSES - 1}"
        )
    return (labels if labels.dtype.kind == "U" else labels.astype(np.int64)), columns


def _numbered_names(
    plain: Arrays, content: Content, notes: list[str]
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Return class numbers of labels that are names; classes are in order, as given or sorted."""
    if any(array.dtype.kind != "U" for array in plain.values()):
        raise errors.UploadRefused(
            "bad_labels", "labels are text in some splits, numbers in others"
        )
    found = {str(name) for array in plain.values() for name in np.unique(array)}
    if content.classes is not None:
        classes = _names_of(content.classes)
        if found - set(classes):
            raise errors.UploadRefused(
                "bad_labels",
                f"the label {min(found - set(classes))!r} is not in "
                f"{content.names['classes', '']!r}",
            )
    else:
        are_numbers = all(name.isdecimal() for name in found)
        classes = sorted(found, key=int) if are_numbers else sorted(found)
        notes.append("labels are names: classes are numbered in their order")
    if not 2 <= len(classes) < conversion.MOST_CLASSES:
        raise errors.UploadRefused(
            "bad_labels", f"labels have {len(classes)} different names; it takes two or more"
        )
    order = {name: number for number, name in enumerate(classes)}
    return {
        split: np.array([order[str(name)] for name in array], dtype=np.int64)
        for split, array in plain.items()
    }, classes


def _counted_classes(labels: Mapping[str, NDArray[Any]]) -> list[str]:
    highest = _highest(labels)
    if not 1 <= highest < conversion.MOST_CLASSES:
        raise errors.UploadRefused(
            "bad_labels",
            f"the highest label is {highest}; labels count from 0, there are at least two classes, "
            f"and at most {conversion.MOST_CLASSES}",
        )
    return [str(label) for label in range(highest + 1)]


def _names_of(named: NDArray[Any]) -> list[str]:
    """Return the class names that the file gives, or numbers where it gives their count only."""
    if named.ndim == 0 and np.issubdtype(named.dtype, np.integer):
        # Bounded before it is counted out.
        classes = [str(number) for number in range(min(int(named), conversion.MOST_CLASSES))]
    elif named.ndim == 1 and named.dtype.kind in "US":
        classes = [str(name) for name in np.asarray(named, dtype=str)]
    else:
        raise errors.UploadRefused(
            "bad_labels",
            f"'classes' is {named.dtype} {list(named.shape)}; give their number, or a list of "
            "their names",
        )
    return folders.checked_classes(classes, "'classes'")


def _given_classes(named: NDArray[Any], labels: Mapping[str, NDArray[Any]]) -> list[str]:
    classes = _names_of(named)
    if not 2 <= len(classes) <= dataset.IGNORE_INDEX:
        raise errors.UploadRefused(
            "bad_labels", f"'classes' has to name 2 to {dataset.IGNORE_INDEX} different classes"
        )
    highest = _highest(labels)
    if highest >= len(classes):
        raise errors.UploadRefused(
            "bad_labels",
            f"the highest class in the masks is {highest}, but 'classes' has {len(classes)}: they "
            "count from 0",
        )
    return classes


def _highest(labels: Mapping[str, NDArray[Any]]) -> int:
    """Return the highest class number of any pixel."""
    return max(
        int(masks[masks != dataset.IGNORE_INDEX].max()) for masks in labels.values() if len(masks)
    )


FORMAT = Format(
    name="npz",
    title="NumPy arrays in one .npz file",
    description=(
        "Arrays `x_train` and `y_train`, with `x_val`, `y_val`, `x_test` and `y_test` if there are "
        "such splits, or `images` and `labels`; other usual names in any case, such as "
        "`train_images`, `X_train`, `data` and `targets`, are known as well. Images are [N, H, W], "
        "[N, C, H, W] or [N, H, W, C], grey or RGB: whole numbers of any dtype, or floats in 0..1. "
        "Labels are whole numbers [N], one-hot rows [N, K], or names; they may count from 1, and "
        "-1 stands for an image without a label. For "
        "segmentation they are masks [N, H, W], in which 255 means no class. `classes` or "
        "`class_names` may give the number of classes or their names."
    ),
    tasks=("classification", "segmentation"),
    suffixes=(".npz",),
    recognise=recognise,
    convert=convert,
)
