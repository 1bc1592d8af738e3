"""COCO's detection archives: `annotations/instances_train.json`, and folders of pictures.

Ids of categories are any numbers (COCO has 1 to 90 for 80 classes); classes are their order.
Source: Lin et al., arXiv 1405.0312; the layout of the published data set.
"""

import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import boxes, dataset
from workers.distill.data.formats import annotations, archives, conversion, folders
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.problems import Problems
from workers.distill.data.formats.upload import Upload

LAYOUT = (
    "a 'coco' archive has a folder annotations with instances_train.json (and instances_val.json, "
    "instances_test.json), and pictures in train, val and test, or in images"
)
PREFIX = "instances_"
STEM = re.compile(rf"(?:{PREFIX})?(?P<split>{'|'.join(folders.SPLIT_NAMES)})\d*")


@dataclass(frozen=True)
class Instances:
    """One file of annotations, whose three lists are there but not checked."""

    name: str
    folders: tuple[Path, ...]
    """Where its pictures may lie, the likeliest first."""
    images: list[Any]  # Any: JSON that is checked where it is read
    annotations: list[Any]
    categories: list[Any]


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, _task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive in COCO's layout and write it as a prepared data set."""
    root = upload.root
    top, files = find(upload)
    read = {split: _read(file, top, root) for split, file in files.items()}
    names = _categories(read)
    numbers = {category: number for number, category in enumerate(names)}
    problems = Problems()
    reader = annotations.BoxReader(len(names), problems)
    given = {split: _pictures(part, numbers, root, reader) for split, part in read.items()}
    notes = [*upload.notes, *reader.notes()]
    if list(names) != list(range(len(names))):
        ids = ", ".join(str(category) for category in names)
        notes.insert(0, f"classes 0 to {len(names) - 1} are the category ids {ids} of the upload")
    return annotations.write_boxes(
        folder, given, root, problems, classes=list(names.values()), hints=hints, notes=notes
    )


def find(upload: Upload) -> tuple[Path, dict[str, Path]]:
    """Return the top folder of an upload, and the annotations of each split."""
    top = folders.descend(upload.root, lambda place: (place / "annotations").is_dir())
    files = {} if top is None else _annotation_files(top / "annotations")
    if top is None or not files:
        raise errors.UploadRefused("unsupported_format", LAYOUT)
    return top, files


def _annotation_files(place: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(place.glob("*.json")):
        matched = STEM.fullmatch(file.stem.lower())
        if matched is None:
            continue
        split = folders.SPLIT_NAMES[matched["split"]]
        if split in found:
            raise errors.UploadRefused(
                "bad_labels", f"{found[split].name!r} and {file.name!r} are the same split"
            )
        found[split] = file
    return found


def _read(file: Path, top: Path, root: Path) -> Instances:
    """Return a file's lists; raises `UploadRefused` unless it is JSON with all three."""
    name = str(file.relative_to(root))
    try:
        content = json.loads(file.read_bytes())
    # Deep nesting ends the JSON reader with RecursionError.
    except (ValueError, RecursionError) as error:
        raise errors.UploadRefused("unreadable", f"{name} is not JSON: {error}") from error
    lists: list[Any] = [  # of JSON
        content.get(key) if isinstance(content, dict) else None
        for key in ("images", "annotations", "categories")
    ]
    if not all(isinstance(part, list) for part in lists):
        raise errors.UploadRefused(
            "bad_labels", f"{name} needs the lists 'images', 'annotations' and 'categories'"
        )
    label = file.stem.lower().removeprefix(PREFIX)
    labels = dict.fromkeys((label, label.rstrip(string.digits)))
    places = [top / part / label for label in labels for part in ("", "images")]
    return Instances(name, (*places, top / "images", top), *lists)


def _categories(read: dict[str, Instances]) -> dict[int, str]:
    """Return names by category id, in the order of ids, which is that of classes.

    Raises `UploadRefused` unless all files have the same.
    """
    found = {split: dict(sorted(_category_names(part))) for split, part in read.items()}
    first = next(iter(found))
    for split, names in found.items():
        where = read[split].name
        if len(names) != len(read[split].categories):
            raise errors.UploadRefused("bad_labels", f"{where}: two categories have the same id")
        folders.checked_classes(list(names.values()), f"{where}: categories")
        if names != found[first]:
            raise errors.UploadRefused(
                "bad_labels",
                f"{where} has other categories than {read[first].name}: give all splits the same "
                "ids and names",
            )
    return found[first]


def _category_names(part: Instances) -> Iterator[tuple[int, str]]:
    for category in part.categories:
        key, name = (_field(category, field) for field in ("id", "name"))
        if not _is_whole(key) or not isinstance(name, str):
            raise errors.UploadRefused(
                "bad_labels",
                f"{part.name}: a category needs a whole number 'id' and a text 'name', got "
                f"{str(category)[:80]}",
            )
        yield key, name


def _pictures(
    part: Instances, numbers: dict[int, int], root: Path, reader: annotations.BoxReader
) -> list[annotations.BoxedPicture]:
    """Return the pictures of a file with their boxes, in its order."""
    found: dict[int | str, annotations.FoundPicture | None] = {}
    used: dict[Path, Any] = {}  # Any: an image's id
    for image in part.images:
        key = _field(image, "id")
        where = f"{part.name}: image {str(key)[:80]}"
        if not (_is_whole(key) or isinstance(key, str)):
            reader.problems.add("bad_labels", f"{part.name}: an image has no 'id'")
        elif key in found:
            reader.problems.add("bad_labels", f"{where} is there twice")
        else:
            found[key] = _picture(part, image, where, root, used, reader.problems)
    rows: dict[int | str, list[list[float]]] = {key: [] for key in found}
    for annotation in part.annotations:
        row = _row(part, annotation, found, numbers, reader)
        if row is not None:
            rows[annotation["image_id"]].append(row)
    return [
        annotations.BoxedPicture(picture, annotations.table(rows[key]))
        for key, picture in found.items()
        if picture is not None
    ]


def _picture(
    part: Instances,
    image: Any,  # Any: JSON
    where: str,
    root: Path,
    used: dict[Path, Any],
    problems: Problems,
) -> annotations.FoundPicture | None:
    name, height, width = (_field(image, key) for key in ("file_name", "height", "width"))
    if not isinstance(name, str) or not name:
        problems.add("bad_labels", f"{where} has no 'file_name'")
        return None
    if not (_is_whole(height) and _is_whole(width) and height > 0 and width > 0):
        problems.add(
            "bad_labels", f"{where} ({name}) needs a 'height' and a 'width' above 0, in pixels"
        )
        return None
    candidates = [folders.below(place, name) for place in part.folders]
    file = next((place for place in candidates if place is not None and place.is_file()), None)
    if file is None:
        problems.add("bad_labels", f"{where}: the archive has no picture {name!r}")
        return None
    if file in used:
        problems.add("bad_labels", f"{where} has the picture {name!r} of image {used[file]}")
        return None
    used[file] = _field(image, "id")
    return annotations.find_picture(
        file, root, problems, annotated_size=(height, width), said_by=part.name
    )


def _row(
    part: Instances,
    annotation: Any,  # Any: JSON
    found: dict[int | str, annotations.FoundPicture | None],
    numbers: dict[int, int],
    reader: annotations.BoxReader,
) -> list[float] | None:
    """Return the row of one annotation; None where it is dropped, refused, or without picture."""
    where = f"{part.name}: annotation {str(_field(annotation, 'id'))[:80]}"
    image, category, box = (_field(annotation, key) for key in ("image_id", "category_id", "bbox"))
    area, crowd = _field(annotation, "area"), _field(annotation, "iscrowd")
    fault = None
    if not (_is_whole(image) or isinstance(image, str)) or image not in found:
        fault = f"there is no image {str(image)[:80]}"
    elif not _is_whole(category) or category not in numbers:
        fault = f"there is no category {str(category)[:80]}"
    elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        fault = f"'bbox' should be [x, y, width, height] in pixels, got {str(box)[:80]}"
    elif area is not None and not _is_number(area):
        fault = f"'area' should be a number of pixels, got {str(area)[:80]}"
    elif crowd not in (None, 0, 1):
        fault = f"'iscrowd' should be 0 or 1, got {str(crowd)[:80]}"
    if fault is not None:
        reader.problems.add("bad_labels", f"{where}: {fault}")
        return None
    picture = found[image]
    if picture is None:
        return None
    x, y, width, height = map(float, box)
    return reader.row(
        where,
        numbers[category],
        (x, y, x + width, y + height),
        picture,
        area=None if area is None else float(area),
        flag=boxes.CROWD if crowd else boxes.ORDINARY,
    )


def _field(entry: Any, key: str) -> Any:  # Any: JSON
    return entry.get(key) if isinstance(entry, dict) else None


def _is_whole(value: Any) -> bool:  # Any: JSON
    return type(value) is int


def _is_number(value: Any) -> bool:  # Any: JSON
    # Larger whole numbers are none that a float holds.
    return type(value) is float or (type(value) is int and abs(value) < 2**53)


FORMAT = Format(
    name="coco",
    title="COCO: annotations in instances_train.json, and pictures",
    description=(
        "`annotations` holds `instances_train.json`, `instances_val.json` and "
        "`instances_test.json` (a year may follow, as in `instances_train2017.json`), and pictures "
        "lie in `train`, `val` and `test`, with the year or without, or in `images`. Category ids "
        "may be any numbers: classes are numbered in their order, and the notes of the data set "
        "list the ids. Boxes with `iscrowd` 1 are not trained on. Boxes are clipped to their "
        "pictures, and dropped with a side under 1 pixel; `area` is measured where it is left out. "
        "Splits that are missing are taken from training. All pictures become `input.height` x "
        "`input.width`, or their largest sides, at most 640: they are scaled to fit and padded."
    ),
    tasks=("detection",),
    suffixes=archives.SUFFIXES,
    recognise=find,
    convert=convert,
)
