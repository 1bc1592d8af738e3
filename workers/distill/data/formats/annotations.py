"""Pictures with boxes or masks become a prepared data set, whatever format they came in.

A format finds pictures and reads their annotations in the pixels of the original picture; here they
are checked, decoded one at a time, and brought to one size. What is wrong is collected by file.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from workers.distill import errors
from workers.distill.data import boxes, dataset
from workers.distill.data.formats import conversion, letterbox, pictures
from workers.distill.data.formats.problems import Problems
from workers.distill.files import tensorfile


@dataclass(frozen=True)
class FoundPicture:
    """A picture's file, its size as its annotations see it, and how it is decoded for them."""

    file: Path
    height: int
    width: int
    header: pictures.PictureHeader
    is_upright: bool


@dataclass(frozen=True)
class BoxedPicture:
    """A picture with its boxes in its own pixels: rows as in `data/boxes.py`."""

    picture: FoundPicture
    rows: Float[Tensor, "M 7"]


@dataclass(frozen=True)
class MaskedPicture:
    """A picture with the file of its mask, which has been checked."""

    picture: FoundPicture
    mask: Path


A = TypeVar("A", BoxedPicture, MaskedPicture)
Shapes: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape, for one image, of what a split stores beside its images."""


def find_picture(
    file: Path,
    root: Path,
    problems: Problems,
    *,
    annotated_size: tuple[int, int] | None = None,
    said_by: str = "",
) -> FoundPicture | None:
    """Return a picture with its size, or None after adding what is wrong with it.

    Pictures are turned as EXIF says, unless `annotated_size` (height, width), which `said_by` says,
    is that of the pixels as they lie in the file.
    """
    try:
        header = pictures.read_header(file, root)
    except errors.UploadRefused as refusal:
        problems.add_unreadable(file, refusal)
        return None
    upright = (header.height, header.width)
    is_upright = not (header.is_turned and annotated_size == upright[::-1] != upright)
    size = upright if is_upright else upright[::-1]
    if annotated_size is not None and annotated_size != size:
        problems.add(
            "bad_labels",
            f"{file.relative_to(root)} has {size[0]}x{size[1]} pixels (height x width), "
            f"{said_by} says {annotated_size[0]}x{annotated_size[1]}",
        )
        return None
    return FoundPicture(file, *size, header=header, is_upright=is_upright)


@dataclass
class BoxReader:
    """Checks boxes one by one, and counts what it had to change."""

    classes: int
    problems: Problems
    changes: Counter[str] = field(default_factory=Counter)

    def row(
        self,
        where: str,
        number: int,
        corners: tuple[float, float, float, float],
        picture: FoundPicture,
        *,
        area: float | None = None,
        flag: int = boxes.ORDINARY,
    ) -> list[float] | None:
        """Return a row of `data/boxes.py`, clipped to its picture.

        Returns None for a box that is dropped since a side has less than a pixel, and for one that
        is refused: not finite, of negative size, outside of the picture. `where` names its place in
        a file.
        """
        fault = _box_fault(corners, picture, area)
        if fault is not None:
            self.problems.add("bad_labels", f"{where}: {fault}")
            return None
        x1, y1, x2, y2 = corners
        inside = (max(x1, 0), max(y1, 0), min(x2, picture.width), min(y2, picture.height))
        width, height = inside[2] - inside[0], inside[3] - inside[1]
        if min(width, height) < boxes.SMALLEST_SIDE:
            self.changes["dropped"] += 1
            return None
        self.changes["clipped"] += inside != corners
        self.changes["crowd"] += flag == boxes.CROWD
        self.changes["difficult"] += flag == boxes.DIFFICULT
        row = (number, *inside, width * height if area is None else area, flag)
        return [float(value) for value in row]

    def notes(self) -> list[str]:
        """Return notes about boxes that were changed, and about those that are not trained on."""
        sentences = {
            "dropped": "boxes with a side under 1 pixel were dropped",
            "clipped": "boxes reached beyond their pictures and were clipped",
            "crowd": "boxes of crowds are not trained on, and only excuse detections in tests",
            "difficult": "boxes marked as difficult are not trained on, and do not count in tests",
        }
        return [
            f"{self.changes[kind]} {sentence}"
            for kind, sentence in sentences.items()
            if self.changes[kind]
        ]


def table(rows: Sequence[list[float]]) -> Float[Tensor, "M 7"]:
    """Return the rows of one picture as a tensor; there may be none."""
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), boxes.COLUMNS)


def check_mask(
    file: Path, root: Path, problems: Problems, *, classes: int
) -> NDArray[np.uint8] | None:
    """Return a mask [H, W], or None after adding what is wrong with it."""
    name = file.relative_to(root)
    try:
        values = pictures.read_mask(file, root)
    except errors.UploadRefused as refusal:
        problems.add_refusal(refusal)
        return None
    wrong = values[(values >= classes) & (values != dataset.IGNORE_INDEX)]
    if wrong.size:
        highest = int(wrong.max())
        why = (
            f"masks hold at most {dataset.IGNORE_INDEX} classes"
            if highest > dataset.IGNORE_INDEX
            else f"there are {classes} classes from 0, and {dataset.IGNORE_INDEX} means none"
        )
        problems.add("bad_labels", f"{name}: {wrong.size} pixels are up to {highest}, but {why}")
        return None
    return values.astype(np.uint8)


def write_boxes(
    folder: Path,
    given: Mapping[str, Sequence[BoxedPicture]],
    root: Path,
    problems: Problems,
    *,
    classes: Sequence[str],
    hints: conversion.InputHints,
    notes: Sequence[str],
) -> dataset.DatasetRecord:
    """Write pictures with boxes as a prepared data set for detection, and return its record.

    Raises `UploadRefused` with all problems, those that formats have collected among them.
    """
    given, scale = _readable(given, root, problems, hints)
    canvas, form = _sizes(given, hints)
    complete, divided = _divide(given, problems)
    most = {name: max([1, *(len(one.rows) for one in split)]) for name, split in complete.items()}
    shapes: dict[str, Shapes] = {
        name: {"labels": ("F32", (rows, boxes.COLUMNS)), "scales": ("F32", ())}
        for name, rows in most.items()
    }

    def decode(name: str, boxed: BoxedPicture) -> dict[str, Any]:  # Any: arrays, or numbers
        at = canvas.placement(boxed.picture.height, boxed.picture.width)
        rows = boxes.rescale(boxed.rows, at.x_factor, at.y_factor)
        placed = boxes.padded([boxes.clip(rows, canvas.height, canvas.width)], most=most[name])
        return {"labels": placed[0].numpy(), "scales": at.scale}

    stored = _store(folder, complete, root, problems, scale, canvas, form, shapes, decode)
    complete = {
        name: [one for one in split if problems.is_readable(one.picture.file)]
        for name, split in complete.items()
    }
    counted = {
        name: boxes.counts(torch.cat([one.rows for one in complete[name]]), len(classes))
        for name in dataset.SPLITS
    }
    for name, counts in counted.items():
        if not any(counts) and not problems.are_any:
            problems.add(
                "bad_labels",
                f"the {name} split has no box that counts: give it pictures with objects"
                + (
                    "" if name in given else ", or more of them in training, where it is taken from"
                ),
            )
    problems.refuse()
    for name, arrays in stored.items():
        boxes.check_boxes(
            torch.from_numpy(arrays["labels"]),
            images=len(complete[name]),
            classes=len(classes),
            height=form.height,
            width=form.width,
            split=name,
        )
    absent = [classes[number] for number, count in enumerate(counted["train"]) if not count]
    return conversion.finish(
        folder,
        stored,
        form,
        classes=classes,
        flip=True,
        hints=hints,
        notes=[
            *notes,
            *problems.notes(),
            *_notes_of_pictures(complete, scale),
            *_canvas_notes(canvas, complete),
            *divided,
            *conversion.notes_of_absent(absent, "boxes"),
        ],
        task="detection",
        boxes=counted,
    )


def write_masks(
    folder: Path,
    given: Mapping[str, Sequence[MaskedPicture]],
    root: Path,
    problems: Problems,
    *,
    classes: Sequence[str],
    hints: conversion.InputHints,
    notes: Sequence[str],
) -> dataset.DatasetRecord:
    """Write pictures with masks as a prepared data set for segmentation, and return its record.

    Raises `UploadRefused` with all problems, those that formats have collected among them.
    """
    given, scale = _readable(given, root, problems, hints)
    canvas, form = _sizes(given, hints)
    complete, divided = _divide(given, problems)

    def decode(_name: str, masked: MaskedPicture) -> dict[str, Any]:  # Any: arrays, or numbers
        mask = pictures.read_mask(masked.mask, root).astype(np.uint8)
        return {"labels": canvas.place_mask(mask)}

    shape: Shapes = {"labels": ("U8", (form.height, form.width))}
    shapes = dict.fromkeys(complete, shape)
    stored = _store(folder, complete, root, problems, scale, canvas, form, shapes, decode)
    seen = {name: _pixels_of(arrays["labels"], len(classes)) for name, arrays in stored.items()}
    for name, counts in seen.items():
        if not counts.any():
            raise errors.UploadRefused(
                "bad_labels",
                f"no pixel of the {name} split has a class: all are {dataset.IGNORE_INDEX}",
            )
    absent = [name for number, name in enumerate(classes) if not seen["train"][number]]
    return conversion.finish(
        folder,
        stored,
        form,
        classes=classes,
        flip=True,
        hints=hints,
        notes=[
            *notes,
            *problems.notes(),
            *_notes_of_pictures(complete, scale),
            *_canvas_notes(canvas, complete),
            *divided,
            *conversion.notes_of_absent(absent, "pixels"),
        ],
        task="segmentation",
    )


def _box_fault(
    corners: tuple[float, float, float, float], picture: FoundPicture, area: float | None
) -> str | None:
    x1, y1, x2, y2 = corners
    if not all(map(math.isfinite, corners)):
        return f"its box has a number that is not finite: {corners}"
    if x2 < x1 or y2 < y1:
        return f"its box has a negative size: {x2 - x1:g} x {y2 - y1:g}"
    if area is not None and not (math.isfinite(area) and area >= 0):
        return f"its area is {area}, not a number of pixels"
    if x2 < 0 or y2 < 0 or x1 > picture.width or y1 > picture.height:
        return (
            f"its box ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) lies outside of the picture of "
            f"{picture.width}x{picture.height} pixels (width x height)"
        )
    return None


def _readable(
    given: Mapping[str, Sequence[A]],
    root: Path,
    problems: Problems,
    hints: conversion.InputHints,
) -> tuple[dict[str, list[A]], pictures.GreyScale]:
    """Return the pictures that can be read, as far as their headers say, and their grey scale.

    Raises `UploadRefused` where going on is pointless.
    """
    _check_given(given, root, problems)
    found = [one.picture for split in given.values() for one in split]
    problems.allow_unreadable(hints.max_bad_share, pictures=len(found) + problems.unreadable)
    headers = {one.file: one.header for one in found}
    scale = pictures.grey_scale(headers, root, hints.max_value, problems)
    return {
        name: [one for one in split if one.picture.file in headers] for name, split in given.items()
    }, scale


def _check_given(given: Mapping[str, Sequence[A]], root: Path, problems: Problems) -> None:
    """Add pictures that are in several splits; raise `UploadRefused` where going on is pointless.

    That is, without training pictures, with an empty split, and with more problems than are listed.
    """
    if problems.are_many:
        problems.refuse()
    for name in ("train", *given):
        if not given.get(name):
            problems.refuse()
            raise errors.UploadRefused("no_images", f"the {name} split has no pictures")
    first: dict[bytes, tuple[str, Path]] = {}
    for name, split in given.items():
        for one in split:
            file = one.picture.file
            other, twin = first.setdefault(pictures.digest(file), (name, file))
            if other != name:
                problems.add(
                    "bad_labels",
                    f"{file.relative_to(root)} of the {name} split is the same picture as "
                    f"{twin.relative_to(root)} of the {other} split: splits must share none",
                )


def _divide(
    given: Mapping[str, Sequence[A]], problems: Problems
) -> tuple[dict[str, list[A]], tuple[str, ...]]:
    try:
        return conversion.divide(given)
    except errors.UploadRefused:
        # Pictures may be too few because others were refused.
        problems.refuse()
        raise


def _sizes(
    given: Mapping[str, Sequence[A]], hints: conversion.InputHints
) -> tuple[letterbox.Canvas, conversion.StoredForm]:
    found = [one.picture for split in given.values() for one in split]
    canvas = letterbox.canvas_for([(one.height, one.width) for one in found], hints)
    channels = hints.picture_channels(are_grey=all(one.header.is_grey for one in found))
    return canvas, conversion.StoredForm(channels, canvas.height, canvas.width)


def _store(
    folder: Path,
    complete: Mapping[str, Sequence[A]],
    root: Path,
    problems: Problems,
    scale: pictures.GreyScale,
    canvas: letterbox.Canvas,
    form: conversion.StoredForm,
    shapes: Mapping[str, Shapes],
    decode_labels: Callable[[str, A], dict[str, Any]],  # Any: arrays, or numbers
) -> dict[str, dict[str, NDArray[Any]]]:  # Any: arrays of several types
    """Decode all splits into their files; raise `UploadRefused` with all problems after that."""
    label_bytes = max(
        sum(tensorfile.ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in one.values())
        for one in shapes.values()
    )
    conversion.check_stored_bytes(form, sum(map(len, complete.values())), label_bytes)

    def decode(name: str, one: A) -> dict[str, Any] | None:  # Any: arrays, or numbers
        picture = one.picture
        try:
            image = pictures.decode(
                picture.file,
                root,
                form.channels,
                is_upright=picture.is_upright,
                white=scale.white,
            )
        except errors.UploadRefused as refusal:
            problems.add_unreadable(picture.file, refusal)
            return None
        return {"images": canvas.place(image), **decode_labels(name, one)}

    try:
        stored = {
            name: conversion.store(
                folder, name, complete[name], form, shapes[name], functools.partial(decode, name)
            )
            for name in dataset.SPLITS
        }
    except errors.UploadRefused as refusal:
        problems.add_refusal(refusal)
    problems.refuse()
    return stored


def _notes_of_pictures(complete: Mapping[str, Sequence[A]], scale: pictures.GreyScale) -> list[str]:
    found = [one.picture for split in complete.values() for one in split]
    upright = [
        one.header if one.is_upright else replace(one.header, is_oriented=False) for one in found
    ]
    return pictures.notes_of(upright, scale)


def _canvas_notes(canvas: letterbox.Canvas, complete: Mapping[str, Sequence[A]]) -> list[str]:
    return canvas.notes(
        (one.picture.height, one.picture.width) for split in complete.values() for one in split
    )


def _pixels_of(masks: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Return the number of pixels of each class, one mask at a time."""
    total = np.zeros(classes, dtype=np.int64)
    for mask in masks:
        total += np.bincount(mask.ravel(), minlength=dataset.IGNORE_INDEX + 1)[:classes]
    return total
