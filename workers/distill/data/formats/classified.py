"""Pictures with one class each become a prepared data set, whatever format they came in.

All pictures are looked at before anything is refused, so that one answer names all that is wrong.
A few that cannot be read are left out, up to the share that the uploader allows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import conversion, encoding, pictures
from workers.distill.data.formats.problems import Problems


@dataclass(frozen=True)
class LabelledPicture:
    """A picture's file and the number of its class, `dataset.UNLABELLED` for none."""

    file: Path
    label: int


def write(
    folder: Path,
    given: Mapping[str, Sequence[LabelledPicture]],
    root: Path,
    *,
    classes: Sequence[str],
    hints: conversion.InputHints,
    notes: Sequence[str],
    task: Task,
    flip: bool = True,
) -> dataset.DatasetRecord:
    """Write pictures as a prepared data set for classification, and return its record.

    Files are named relative to `root`. Raises `UploadRefused` with all that is wrong.
    """
    problems = Problems()
    problems.allow_unreadable(hints.max_bad_share, pictures=sum(map(len, given.values())))
    headers = _headers(given, root, problems)
    scale = pictures.grey_scale(headers, root, hints.max_value, problems)
    if not headers:
        problems.refuse()
        raise errors.UploadRefused("no_images", "no picture of the upload can be read")
    try:
        form = _form(headers, hints)
    except errors.UploadRefused as refusal:
        problems.add_refusal(refusal)
        _add_damaged(headers, root, problems)
        problems.refuse()
        raise
    if problems.are_any:
        _add_damaged(headers, root, problems)
    problems.refuse()
    good = {name: [one for one in split if one.file in headers] for name, split in given.items()}
    for name, split in good.items():
        if not split:
            raise errors.UploadRefused("no_images", f"the {name} split has no readable pictures")
    labels = np.array([one.label for one in good["train"]], dtype=np.int64)
    complete, divided = conversion.divide(good, labels)

    def finish(
        stored: Mapping[str, Mapping[str, NDArray[np.generic]]],
        encoded: dataset.EncodedPictures | None,
    ) -> dataset.DatasetRecord:
        sizes = (
            _notes_of_sizes(headers.values(), form)
            if encoded is None
            else encoding.notes_of(encoded, hints)
        )
        seen = set(np.unique(stored["train"]["labels"]).tolist())
        absent = [name for number, name in enumerate(classes) if number not in seen]
        return conversion.finish(
            folder,
            stored,
            form,
            classes=classes,
            flip=flip,
            hints=hints,
            notes=[
                *notes,
                *problems.notes(),
                *pictures.notes_of(headers.values(), scale),
                *sizes,
                *divided,
                *conversion.notes_of_absent(absent, "images"),
            ],
            task=task,
            encoded=encoded,
        )

    if hints.stores_encoded(form, sum(map(len, complete.values()))):
        writer = encoding.EncodedWriter(folder, root, form, headers, scale.white, problems)
        stored, encoded = writer.write(
            {name: [(one.file, one.label) for one in split] for name, split in complete.items()}
        )
        problems.refuse()
        return finish(stored, encoded)
    conversion.check_stored_bytes(form, sum(map(len, complete.values())), labels.itemsize)

    def decode(one: LabelledPicture) -> dict[str, Any] | None:  # Any: arrays, or numbers
        try:
            image = pictures.decode(one.file, root, form.channels, white=scale.white)
        except errors.UploadRefused as refusal:
            problems.add_unreadable(one.file, refusal)
            return None
        return {
            "images": pictures.to_array(fitted(image, form.height, form.width)),
            "labels": one.label,
        }

    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"labels": ("I64", ())}
    try:
        stored = {
            name: conversion.store(folder, name, complete[name], form, shapes, decode)
            for name in dataset.SPLITS
        }
    except errors.UploadRefused as refusal:
        problems.add_refusal(refusal)
    problems.refuse()
    return finish(stored, None)


def _headers(
    given: Mapping[str, Sequence[LabelledPicture]], root: Path, problems: Problems
) -> dict[Path, pictures.PictureHeader]:
    found: dict[Path, pictures.PictureHeader] = {}
    for split in given.values():
        for one in split:
            try:
                found[one.file] = pictures.read_header(one.file, root)
            except errors.UploadRefused as refusal:
                problems.add_unreadable(one.file, refusal)
    return found


def _form(
    headers: Mapping[Path, pictures.PictureHeader], hints: conversion.InputHints
) -> conversion.StoredForm:
    """Return size and channels for all pictures, from their headers and the uploader's hints.

    Raises `UploadRefused` where sizes differ and no size was given.
    """
    sizes = Counter((header.height, header.width) for header in headers.values())
    are_grey = all(header.is_grey for header in headers.values())
    channels = hints.picture_channels(are_grey=are_grey)
    given = hints.size()
    if given is not None:
        return conversion.StoredForm(channels, *given)
    if len(sizes) > 1:
        some = ", ".join(f"{tall}x{wide}" for (tall, wide), _ in sizes.most_common(3))
        raise errors.UploadRefused(
            "mixed_sizes",
            f"the pictures have {len(sizes)} different sizes ({some}, ...); give input.height and "
            "input.width to scale and crop them to one",
        )
    return conversion.StoredForm(channels, *next(iter(sizes)))


def _add_damaged(files: Iterable[Path], root: Path, problems: Problems) -> None:
    """Decode pictures for the sake of an answer that names all that cannot be read."""
    for file in files:
        try:
            pictures.decode(file, root, channels=1)
        except errors.UploadRefused as refusal:
            problems.add_unreadable(file, refusal)


def fitted(image: Image.Image, height: int, width: int, crop_ratio: float = 1.0) -> Image.Image:
    """Scale the picture until it just covers the size / `crop_ratio`, and crop the size's centre.

    The same as `lazy_images.centre_view` with Pillow, which rounds otherwise by one at most.
    """
    covered = int(height / crop_ratio), int(width / crop_ratio)
    scale = max(covered[0] / image.height, covered[1] / image.width)
    tall = max(covered[0], round(image.height * scale))
    wide = max(covered[1], round(image.width * scale))
    if (tall, wide) != (image.height, image.width):
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    left, top = (wide - width) // 2, (tall - height) // 2
    return image.crop((left, top, left + width, top + height))


def _notes_of_sizes(
    headers: Iterable[pictures.PictureHeader], form: conversion.StoredForm
) -> Iterator[str]:
    size = (form.height, form.width)
    count = sum((header.height, header.width) != size for header in headers)
    if count:
        yield (
            f"{count} pictures had other sizes and were scaled to cover {size[0]}x{size[1]} pixels "
            "(height x width) and cropped at their centre"
        )
