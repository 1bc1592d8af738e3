"""Archives of pictures with one folder per class, in folders `train`, `val` and `test` or none.

Pictures that all have one size keep it; others are scaled and cropped to the size that the uploader
gives.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, conversion, folders, pictures
from workers.distill.data.formats.base import Format


@dataclass(frozen=True)
class Picture:
    """A picture's file and the number of its class."""

    file: Path
    label: int


def convert(
    upload: Path, scratch: Path, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive of class folders and write it as a prepared data set."""
    archives.unpack(upload, scratch)
    classes, given, notes = find(scratch)
    form = _form([picture for split in given.values() for picture in split], scratch, hints)
    labels = np.array([picture.label for picture in given["train"]], dtype=np.int64)
    complete, divided = conversion.divide(given, labels)
    conversion.check_stored_bytes(form, sum(map(len, complete.values())), labels.itemsize)

    def decode(picture: Picture) -> dict[str, Any]:  # Any: arrays, or numbers
        return {"images": _decode(picture.file, scratch, form), "labels": picture.label}

    stored = {
        name: conversion.store(folder, name, complete[name], form, {"labels": ("I64", ())}, decode)
        for name in dataset.SPLITS
    }
    return conversion.finish(
        folder,
        stored,
        form,
        classes=classes,
        flip=True,
        hints=hints,
        notes=[*notes, *divided],
        task=task,
    )


def find(root: Path) -> tuple[list[str], dict[str, list[Picture]], list[str]]:
    """Return class names, the pictures of each split in the archive, and notes for its owner.

    Raises `UploadRefused` where there is no training split, or fewer than two classes.
    """
    top = _top(root)
    places = _split_folders(top) or {"train": top}
    if "train" not in places:
        raise errors.UploadRefused(
            "no_images", f"there is no 'train' folder beside {', '.join(sorted(places))}"
        )
    classes = [place.name for place in folders.subfolders(places["train"])]
    if not classes:
        raise errors.UploadRefused(
            "no_images",
            "the archive has no class folders with pictures; put each picture in a folder that is "
            "named for its class, such as cat/1.png",
        )
    numbers = {name: number for number, name in enumerate(classes)}
    skipped: Counter[str] = Counter()
    given = {split: _pictures(place, split, numbers, skipped) for split, place in places.items()}
    if len(classes) < 2:
        raise errors.UploadRefused(
            "bad_labels", f"there is one class folder only ({classes[0]!r}); it takes two or more"
        )
    notes = [
        f"{count} files ending in {suffix or 'nothing'} were left out: they are no pictures"
        for suffix, count in sorted(skipped.items())
    ]
    return classes, given, notes


def _top(root: Path) -> Path:
    """Return the folder that holds splits or classes; archives often wrap it in another folder."""
    while True:
        inside = folders.subfolders(root)
        if len(inside) != 1 or not folders.subfolders(inside[0]) or _split_folders(root):
            return root
        root = inside[0]


def _split_folders(top: Path) -> dict[str, Path]:
    """Return the folder of each split, or nothing where the folders are those of classes."""
    by_split: dict[str, Path] = {}
    for place in folders.subfolders(top):
        split = folders.SPLIT_NAMES.get(place.name.lower())
        if split is None or not folders.subfolders(place):
            return {}
        if split in by_split:
            raise errors.UploadRefused(
                "bad_labels", f"{by_split[split].name!r} and {place.name!r} are the same split"
            )
        by_split[split] = place
    return by_split


def _pictures(
    place: Path, split: str, numbers: Mapping[str, int], skipped: Counter[str]
) -> list[Picture]:
    found: list[Picture] = []
    for folder in folders.subfolders(place):
        if folder.name not in numbers:
            raise errors.UploadRefused(
                "bad_labels", f"the {split} split has the class {folder.name!r}, training has not"
            )
        files = sorted(folders.files(folder))
        kept = [file for file in files if file.suffix.lower() in folders.PICTURE_SUFFIXES]
        skipped.update(
            file.suffix for file in files if file.suffix.lower() not in folders.PICTURE_SUFFIXES
        )
        if not kept:
            raise errors.UploadRefused(
                "no_images",
                f"the class {folder.name!r} has no pictures in the {split} split; pictures end in "
                + ", ".join(sorted(folders.PICTURE_SUFFIXES)),
            )
        found.extend(Picture(file, numbers[folder.name]) for file in kept)
    return found


def _form(
    found: Sequence[Picture], root: Path, hints: conversion.InputHints
) -> conversion.StoredForm:
    """Return size and channels for all pictures, from their headers and the uploader's hints.

    Raises `UploadRefused` where sizes differ and no size was given.
    """
    headers = [pictures.read_header(picture.file, root) for picture in found]
    sizes = Counter((header.height, header.width) for header in headers)
    channels = hints.picture_channels(are_grey=all(header.is_grey for header in headers))
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


def _decode(file: Path, root: Path, form: conversion.StoredForm) -> NDArray[np.uint8]:
    """Return one picture as uint8 [C, H, W]; raises `UploadRefused` for a damaged one."""
    image = pictures.decode(file, root, form.channels)
    return pictures.to_array(_fitted(image, form.height, form.width))


def _fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale the picture until it just covers the size, and crop its centre."""
    scale = max(height / image.height, width / image.width)
    tall, wide = max(height, round(image.height * scale)), max(width, round(image.width * scale))
    if (tall, wide) != (image.height, image.width):
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    left, top = (wide - width) // 2, (tall - height) // 2
    return image.crop((left, top, left + width, top + height))


FORMAT = Format(
    name="imagefolder",
    title="a zip or tar archive with a folder of pictures for each class",
    description=(
        "Each picture lies in a folder named for its class, such as `cat/1.png`; above them there "
        "may be `train`, `val` and `test`, and splits that are missing are taken from training. "
        "Pictures of different sizes need `input.height` and `input.width`. Read are BMP, GIF, "
        "JPEG, PNG, PPM, TIFF and WebP."
    ),
    tasks=("classification",),
    suffixes=archives.SUFFIXES,
    convert=convert,
)
