"""Archives of pictures with a mask each: PNGs of class numbers, with equal names.

A mask is grey, or has a palette; of a palette the numbers count, never the colours.
"""

from pathlib import Path

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import annotations, archives, conversion, folders
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.problems import Problems
from workers.distill.data.formats.upload import Upload

LAYOUT = (
    "a 'masks' archive has folders images and masks, in each of which lie train, val and test, or "
    "the files themselves, and a file classes.txt with the name of class 0, 1, ... in each line"
)


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, _task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive of pictures and masks and write it as a prepared data set."""
    root = upload.root
    top = find(upload)
    classes = folders.read_classes(top / folders.CLASSES_FILE, root)
    folders.check_mask_classes(len(classes), folders.CLASSES_FILE)
    problems = Problems()
    places = folders.by_split(top / "images") or {"train": top / "images"}
    masks = folders.by_split(top / "masks") or {"train": top / "masks"}
    if set(places) != set(masks):
        raise errors.UploadRefused(
            "bad_labels",
            f"images has the splits {', '.join(sorted(places))}, masks has "
            f"{', '.join(sorted(masks))}",
        )
    given = {
        split: pairs(place, masks[split], root, problems, classes=len(classes))
        for split, place in places.items()
    }
    return annotations.write_masks(
        folder, given, root, problems, classes=classes, hints=hints, notes=upload.notes
    )


def find(upload: Upload) -> Path:
    """Return the top folder of an upload, which has pictures, masks and a list of classes."""
    top = folders.descend(upload.root, lambda place: (place / "masks").is_dir())
    if top is None or not (top / "images").is_dir() or not (top / folders.CLASSES_FILE).is_file():
        raise errors.UploadRefused("unsupported_format", LAYOUT)
    return top


def pairs(
    images: Path, masks: Path, root: Path, problems: Problems, *, classes: int
) -> list[annotations.MaskedPicture]:
    """Return the pictures of a folder with the masks of the same name in another.

    Adds what is wrong: a picture or mask without the other, two of a name, and all about masks.
    """
    found = _by_name(images, folders.pictures(images), root, problems)
    drawn = _by_name(masks, sorted(file for file in folders.files(masks)), root, problems)
    for name in sorted(drawn.keys() - found.keys()):
        problems.add(
            "bad_labels", f"{drawn[name].relative_to(root)}: there is no picture of that name"
        )
    given = []
    for name, file in sorted(found.items()):
        if name not in drawn:
            problems.add("bad_labels", f"{file.relative_to(root)} has no mask")
            continue
        one = pair(file, drawn[name], root, problems, classes=classes)
        if one is not None:
            given.append(one)
    return given


def pair(
    file: Path, mask: Path, root: Path, problems: Problems, *, classes: int
) -> annotations.MaskedPicture | None:
    """Return a picture with its mask, or None after adding what is wrong with either."""
    values = annotations.check_mask(mask, root, problems, classes=classes)
    picture = annotations.find_picture(
        file,
        root,
        problems,
        annotated_size=None if values is None else values.shape[:2],
        said_by=f"the mask {mask.relative_to(root)}",
    )
    if values is None or picture is None:
        return None
    return annotations.MaskedPicture(picture, mask)


def _by_name(place: Path, files: list[Path], root: Path, problems: Problems) -> dict[str, Path]:
    """Return files by their path below a folder, without suffix; adds those that are two."""
    found: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(place).with_suffix("").as_posix()
        if name in found:
            problems.add(
                "bad_labels",
                f"{file.relative_to(root)} has the name of {found[name].relative_to(root)}",
            )
        else:
            found[name] = file
    return found


FORMAT = Format(
    name="masks",
    title="a zip or tar archive with a mask for each picture",
    description=(
        "Pictures lie in `images/train`, `images/val` and `images/test`, or in `images` alone, and "
        "PNGs of the same name in `masks/train` and so on: `images/train/1.jpg` belongs to "
        "`masks/train/1.png`. A mask is grey or has a palette, and holds the number of each "
        "pixel's class: its place, from 0, in `classes.txt`, which has one name a line; 255 means "
        "no class. A mask has the size of its picture. Splits that are missing are taken from "
        "training. All pictures become `input.height` x `input.width`, or their largest sides, at "
        "most 640: they are scaled to fit and padded."
    ),
    tasks=("segmentation",),
    suffixes=archives.SUFFIXES,
    recognise=find,
    convert=convert,
)
