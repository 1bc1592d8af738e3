"""YOLO's archives: `data.yaml`, folders of pictures, and a text file of boxes for each picture.

A line is `class x y width height`: the centre and size of a box as shares of the picture. A picture
without a text file has no objects. Source: the layout of the Ultralytics tools, as documented.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import annotations, archives, conversion, folders
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.problems import Problems
from workers.distill.data.formats.upload import Upload

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
LAYOUT = (
    "a 'yolo' archive has a file data.yaml with names, train and val, pictures in images/train and "
    "images/val (or train/images and so on), and a text file for each of them in labels/train"
)
KEYS = {"train": "train", "val": "validation", "test": "test"}
IMAGES, LABELS = "images", "labels"
LARGEST_SHARE = 1.001
"""Shares above it are no shares; programs that write them round a little."""
NO_LABELS = frozenset({folders.CLASSES_FILE})
"""Text files beside labels that hold none."""


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, _task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive in YOLO's layout and write it as a prepared data set."""
    root = upload.root
    top, file = find(upload)
    where = str(file.relative_to(root))
    described = _described(file, root)
    classes = _classes(described, where)
    problems = Problems()
    reader = annotations.BoxReader(len(classes), problems)
    places = {
        split: _places(described.get(key), key, top, where)
        for key, split in KEYS.items()
        if described.get(key)
    }
    if "train" not in places:
        raise errors.UploadRefused("no_images", f"{where} needs 'train': a folder of pictures")
    given = {
        split: [one for place in found for one in _pictures(place, top, root, reader)]
        for split, found in places.items()
    }
    return annotations.write_boxes(
        folder,
        given,
        root,
        problems,
        classes=classes,
        hints=hints,
        notes=[*upload.notes, *reader.notes()],
    )


def find(upload: Upload) -> tuple[Path, Path]:
    """Return the top folder of an upload, and its `data.yaml`."""
    top = folders.descend(upload.root, lambda place: _yaml(place) is not None)
    file = None if top is None else _yaml(top)
    if top is None or file is None:
        raise errors.UploadRefused("unsupported_format", LAYOUT)
    return top, file


def _yaml(place: Path) -> Path | None:
    return next((place / name for name in YAML_FILES if (place / name).is_file()), None)


def _described(file: Path, root: Path) -> dict[str, Any]:  # Any: YAML that is checked below
    name = file.relative_to(root)
    try:
        content = yaml.safe_load(folders.read_text(file, root))
    # Deep nesting ends the reader with RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise errors.UploadRefused("unreadable", f"{name} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise errors.UploadRefused("bad_labels", f"{name} needs the keys names, train and val")
    return content


def _classes(described: dict[str, Any], where: str) -> list[str]:
    """Return the names of classes, which are given as a list, or by number."""
    names, count = described.get("names"), described.get("nc")
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise errors.UploadRefused(
                "bad_labels",
                f"{where}: names should have the keys 0 to {len(names) - 1}, got "
                f"{', '.join(map(str, list(names)[:6]))}",
            )
        by_number = {int(number): name for number, name in names.items()}
        names = [by_number[number] for number in range(len(by_number))]
    if not isinstance(names, list) or not all(type(one) in (str, int) for one in names):
        raise errors.UploadRefused(
            "bad_labels",
            f"{where}: names should be a list of names, or names by number; YAML takes words such "
            "as no for more than text: put them into quotes",
        )
    if count is not None and count != len(names):
        raise errors.UploadRefused(
            "bad_labels", f"{where}: nc says {count} classes, names has {len(names)}"
        )
    return folders.checked_classes([str(name).strip() for name in names], f"{where}: names")


def _places(given: Any, key: str, top: Path, where: str) -> list[Path]:  # Any: YAML
    """Return the folders that `train`, `val` or `test` names.

    Such paths are often those of another machine, or begin with `..`: what counts is the longest
    end of a path that is a folder below `data.yaml`.
    """
    paths = given if isinstance(given, list) else [given]
    found = []
    for path in paths:
        if not isinstance(path, str):
            raise errors.UploadRefused("bad_labels", f"{where}: {key} should be a folder")
        parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part != ".."]
        ends = [top.joinpath(*parts[start:]) for start in range(len(parts))]
        inside = [end for end in ends if end.is_relative_to(top) and end.is_dir()]
        if not inside:
            raise errors.UploadRefused(
                "no_images",
                f"{where}: {key} says {path[:80]!r}, but the archive has no such folder beside it",
            )
        found.append(inside[0])
    return found


def _pictures(
    place: Path, top: Path, root: Path, reader: annotations.BoxReader
) -> list[annotations.BoxedPicture]:
    """Return the pictures of a folder with their boxes."""
    files = folders.pictures(place)
    texts = {file: _label_file(file, top) for file in files}
    _add_strays(place, top, root, set(texts.values()), reader.problems)
    given = []
    for file, text in texts.items():
        picture = annotations.find_picture(file, root, reader.problems)
        if picture is not None:
            rows = _rows(text, root, picture, reader) if text.is_file() else []
            given.append(annotations.BoxedPicture(picture, annotations.table(rows)))
    return given


def _label_file(picture: Path, top: Path) -> Path:
    """Return where the boxes of a picture are: in `labels` where its path has `images`."""
    parts = list(picture.relative_to(top).with_suffix(".txt").parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == IMAGES:
            parts[index] = LABELS
            break
    return top.joinpath(*parts)


def _add_strays(
    place: Path, top: Path, root: Path, expected: set[Path], problems: Problems
) -> None:
    """Add the text files of boxes that belong to no picture."""
    beside = _label_file(place / "x", top).parent
    if not beside.is_dir():
        return
    for file in sorted(folders.files(beside)):
        if file.suffix == ".txt" and file.name not in NO_LABELS and file not in expected:
            problems.add("bad_labels", f"{file.relative_to(root)}: there is no picture for it")


def _rows(
    file: Path, root: Path, picture: annotations.FoundPicture, reader: annotations.BoxReader
) -> list[list[float]]:
    try:
        lines = folders.read_text(file, root).split("\n")
    except errors.UploadRefused as refusal:
        reader.problems.add_refusal(refusal)
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _row(line.split(), f"{file.relative_to(root)}, line {number}", picture, reader)
            if row is not None:
                rows.append(row)
    return rows


def _row(
    words: list[str],
    where: str,
    picture: annotations.FoundPicture,
    reader: annotations.BoxReader,
) -> list[float] | None:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != 5:
        fault = (
            "a line is 'class x y width height', five numbers, got "
            f"{len(words)}: {' '.join(words)[:80]}"
        )
    elif values[0] not in range(reader.classes):
        fault = f"there is no class {words[0][:20]}: they are 0 to {reader.classes - 1}"
    elif min(values[1:3]) < 0 or max(values[1:]) > LARGEST_SHARE:
        fault = (
            "the centre and size of a box are shares of the picture, 0 to 1, got "
            f"{' '.join(words[1:])[:80]}"
        )
    else:
        fault = ""
    if fault:
        reader.problems.add("bad_labels", f"{where}: {fault}")
        return None
    number, x, y, width, height = values
    corners = (
        (x - width / 2) * picture.width,
        (y - height / 2) * picture.height,
        (x + width / 2) * picture.width,
        (y + height / 2) * picture.height,
    )
    return reader.row(where, int(number), corners, picture)


FORMAT = Format(
    name="yolo",
    title="YOLO: data.yaml, pictures, and a text file of boxes for each",
    description=(
        "`data.yaml` has `names`, as a list or by number, and the folders of pictures `train`, "
        "`val` and `test`, such as `images/train`. The boxes of `images/train/1.jpg` are in "
        "`1.txt` in `labels/train`, one a line: `class x y width height`, the centre and size as "
        "shares of the picture. A picture without such a file has no objects. "
        "Polygons and turned boxes are not read. Splits that are missing are taken from "
        "training. All pictures become `input.height` x `input.width`, or their largest sides, at "
        "most 640: they are scaled to fit and padded."
    ),
    tasks=("detection",),
    suffixes=archives.SUFFIXES,
    recognise=find,
    convert=convert,
)
