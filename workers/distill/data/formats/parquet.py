"""Parquet files of a data set of the Hugging Face Hub: a column of pictures, a column of labels.

A file alone, or an archive of files named for splits (`data/train-00000-of-00002.parquet`). A cell
of the column of pictures holds a file's bytes, as the library `datasets` writes it; names of
classes stand in the metadata that it writes as well.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, classified, conversion, folders
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload

if TYPE_CHECKING:  # imported where a file is opened: it starts a thread, which no fork survives
    import pyarrow.parquet as pq

LAYOUT = (
    "a 'parquet' upload is a Parquet file, or an archive of some, with a column 'image' of encoded "
    "pictures and a column 'label'"
)
MAGIC = b"PAR1"
_IMAGES = ("image", "img", "images", "picture", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "class", "target", "category")
_ROWS = 256
"""Rows that are in memory at a time."""


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Read Parquet files and write them as a prepared data set."""
    files = find(upload)
    notes = list(upload.notes)
    pictures = upload.scratch / "pictures"
    labels: dict[str, list[tuple[Path, Any]]] = {}  # Any: numbers or names
    names: list[str] | None = None
    written = 0
    for split, parts in files.items():
        for part in parts:
            table, image, label = _open(part)
            names = names or _names(table, label)
            aside = [name for name in table.schema_arrow.names if name not in (image, label)]
            note = f"columns that are not needed were left out: {', '.join(aside)}"
            if aside and note not in notes:
                notes.append(note)
            place = pictures / split
            place.mkdir(parents=True, exist_ok=True)
            for content, value in _rows(part, table, image, label):
                written += len(content)
                if written > archives.Limits().total_bytes:
                    raise errors.UploadRefused(
                        "too_large", f"its pictures have more than {written} bytes"
                    )
                held = labels.setdefault(split, [])
                # By the row, since rows need not name their pictures.
                file = place / f"{part.stem}, row {len(held)}"
                file.write_bytes(content)
                held.append((file, value))
    unlabelled = [split for split, held in labels.items() if all(v in (None, -1) for _, v in held)]
    for split in unlabelled:
        notes.append(f"the {split} split was left out: its pictures have no labels")
        del labels[split]
    if "train" not in labels:
        message = "the files have no training pictures with a label"
        raise errors.UploadRefused("no_images", "; ".join([message, *notes]))
    classes, numbers = _numbers(labels, names)
    return classified.write(
        folder,
        {
            split: [classified.LabelledPicture(file, numbers[value]) for file, value in held]
            for split, held in labels.items()
        },
        pictures,
        classes=classes,
        hints=hints,
        notes=notes,
        task=task,
    )


def find(upload: Upload) -> dict[str, list[Path]]:
    """Return the files of each split; raises `UploadRefused` where there is none."""
    if upload.starts_with(MAGIC):
        return {"train": [upload.path]}
    found: dict[str, list[Path]] = {}
    if upload.is_archive:
        for file in sorted(folders.files(upload.root)):
            if file.suffix.lower() != ".parquet":
                continue
            places = (file.stem.split("-")[0], file.stem, file.parent.name)
            split = next((split for place in places if (split := folders.split_of(place))), "train")
            found.setdefault(split, []).append(file)
    if not found:
        raise errors.UploadRefused("unsupported_format", LAYOUT)
    return found


def _open(file: Path) -> "tuple[pq.ParquetFile, str, str]":
    """Return a file with the names of its columns of pictures and of labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    image, label = (
        next((name for name in wanted if name in names), None) for wanted in (_IMAGES, _LABELS)
    )
    if image is None or label is None:
        raise errors.UploadRefused(
            "unsupported_format", f"{file.name} has the columns {', '.join(names)}; {LAYOUT}"
        )
    return table, image, label


def _rows(
    file: Path, table: "pq.ParquetFile", image: str, label: str
) -> Iterator[tuple[bytes, Any]]:  # Any: numbers or names
    import pyarrow as pa

    try:
        for batch in table.iter_batches(batch_size=_ROWS, columns=[image, label]):
            for picture, value in zip(
                batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True
            ):
                content = picture.get("bytes") if isinstance(picture, dict) else picture
                if not isinstance(content, bytes):
                    raise errors.UploadRefused(
                        "unsupported_format",
                        f"{file.name}: a cell of {image!r} holds no encoded picture, but "
                        f"{str(picture)[:80]}; embed the files, by Dataset.to_parquet",
                    )
                if not isinstance(value, int | str) and value is not None:
                    raise errors.UploadRefused(
                        "bad_labels",
                        f"{file.name}: {label!r} holds {str(value)[:80]}; give a number or a name",
                    )
                yield content, value
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _names(table: "pq.ParquetFile", label: str) -> list[str] | None:
    """Return the names of classes that the library `datasets` wrote beside a file's columns."""
    metadata = table.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        return None  # They are optional, and the numbers of classes do as well.
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return folders.checked_classes(names, f"the names of {label!r}") if are_names else None


def _numbers(
    labels: Mapping[str, list[tuple[Path, Any]]],
    names: list[str] | None,  # Any: numbers or names
) -> tuple[list[str], dict[Any, int]]:
    """Return the names of classes, and the number of each label."""
    found = {value for held in labels.values() for _, value in held}
    kinds = {type(value) for value in found}
    if len(kinds) != 1:
        raise errors.UploadRefused(
            "bad_labels", "labels are numbers in some rows, and names or nothing in others"
        )
    if kinds == {str}:
        names = names or sorted(found)
        unknown = found - set(names)
        numbers = {name: number for number, name in enumerate(names)}
    else:
        highest = max(found)
        if highest >= conversion.MOST_CLASSES:
            raise errors.UploadRefused("bad_labels", f"the highest label is {highest}")
        names = names or [str(number) for number in range(highest + 1)]
        unknown = found - set(range(len(names)))
        numbers = {number: number for number in found}
    if unknown:
        raise errors.UploadRefused(
            "bad_labels", f"the label {min(unknown)!r} is none of the {len(names)} classes"
        )
    if len(names) < 2:
        raise errors.UploadRefused("bad_labels", "there is one class only; it takes two or more")
    return names, numbers


def _unreadable(file: Path, error: Exception) -> errors.UploadRefused:
    return errors.UploadRefused("unreadable", f"{file.name} cannot be read as Parquet: {error}")


FORMAT = Format(
    name="parquet",
    title="Parquet files with columns image and label, as of the Hub",
    description=(
        "A Parquet file, or an archive of files whose names or folders begin with their split "
        "(`data/train-00000-of-00002.parquet`). A column `image` holds encoded pictures, as "
        "`Dataset.to_parquet` and `push_to_hub` of the library `datasets` write them, a column "
        "`label` numbers or names; names of classes are taken from the file. Splits that are "
        "missing are taken from training."
    ),
    tasks=("classification",),
    suffixes=(".parquet", *archives.SUFFIXES),
    recognise=find,
    convert=convert,
)
