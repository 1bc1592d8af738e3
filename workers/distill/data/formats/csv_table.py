"""Pictures in folders, and a table that gives the class of each, as in Kaggle's competitions.

A table is a CSV or TSV file. One of its columns names pictures, by path or name, with their ending
or without; another one their classes, or several hold 0 and 1, one 1 in each row. Tables may be
named for splits (`train.csv`, `test.csv`), or have a column of splits.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, classified, conversion, folders
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload

LAYOUT = (
    "a 'csv' archive has pictures, and a table (.csv or .tsv) with a column of their names and a "
    "column of their classes, called label or class"
)
SUFFIXES = (".csv", ".tsv")
_LABELS = (
    "label",
    "labels",
    "class",
    "class_name",
    "classname",
    "category",
    "target",
    "species",
    "breed",
    "diagnosis",
    "dx",
    "class_id",
    "classid",
    "label_name",
)
"""Names of columns of classes, the likeliest first."""
_SPLITS = ("split", "set", "subset", "fold", "partition", "usage")
_SHARE = 0.5
"""Rows that must name a picture for a column to be the one of pictures."""
MOST_LISTED = 6


@dataclass(frozen=True)
class Table:
    """A table whose rows name pictures of the archive."""

    file: Path
    rows: list[dict[str, str]]
    pictures: str
    """The column of pictures."""
    label: str | None
    """The column of classes; None where there is none, or where they are `one_hot`."""
    one_hot: tuple[str, ...]
    split: str | None
    """The column of splits."""


class Pictures:
    """The pictures of an archive, found by what a table calls them."""

    def __init__(self, root: Path) -> None:
        """Look for pictures below a folder."""
        self.files = folders.pictures(root)
        self._by_name: dict[str, list[Path]] = {}
        for file in self.files:
            path = str(file)[len(str(root)) + 1 :]
            ending = len(file.suffix)
            # By every end of its path, with its ending and without. Text, not paths: there may be
            # a million.
            start = 0
            while True:
                self._by_name.setdefault(path[start:], []).append(file)
                self._by_name.setdefault(path[start:-ending], []).append(file)
                start = path.find("/", start) + 1
                if not start:
                    break

    def find(self, name: str, split: str | None = None) -> Path | None:
        """Return the only picture of a name, of several the only one in a folder of the split."""
        found = self._by_name.get(name.strip().replace("\\", "/").removeprefix("./"), [])
        if len(found) > 1 and split is not None:
            found = [
                file
                for file in found
                if any(folders.split_of(part) == split for part in file.parts[:-1])
            ]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Labelled:
    """What the tables of an archive say of its pictures."""

    classes: list[str]
    given: dict[str, list[classified.LabelledPicture]]
    """Pictures with a class, by split."""
    without: list[Path]
    """Pictures that have a class in no table."""
    notes: list[str]


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive of pictures with a table and write it as a prepared data set."""
    found = read(upload)
    notes = list(found.notes)
    if found.without:
        notes.append(
            f"{len(found.without)} pictures have no class in any table and were left out; "
            "register the upload again with the format images to keep them without a label"
        )
    return classified.write(
        folder,
        found.given,
        upload.root,
        classes=found.classes,
        hints=hints,
        notes=[*upload.notes, *notes],
        task=task,
    )


def read(upload: Upload) -> Labelled:
    """Return the classes of an archive's pictures; raises `UploadRefused` where tables give none.

    There are at least two classes, and training pictures.
    """
    root = upload.root
    pictures = Pictures(root)
    tables, notes = find(upload, pictures)
    labelled: dict[str, dict[Path, str]] = {}
    missing: list[str] = []
    for table in tables:
        named = folders.split_of(table.file.stem) or "train"
        for row in table.rows:
            split = named
            if table.split is not None:
                split = folders.split_of(row[table.split]) or named
            file = pictures.find(row[table.pictures], split)
            label = _label(table, row)
            if file is None:
                missing.append(f"{table.file.name}: {row[table.pictures]!r}")
            elif label:
                _add(labelled.setdefault(split, {}), file, label, table)
    classes = _ordered({label for files in labelled.values() for label in files.values()})
    if len(classes) < 2:
        raise errors.UploadRefused("bad_labels", "the tables give fewer than two classes")
    if missing:
        some = ", ".join(missing[:MOST_LISTED])
        notes.append(f"{len(missing)} rows of tables name no picture and were left out: {some}")
    numbers = {name: number for number, name in enumerate(classes)}
    if "train" not in labelled:
        raise errors.UploadRefused("no_images", "no table gives classes of training pictures")
    used = {file for files in labelled.values() for file in files}
    return Labelled(
        classes,
        {
            split: [
                classified.LabelledPicture(file, numbers[label])
                for file, label in sorted(files.items())
            ]
            for split, files in labelled.items()
        },
        [file for file in pictures.files if file not in used],
        notes,
    )


def find(upload: Upload, pictures: Pictures | None = None) -> tuple[list[Table], list[str]]:
    """Return the tables that give classes of pictures, and notes about what was chosen.

    Raises `UploadRefused` where there is none.
    """
    root = upload.root
    files = sorted(file for file in folders.files(root) if file.suffix.lower() in SUFFIXES)
    if not files:
        raise errors.UploadRefused("unsupported_format", LAYOUT)
    pictures = pictures or Pictures(root)
    tables: list[Table] = []
    notes: list[str] = []
    faults: list[str] = []
    for file in files:
        name = str(file.relative_to(root))
        table = None
        if "submission" not in file.stem.lower():
            table = _read(file, root, pictures, faults)
        if table is None:
            notes.append(f"the table {name!r} was left out: it gives no classes of pictures")
            continue
        tables.append(table)
        what = f"column {table.label!r}" if table.label else f"columns {', '.join(table.one_hot)}"
        by_split = f", splits from column {table.split!r}" if table.split else ""
        notes.append(f"classes were read from {name!r}, {what}{by_split}")
    if not tables:
        raise errors.UploadRefused("unsupported_format", "; ".join([LAYOUT, *faults]))
    return tables, notes


def _read(file: Path, root: Path, pictures: Pictures, faults: list[str]) -> Table | None:
    """Return a table, or None where its rows name no pictures or no classes."""
    text = folders.read_text(file, root)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
        rows = [{key: value for key, value in row.items() if key} for row in reader]
    except csv.Error as error:
        faults.append(f"{file.name} is no table: {error}")
        return None
    columns = [column for column in reader.fieldnames or () if column]
    if not rows or not columns:
        return None
    place = folders.split_of(file.stem) or "train"
    counts = {
        column: len({pictures.find(row[column], place) for row in rows} - {None})
        for column in columns
    }
    named = max(columns, key=lambda column: counts[column])
    if counts[named] < _SHARE * len(rows):
        return None
    others = [column for column in columns if column != named]
    split = next((column for column in others if column.lower() in _SPLITS), None)
    if split is not None and not all(folders.split_of(row[split]) for row in rows):
        split = None
    others = [column for column in others if column != split]
    label = _label_column(others, rows)
    one_hot = () if label else _one_hot(others, rows)
    if label is None and not one_hot:
        if others:
            faults.append(
                f"{file.name} has no column called label or class, but {', '.join(others[:6])}: "
                "give the column of classes one of these names"
            )
        return None
    return Table(file, rows, named, label, one_hot, split)


def _label_column(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str | None:
    """Return the column of classes: by its name, or since it is the only one besides numbers."""
    plain = {re.sub(r"[\s-]+", "_", column.strip().lower()): column for column in columns}
    for name in _LABELS:
        if name in plain:
            return plain[name]
    counts = {column: Counter(row[column] for row in rows) for column in columns}
    repeated = [column for column in columns if 2 <= len(counts[column]) <= len(rows) // 2]
    return repeated[0] if len(columns) == 1 and repeated else None


def _one_hot(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the columns of 0 and 1 that have one 1 in each row, or none."""

    def is_binary(column: str) -> bool:
        return all(row[column].strip() in ("0", "1", "0.0", "1.0") for row in rows)

    found = [column for column in columns if is_binary(column)]
    are_single = all(
        sum(row[column].strip().startswith("1") for column in found) == 1 for row in rows
    )
    return tuple(found) if len(found) > 1 and are_single else ()


def _label(table: Table, row: Mapping[str, str]) -> str:
    if table.label is not None:
        return row[table.label].strip()
    return next(column for column in table.one_hot if row[column].strip().startswith("1"))


def _add(files: dict[Path, str], file: Path, label: str, table: Table) -> None:
    if files.setdefault(file, label) != label:
        raise errors.UploadRefused(
            "bad_labels",
            f"{table.file.name}: the picture {file.name} has the classes {files[file]!r} and "
            f"{label!r}; each needs exactly one",
        )


def _ordered(names: set[str]) -> list[str]:
    """Return names in order: numbers by their value."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


FORMAT = Format(
    name="csv",
    title="an archive of pictures, and a table of their classes",
    description=(
        "Pictures in any folders, and one or more tables (`.csv`, `.tsv`) whose first line names "
        "columns: one has the pictures, by path or name, with their ending or without; one is "
        "called `label`, `class` or the like, or is the only other one; or several hold 0 and 1. "
        "Tables called `train`, `val` and `test`, or a column `split`, give splits; those that are "
        "missing are taken from training. Tables without classes, such as a sample submission, and "
        "pictures in no table are left out, which the notes tell; the format `images` keeps them "
        "as images without a label."
    ),
    tasks=("classification",),
    suffixes=archives.SUFFIXES,
    recognise=find,
    convert=convert,
)
