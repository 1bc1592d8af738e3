"""Archives of pictures with one folder per class, in folders `train`, `val` and `test` or none.

Pictures are decoded here, once, at inspection, and nowhere else. Pictures that all have one size
keep it; others are scaled and cropped to the size that the uploader gives.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from workers.distill import errors
from workers.distill.config.job import Input, Task
from workers.distill.data import dataset, splits
from workers.distill.data.formats import archives, conversion
from workers.distill.data.formats.base import Format
from workers.distill.files import tensorfile

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
LARGEST_PIXELS = 64_000_000
LARGEST_STORED_BYTES = 64 << 30
GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})


@dataclass(frozen=True)
class Picture:
    """A picture's file and the number of its class."""

    file: Path
    label: int


@dataclass(frozen=True)
class Form:
    """Size and channels that all pictures get, and whether they are scaled to that size."""

    channels: int
    height: int
    width: int
    is_scaled: bool


def convert(
    upload: Path, scratch: Path, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive of class folders and write it as a prepared data set."""
    archives.unpack(upload, scratch)
    classes, given, notes = find(scratch)
    form = _form([picture for pictures in given.values() for picture in pictures], scratch, hints)
    train = given["train"]
    labels = np.array([picture.label for picture in train], dtype=np.int64)
    division = splits.divide(labels, has_validation="validation" in given, has_test="test" in given)
    complete = {**given, "train": [train[index] for index in division.train]}
    for name, indices in (("validation", division.validation), ("test", division.test)):
        if indices is not None:
            complete[name] = [train[index] for index in indices]
    pixels = form.channels * form.height * form.width
    if pixels * sum(map(len, complete.values())) > LARGEST_STORED_BYTES:
        raise errors.UploadRefused(
            "too_large",
            f"the decoded pictures take more than {LARGEST_STORED_BYTES} bytes; give a smaller "
            "input.height and input.width",
        )
    folder.mkdir(parents=True, exist_ok=True)
    images = {name: _store(folder, name, complete[name], form, scratch) for name in dataset.SPLITS}
    mean, std = hints.normalisation(form.channels, dataset.moments(images["train"]))
    record = dataset.DatasetRecord(
        task=task,
        classes=classes,
        splits={
            "train": len(complete["train"]),
            "validation": len(complete["validation"]),
            "test": len(complete["test"]),
        },
        input=Input(
            channels=form.channels, height=form.height, width=form.width, mean=mean, std=std
        ),
        flip=True,
        notes=[*notes, *division.notes],
    )
    dataset.write_record(folder, record)
    return record


def find(root: Path) -> tuple[list[str], dict[str, list[Picture]], list[str]]:
    """Return class names, the pictures of each split in the archive, and notes for its owner.

    Raises `UploadRefused` where there is no training split, or fewer than two classes.
    """
    top = _top(root)
    folders = _split_folders(top) or {"train": top}
    if "train" not in folders:
        raise errors.UploadRefused(
            "no_images", f"there is no 'train' folder beside {', '.join(sorted(folders))}"
        )
    classes = [place.name for place in _subfolders(folders["train"])]
    if not classes:
        raise errors.UploadRefused(
            "no_images",
            "the archive has no class folders with pictures; put each picture in a folder that is "
            "named for its class, such as cat/1.png",
        )
    numbers = {name: number for number, name in enumerate(classes)}
    skipped: Counter[str] = Counter()
    given = {split: _pictures(place, split, numbers, skipped) for split, place in folders.items()}
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
        inside = _subfolders(root)
        if len(inside) != 1 or not _subfolders(inside[0]) or _split_folders(root):
            return root
        root = inside[0]


def _split_folders(top: Path) -> dict[str, Path]:
    """Return the folder of each split, or nothing where the folders are those of classes."""
    folders: dict[str, Path] = {}
    for place in _subfolders(top):
        split = SPLIT_NAMES.get(place.name.lower())
        if split is None or not _subfolders(place):
            return {}
        if split in folders:
            raise errors.UploadRefused(
                "bad_labels", f"{folders[split].name!r} and {place.name!r} are the same split"
            )
        folders[split] = place
    return folders


def _subfolders(place: Path) -> list[Path]:
    return sorted(
        (child for child in place.iterdir() if child.is_dir() and not _is_debris(child)),
        key=lambda child: child.name,
    )


def _is_debris(place: Path) -> bool:
    """Return whether an operating system's file manager made this file or folder."""
    return place.name.startswith((".", "__MACOSX")) or place.name == "Thumbs.db"


def _pictures(
    place: Path, split: str, numbers: Mapping[str, int], skipped: Counter[str]
) -> list[Picture]:
    labelled: list[Picture] = []
    for folder in _subfolders(place):
        if folder.name not in numbers:
            raise errors.UploadRefused(
                "bad_labels", f"the {split} split has the class {folder.name!r}, training has not"
            )
        files = sorted(
            file for file in folder.rglob("*") if file.is_file() and not _is_debris(file)
        )
        pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
        skipped.update(file.suffix for file in files if file.suffix.lower() not in SUFFIXES)
        if not pictures:
            raise errors.UploadRefused(
                "no_images",
                f"the class {folder.name!r} has no pictures in the {split} split; pictures end in "
                + ", ".join(sorted(SUFFIXES)),
            )
        labelled.extend(Picture(file, numbers[folder.name]) for file in pictures)
    return labelled


def _form(pictures: Sequence[Picture], root: Path, hints: conversion.InputHints) -> Form:
    """Return size and channels for all pictures, from their headers and the uploader's hints.

    Raises `UploadRefused` where sizes differ and no size was given.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    is_grey = True
    for picture in pictures:
        with _open(picture.file, root) as image:
            sizes[image.height, image.width] += 1
            is_grey = is_grey and image.mode in GREY_MODES
    channels = hints.channels or (1 if is_grey else 3)
    if channels not in (1, 3):
        raise errors.UploadRefused(
            "unsupported_format", f"pictures have 1 or 3 channels, input.channels says {channels}"
        )
    height, width = hints.height or hints.width, hints.width or hints.height
    if height is not None and width is not None:
        return Form(channels, height, width, is_scaled=True)
    if len(sizes) > 1:
        some = ", ".join(f"{tall}x{wide}" for (tall, wide), _ in sizes.most_common(3))
        raise errors.UploadRefused(
            "mixed_sizes",
            f"the pictures have {len(sizes)} different sizes ({some}, ...); give input.height and "
            "input.width to scale and crop them to one",
        )
    (height, width) = next(iter(sizes))
    return Form(channels, height, width, is_scaled=False)


def _store(
    folder: Path, name: str, pictures: Sequence[Picture], form: Form, root: Path
) -> NDArray[np.uint8]:
    """Decode a split into its file and return the images [N, C, H, W], mapped from that file."""
    count = len(pictures)
    arrays = tensorfile.create(
        folder / f"{name}.safetensors",
        {
            "images": ("U8", (count, form.channels, form.height, form.width)),
            "labels": ("I64", (count,)),
        },
    )
    images = cast(NDArray[np.uint8], arrays["images"])
    for index, picture in enumerate(pictures):
        images[index] = _decode(picture.file, root, form)
        arrays["labels"][index] = picture.label
    for array in arrays.values():
        cast("np.memmap[Any, Any]", array).flush()
    return images


def _open(file: Path, root: Path) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _not_a_picture(file, root, error) from error
    if image.width * image.height > LARGEST_PIXELS:
        image.close()
        raise errors.UploadRefused(
            "too_large",
            f"{file.relative_to(root)} has {image.width}x{image.height} pixels, more than "
            f"{LARGEST_PIXELS}",
        )
    return image


def _decode(file: Path, root: Path, form: Form) -> NDArray[np.uint8]:
    """Return one picture as uint8 [C, H, W]; raises `UploadRefused` for a damaged one."""
    try:
        with _open(file, root) as image:
            plain = _plain(image, form.channels)
            if form.is_scaled:
                plain = _fitted(plain, form.height, form.width)
            pixels = np.asarray(plain)
    # Decoders raise these for damaged content, depending on the format.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        raise _not_a_picture(file, root, error) from error
    return pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Return the picture as 8-bit grey (1 channel) or RGB (3 channels)."""
    if image.mode.startswith("I;16"):
        # The conversion of the library cuts off above 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale the picture until it just covers the size, and crop its centre."""
    scale = max(height / image.height, width / image.width)
    tall, wide = max(height, round(image.height * scale)), max(width, round(image.width * scale))
    if (tall, wide) != (image.height, image.width):
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    left, top = (wide - width) // 2, (tall - height) // 2
    return image.crop((left, top, left + width, top + height))


def _not_a_picture(file: Path, root: Path, error: Exception) -> errors.UploadRefused:
    reason = "its content is of no known kind" if _is_unidentified(error) else str(error)
    return errors.UploadRefused(
        "unreadable", f"{file.relative_to(root)} is not a readable picture: {reason}"
    )


def _is_unidentified(error: Exception) -> bool:
    return isinstance(error, PIL.UnidentifiedImageError)


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
