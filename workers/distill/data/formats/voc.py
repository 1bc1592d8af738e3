"""Archives in the layout of PASCAL VOC: `JPEGImages`, `Annotations`, `SegmentationClass`.

Corners of boxes count pixels from 1 and are inclusive; masks are PNGs whose palette is for people
only. Source: Everingham et al., IJCV 2010, and its development kit.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import boxes, dataset
from workers.distill.data.formats import annotations, archives, conversion, folders, masks
from workers.distill.data.formats import pictures as picture_files
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.problems import Problems
from workers.distill.data.formats.upload import Upload

LAYOUT = (
    "a 'voc' archive has folders JPEGImages, ImageSets, and Annotations (detection) or "
    "SegmentationClass (segmentation), at its top or in VOCdevkit/VOC2012 and the like"
)
IMAGES, OBJECTS, MASKS = "JPEGImages", "Annotations", "SegmentationClass"
LISTS = {
    "train": ("train", "trainval"),
    "validation": ("val",),
    "test": ("test",),
}
"""Lists of each split; of several the first that is there."""
SETS = {"detection": "Main", "segmentation": "Segmentation"}


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive in VOC's layout and write it as a prepared data set."""
    root = upload.root
    kit, years = find(upload)
    needed = MASKS if task == "segmentation" else OBJECTS
    for year in years:
        if not (year / needed).is_dir():
            raise errors.UploadRefused(
                "unsupported_format", f"for {task}, {year.relative_to(root)}/{needed} is missing"
            )
    problems = Problems()
    listed = _listed(years, SETS[task], root, problems)
    classes = _given_classes((kit, *years), root)
    write = _write_masks if task == "segmentation" else _write_boxes
    return write(folder, listed, classes, upload, problems, hints)


def find(upload: Upload) -> tuple[Path, list[Path]]:
    """Return the folder that holds the folders of years, and those."""
    kit = folders.descend(upload.root, lambda place: bool(_years(place)))
    if kit is None:
        raise errors.UploadRefused("unsupported_format", LAYOUT)
    return kit, _years(kit)


Listed = dict[str, list[tuple[Path, str]]]
"""For each split, folders of a year with the names of pictures in it."""


def _years(place: Path) -> list[Path]:
    """Return the folders of a year's pictures: this one, or those in it."""
    return [one for one in (place, *folders.subfolders(place)) if (one / IMAGES).is_dir()]


def _listed(years: Sequence[Path], kind: str, root: Path, problems: Problems) -> Listed:
    """Return the names that lists of pictures give to each split; without lists all train."""
    found: Listed = {}
    for year in years:
        for split, names in LISTS.items():
            files = [year / "ImageSets" / kind / f"{name}.txt" for name in names]
            file = next((file for file in files if file.is_file()), None)
            if file is not None:
                lines = folders.read_text(file, root).split("\n")
                # Lists of a single class give 1 or -1 after each name.
                stems = [line.split()[0] for line in lines if line.strip()]
                found.setdefault(split, []).extend((year, stem) for stem in stems)
    if not found:
        found["train"] = [
            (year, file.stem) for year in years for file in folders.pictures(year / IMAGES)
        ]
    if "train" not in found:
        raise errors.UploadRefused(
            "no_images", f"ImageSets/{kind} has no train.txt beside lists of other splits"
        )
    seen: dict[tuple[Path, str], str] = {}
    for split, places in found.items():
        for place in places:
            other = seen.setdefault(place, split)
            if other != split:
                problems.add("bad_labels", f"{place[1]} is in the lists of {other} and of {split}")
        found[split] = list(dict.fromkeys(places))
    return found


def _given_classes(places: Sequence[Path], root: Path) -> list[str] | None:
    for place in places:
        if (place / folders.CLASSES_FILE).is_file():
            return folders.read_classes(place / folders.CLASSES_FILE, root)
    return None


def _find(place: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
    """Return the file of a name that a list gives, or None if there is none in the folder."""
    candidates = [folders.below(place, stem + suffix) for suffix in suffixes]
    return next((file for file in candidates if file is not None and file.is_file()), None)


def _picture_file(year: Path, stem: str, root: Path, problems: Problems) -> Path | None:
    lower = sorted(folders.PICTURE_SUFFIXES)
    file = _find(year / IMAGES, stem, (".jpg", *lower, *(suffix.upper() for suffix in lower)))
    if file is None:
        place = (year / IMAGES).relative_to(root)
        problems.add("bad_labels", f"{place} has no picture {stem!r}, which a list names")
    return file


def _write_boxes(
    folder: Path,
    listed: Listed,
    classes: list[str] | None,
    upload: Upload,
    problems: Problems,
    hints: conversion.InputHints,
) -> dataset.DatasetRecord:
    root = upload.root
    trees = {
        place: _objects(*place, root, problems) for places in listed.values() for place in places
    }
    if classes is None:
        found = {_text(one, "name") for tree in trees.values() for one in _all(tree, "object")}
        classes = sorted(found - {""})
        if not classes:
            problems.refuse()
            raise errors.UploadRefused("bad_labels", f"no file in {OBJECTS} has an object")
    numbers = {name: number for number, name in enumerate(classes)}
    reader = annotations.BoxReader(len(classes), problems)

    def read(year: Path, stem: str) -> annotations.BoxedPicture | None:
        tree, file = trees[year, stem], _picture_file(year, stem, root, problems)
        if tree is None or file is None:
            return None
        where = str((year / OBJECTS / f"{stem}.xml").relative_to(root))
        picture = annotations.find_picture(
            file, root, problems, annotated_size=_size(tree, where, problems), said_by=where
        )
        if picture is None:
            return None
        rows = [
            _row(one, f"{where}: object {index}", numbers, picture, reader)
            for index, one in enumerate(_all(tree, "object"), start=1)
        ]
        kept = [row for row in rows if row is not None]
        return annotations.BoxedPicture(picture, annotations.table(kept))

    given = {split: _read_all(places, read) for split, places in listed.items()}
    return annotations.write_boxes(
        folder,
        given,
        root,
        problems,
        classes=classes,
        hints=hints,
        notes=[*upload.notes, *reader.notes()],
    )


def _read_all(
    places: Sequence[tuple[Path, str]],
    read: Callable[[Path, str], annotations.A | None],
) -> list[annotations.A]:
    found = [read(*place) for place in places]
    return [one for one in found if one is not None]


def _objects(year: Path, stem: str, root: Path, problems: Problems) -> ET.Element | None:
    """Return the annotations of one picture, or None after adding what is wrong with them."""
    file = _find(year / OBJECTS, stem, (".xml",))
    if file is None:
        place = (year / OBJECTS).relative_to(root)
        problems.add("bad_labels", f"{place} has no file for the picture {stem!r}")
        return None
    try:
        text = folders.read_text(file, root)
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ET.ParseError("it declares entities, which annotations do not need")
        return ET.fromstring(text)
    except errors.UploadRefused as refusal:
        problems.add_refusal(refusal)
    except (ET.ParseError, ValueError) as error:
        problems.add("unreadable", f"{file.relative_to(root)} is not readable XML: {error}")
    return None


def _all(tree: ET.Element | None, tag: str) -> list[ET.Element]:
    return [] if tree is None else tree.findall(tag)


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _size(tree: ET.Element, where: str, problems: Problems) -> tuple[int, int] | None:
    """Return height and width of a picture as its annotations give them, if they do."""
    height, width = _text(tree, "size/height"), _text(tree, "size/width")
    if not height and not width:
        return None
    if not (height.isdecimal() and width.isdecimal()):
        problems.add(
            "bad_labels", f"{where}: size should be whole numbers, got {height!r} x {width!r}"
        )
        return None
    # Some tools write zeros where they do not know the size.
    return (int(height), int(width)) if int(height) and int(width) else None


def _row(
    one: ET.Element,
    where: str,
    numbers: dict[str, int],
    picture: annotations.FoundPicture,
    reader: annotations.BoxReader,
) -> list[float] | None:
    name, difficult = _text(one, "name"), _text(one, "difficult")
    if name not in numbers:
        known = f"; {folders.CLASSES_FILE} names {', '.join(list(numbers)[:6])}" if name else ""
        reader.problems.add("bad_labels", f"{where}: there is no class {name!r}{known}")
        return None
    texts = [_text(one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError:
        reader.problems.add(
            "bad_labels", f"{where}: bndbox needs xmin, ymin, xmax and ymax, got {texts}"
        )
        return None
    # Pixels are counted from 1, and the last one belongs to the box: both ends move by one.
    return reader.row(
        where,
        numbers[name],
        (left - 1, top - 1, right, bottom),
        picture,
        flag=boxes.DIFFICULT if difficult == "1" else boxes.ORDINARY,
    )


def _write_masks(
    folder: Path,
    listed: Listed,
    classes: list[str] | None,
    upload: Upload,
    problems: Problems,
    hints: conversion.InputHints,
) -> dataset.DatasetRecord:
    root = upload.root
    drawn = {
        place: _find(place[0] / MASKS, place[1], (".png",))
        for places in listed.values()
        for place in places
    }
    notes = list(upload.notes)
    if classes is None:
        classes = _counted_classes([file for file in drawn.values() if file], root)
        notes.append(
            f"classes are called by their numbers: the upload has no {folders.CLASSES_FILE}"
        )
    folders.check_mask_classes(len(classes), folders.CLASSES_FILE)

    def read(year: Path, stem: str) -> annotations.MaskedPicture | None:
        mask, file = drawn[year, stem], _picture_file(year, stem, root, problems)
        if mask is None:
            place = (year / MASKS).relative_to(root)
            problems.add("bad_labels", f"{place} has no mask for the picture {stem!r}")
        if mask is None or file is None:
            return None
        return masks.pair(file, mask, root, problems, classes=len(classes))

    given = {split: _read_all(places, read) for split, places in listed.items()}
    return annotations.write_masks(
        folder, given, root, problems, classes=classes, hints=hints, notes=notes
    )


def _counted_classes(files: Sequence[Path], root: Path) -> list[str]:
    """Return numbers up to the highest of any mask; those that cannot be read are reported later.

    Two at least, so that a mask of background alone is a mask.
    """
    highest = 1
    for file in files:
        try:
            values = picture_files.read_mask(file, root)
        except errors.UploadRefused:
            continue
        labelled = values[values != dataset.IGNORE_INDEX]
        highest = max(highest, int(labelled.max()) if labelled.size else 0)
    return [str(number) for number in range(min(highest, dataset.IGNORE_INDEX - 1) + 1)]


FORMAT = Format(
    name="voc",
    title="PASCAL VOC: JPEGImages with Annotations or SegmentationClass",
    description=(
        "`JPEGImages` holds pictures, `Annotations` one XML file each for detection, "
        "`SegmentationClass` one PNG each for segmentation, at the top of the archive or in "
        "`VOCdevkit/VOC2012` and the like, of which there may be several. `ImageSets/Main` or "
        "`ImageSets/Segmentation` lists the pictures of `train.txt` (or `trainval.txt`), `val.txt` "
        "and `test.txt`; without lists all pictures are for training. Boxes count pixels from 1 "
        "and include their last pixel; `difficult` ones are not trained on. PNGs hold the number "
        "of each pixel's class, and 255 for none; colours of a palette do not count. "
        "`classes.txt`, which is optional, names the classes in order, one a line: for masks "
        "with the background first. All pictures become `input.height` x `input.width`, or their "
        "largest sides, at most 640: they are scaled to fit and padded."
    ),
    tasks=("detection", "segmentation"),
    suffixes=archives.SUFFIXES,
    recognise=find,
    convert=convert,
)
