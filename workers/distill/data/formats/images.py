"""Archives of pictures of which none, or only some, have a class.

Classes come from a table, as in the format csv, or else from class folders beside a folder that is
named `unlabelled`, as in the format imagefolder. Without either no picture has one, and the classes
are those of a job's teacher.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import (
    archives,
    class_tree,
    classified,
    conversion,
    csv_table,
    folders,
)
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.classified import LabelledPicture
from workers.distill.data.formats.upload import Upload

Given = Mapping[str, Sequence[LabelledPicture]]


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive of pictures and write it as a prepared data set."""
    root = upload.root
    pictures = folders.pictures(root)
    if not pictures:
        raise class_tree.without_pictures(class_tree.scan(root))
    classes, labelled, notes = _labelled(upload)
    used = {one.file for split in labelled.values() for one in split}
    given = {name: list(split) for name, split in labelled.items()}
    held_back = 0
    for file in pictures:
        if file in used:
            continue
        split = _split_of(file, root)
        if split != "train" and labelled:
            held_back += 1
            continue
        given.setdefault(split, []).append(LabelledPicture(file, dataset.UNLABELLED))
    if held_back:
        notes.append(
            f"{held_back} pictures of validation and test without a label were left out: students "
            "are scored by the others"
        )
    if "train" not in given:
        raise errors.UploadRefused(
            "no_images", "all pictures lie in folders of validation and test; none is to train on"
        )
    return classified.write(
        folder,
        given,
        root,
        classes=classes,
        hints=hints,
        notes=[*upload.notes, *notes],
        task=task,
    )


def _labelled(upload: Upload) -> tuple[list[str], Given, list[str]]:
    """Return the classes, the pictures that have one by split, and notes; nothing if none has."""
    root = upload.root
    if any(file.suffix.lower() in csv_table.SUFFIXES for file in folders.files(root)):
        found = csv_table.read(upload)
        return found.classes, found.given, found.notes
    names = {part for file in folders.pictures(root) for part in _folders(file, root)}
    if not any(folders.split_of(name) == folders.UNLABELLED for name in names):
        return [], {}, ["no picture has a label: there is no table, and no folder `unlabelled`"]
    tree = class_tree.find(root)
    return tree.classes, tree.given, tree.others


def _split_of(file: Path, root: Path) -> str:
    """Return the split that a folder above a picture is named for, else `train`."""
    for name in _folders(file, root):
        split = folders.split_of(name)
        if split not in (None, folders.UNLABELLED):
            return str(split)
    return "train"


def _folders(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts[:-1]


def _refuse(upload: Upload) -> None:
    """Refuse: any archive of pictures has this layout, so only its owner can choose it."""
    count = len(folders.pictures(upload.root))
    raise errors.UploadRefused(
        "unsupported_format",
        f"the archive has {count} pictures; register it again with the format images if they have "
        "no classes, or only some have one, which no archive tells by itself",
    )


FORMAT = Format(
    name="images",
    title="an archive of pictures without classes, or with classes for some",
    description=(
        "Pictures in any folders. A table (`.csv`, `.tsv`) as in `csv` may give the classes of "
        "some; or class folders as in `imagefolder` lie beside a folder `unlabelled`. All others "
        "are training images without a label. Where no picture has one, folders named for splits "
        "are splits, those that are missing are drawn at random, and students are scored by how "
        "often they agree with their teacher. It must be asked for by name."
    ),
    tasks=("classification",),
    suffixes=archives.SUFFIXES,
    recognise=_refuse,
    convert=convert,
)
