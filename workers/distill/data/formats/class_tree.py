"""Find splits and classes in a tree of folders, as people pack data sets.

Looked for is a folder whose subfolders are named for splits, `train` with class folders in it; the
one with the most pictures, the highest of equals. Without splits the classes are the subfolders of
the first folder that holds several. What is named like a split never becomes a class, except inside
the splits themselves. Whatever is left out is told, in one note a folder.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.distill import errors
from workers.distill.data.formats import conversion, folders
from workers.distill.data.formats.classified import LabelledPicture

_SIDE_FOLDERS = frozenset(
    [
        "annotation",
        "annotations",
        "bboxes",
        "example",
        "examples",
        "groundtruth",
        "ground_truth",
        "gt",
        "label",
        "labels",
        "mask",
        "masks",
        "meta",
        "metadata",
        "preview",
        "previews",
        "sample",
        "samples",
        "sample_images",
        "segmentationclass",
        "segmentationobject",
        "thumbnails",
        "visualization",
        "visualizations",
    ]
)
"""Names of what lies beside class folders and is none."""
_ALL_PICTURES = frozenset(
    ["all", "data", "images", "image", "imgs", "img", "jpegimages", "pictures", "unknown"]
)
"""Names of folders that hold pictures of any class."""
_SIDE_SUFFIXES = frozenset(
    [
        ".cfg",
        ".csv",
        ".db",
        ".html",
        ".htm",
        ".ini",
        ".ipynb",
        ".json",
        ".jsonl",
        ".log",
        ".mat",
        ".md",
        ".names",
        ".ods",
        ".pdf",
        ".pkl",
        ".py",
        ".rst",
        ".sh",
        ".tsv",
        ".txt",
        ".url",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
    ]
)
"""Endings of files that describe pictures, and are never meant to be one."""
_LIST = re.compile(r"annotation|label|list", re.IGNORECASE)
MOST_NAMED = 6


@dataclass
class Folder:
    """A folder with what it holds itself, and the number of pictures in it and below it."""

    place: Path
    pictures: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    children: list["Folder"] = field(default_factory=list)
    total: int = 0

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.place.name

    @property
    def filled(self) -> list["Folder"]:
        """The subfolders with pictures in or below them."""
        return [child for child in self.children if child.total]

    def walk(self) -> Iterator["Folder"]:
        """Yield this folder and all below it, the higher first."""
        level = [self]
        while level:
            yield from level
            level = [child for one in level for child in one.children]

    def all_pictures(self) -> list[Path]:
        """Return the pictures in and below it, sorted by path."""
        return sorted(picture for one in self.walk() for picture in one.pictures)

    def all_others(self) -> list[Path]:
        """Return the files in and below it that are no pictures."""
        return [file for one in self.walk() for file in one.others]


@dataclass
class Found:
    """The pictures of each split, by class, and what was left out."""

    classes: list[str]
    given: dict[str, list[LabelledPicture]]
    left_out: list[str]
    """Notes about folders and pictures that were not read."""
    others: list[str]
    """Notes about those that were."""

    @property
    def notes(self) -> list[str]:
        """All notes for the owner of the upload."""
        return [*self.left_out, *self.others]


@dataclass
class _Split:
    """A folder that is read as a split, and the folder of each class in it."""

    folder: Folder
    classes: dict[str, Folder]
    listed: list[LabelledPicture] | None = None
    """Pictures whose classes a file lists, where there are no class folders."""
    list_file: Path | None = None
    renamed: Sequence[str] = ()
    """Class folders whose names differ from those of training in case."""

    @property
    def total(self) -> int:
        """Its number of pictures with a class."""
        if self.listed is not None:
            return len(self.listed)
        return sum(one.total for one in self.classes.values())


Reasons = dict[Path, str]
"""Folders that are not read, and why."""


def scan(root: Path) -> Folder:
    """Return the tree of a folder, without debris."""
    top = Folder(root)
    with os.scandir(root) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        place = Path(entry.path)
        if folders.is_debris(place):
            continue
        if entry.is_dir(follow_symlinks=False):
            top.children.append(scan(place))
        elif place.suffix.lower() in folders.PICTURE_SUFFIXES:
            top.pictures.append(place)
        else:
            top.others.append(place)
    top.total = len(top.pictures) + sum(child.total for child in top.children)
    return top


def find(root: Path) -> Found:
    """Return class names, the pictures of each split, and notes for the owner of the upload.

    Raises `UploadRefused` where no class folders are found, or fewer than two.
    """
    tree = scan(root)
    if not tree.total:
        raise without_pictures(tree)
    splits, reasons = _find_splits(tree)
    if not splits:
        splits, reasons = _find_classes(tree)
    classes = list(splits["train"].classes)
    if len(classes) < 2:
        raise errors.UploadRefused(
            "bad_labels",
            f"there is one class folder only ({classes[0]!r}); it takes two or more"
            + "".join(f"; {note}" for note in _notes_of_reasons(reasons, root)),
        )
    numbers = {name: number for number, name in enumerate(classes)}
    given = {name: _pictures(split, numbers) for name, split in splits.items()}
    strays = _add_unread(tree, splits, reasons)
    lists = {split.list_file for split in splits.values() if split.list_file}
    left_out = [
        *_notes_of_reasons(reasons, root),
        *(
            f"{count} pictures directly in {_name(place, root)!r} were left out: they lie in no "
            "class folder"
            for place, count in strays.items()
        ),
    ]
    others = [*_notes_of_splits(splits, root), *_notes_of_files(tree, lists)]
    return Found(classes, given, left_out, others)


def _find_splits(tree: Folder) -> tuple[dict[str, _Split], Reasons]:
    """Return the largest set of splits, with reasons; nothing where no folder holds splits."""
    best: tuple[int, dict[str, _Split], Reasons] | None = None
    refused: tuple[int, errors.UploadRefused] | None = None
    for folder in tree.walk():
        reasons: Reasons = {}
        try:
            splits = _read_splits(folder, reasons)
        except errors.UploadRefused as refusal:
            refused = refused or (folder.total, refusal)
            continue
        total = sum(split.total for split in splits.values())
        if splits and (best is None or total > best[0]):
            best = (total, splits, reasons)
    if refused is not None and (best is None or refused[0] > best[0]):
        raise refused[1]
    return ({}, {}) if best is None else best[1:]


def _read_splits(folder: Folder, reasons: Reasons) -> dict[str, _Split]:
    """Return the splits directly in a folder, or nothing if none is a training split."""
    names = [child.name for child in folder.children]
    by_name: dict[str, list[Folder]] = {}
    for child in folder.children:
        split = folders.split_of(child.name, names)
        if split == folders.UNLABELLED:
            reasons[child.place] = "its name says that its pictures have no labels"
        elif split is not None:
            by_name.setdefault(split, []).append(child)
    trained = []
    for child in by_name.get("train", ()):
        inner = _unwrapped(child)
        classes = _class_folders(inner, reasons, is_split=True)
        if any(one.total for one in classes.values()):
            trained.append(_Split(child, classes))
        else:
            reasons[child.place] = "it has no class folders"
    if not trained:
        return {}
    found = {"train": _largest("train", trained, reasons)}
    _move_eval(by_name)
    for name in ("validation", "test"):
        read = [
            other
            for child in by_name.get(name, ())
            if (other := _read_other(child, name, found["train"].classes, reasons)) is not None
        ]
        if read:
            found[name] = _largest(name, read, reasons)
    return found


def _move_eval(by_name: dict[str, list[Folder]]) -> None:
    """Take `eval` for the test split where another folder is the validation split, and none is."""
    held = by_name.get("validation", [])
    evals = [child for child in held if "eval" in child.name.lower()]
    if "test" not in by_name and 0 < len(evals) < len(held):
        by_name["test"] = evals
        by_name["validation"] = [child for child in held if child not in evals]


def _largest(name: str, found: Sequence[_Split], reasons: Reasons) -> _Split:
    """Return the folder of a split with the most pictures, of equals one with its plain name.

    Raises `UploadRefused` where neither tells them apart.
    """

    def rank(split: _Split) -> tuple[int, bool]:
        return split.total, split.folder.name.lower() in folders.SPLIT_NAMES

    first, *others = sorted(found, key=rank, reverse=True)
    for other in others:
        if rank(other) == rank(first):
            raise errors.UploadRefused(
                "bad_labels",
                f"{first.folder.name!r} and {other.folder.name!r} are the same split ({name}): "
                "remove one, or put the pictures of both in one folder",
            )
        reasons[other.folder.place] = (
            f"{first.folder.name!r} is the {name} split, and has more pictures"
            if other.total < first.total
            else f"{first.folder.name!r} is the {name} split"
        )
    return first


def _unwrapped(folder: Folder, classes: Collection[str] = ()) -> Folder:
    """Return the folder that holds class folders, below folders that hold one other each.

    With `classes` go down only to where folders have such names.
    """
    while not folder.pictures and len(folder.filled) == 1:
        (inside,) = folder.filled
        if inside.name in classes or len(inside.filled) < (1 if classes else 2):
            break
        if classes and not {child.name for child in inside.filled} & set(classes):
            break
        folder = inside
    return folder


def _class_folders(folder: Folder, reasons: Reasons, *, is_split: bool) -> dict[str, Folder]:
    """Return the class folders directly in a folder, by name, and add why others are none."""
    found: dict[str, Folder] = {}
    names = {child.name for child in folder.filled}
    for child in folder.children:
        reason = _why_no_class(child, names, is_split=is_split)
        if reason is None:
            found[child.name] = child
        else:
            reasons[child.place] = reason
    return found


def _why_no_class(child: Folder, names: Collection[str], *, is_split: bool) -> str | None:
    """Return why a folder is no class folder, or None if it is one; it may be empty.

    `names` are those of the folders with pictures beside it, its own among them; `is_split` says
    that their folder is a split. Raises `UploadRefused` where it may be one, but
    cannot be read.
    """
    split = folders.split_of(child.name, names)
    is_leaf = bool(child.pictures) and not child.filled
    if split == folders.UNLABELLED:
        return "its name says that its pictures have no labels"
    if split is not None and not (is_split and is_leaf):
        others = sorted(name for name in names if folders.split_of(name, names) is None)
        if split == "train" and is_leaf and others:
            beside = ", ".join(others[:MOST_NAMED])
            raise errors.UploadRefused(
                "bad_labels",
                f"the folder {child.name!r} is named like a split, and its pictures lie beside the "
                f"folders {beside}: if it is a class, put all class folders into a folder 'train'",
            )
        return "it is named like a split"
    if child.name.lower() in _SIDE_FOLDERS:
        return "it is named for what accompanies pictures, not for a class"
    if not child.total:
        unread = [file for file in child.all_others() if file.suffix.lower() not in _SIDE_SUFFIXES]
        if unread:
            raise errors.UploadRefused(
                "no_images",
                f"the folder {child.name!r} has no pictures, but {_kinds(unread)}; pictures end in "
                + ", ".join(sorted(folders.PICTURE_SUFFIXES)),
            )
        return "it holds no pictures" if child.all_others() else None
    if is_leaf and child.name.lower() in _ALL_PICTURES:
        return "its name says nothing of a class"
    inside = {one.name for one in child.filled}
    if not child.pictures and len(inside) > 1 and len(inside & set(names)) * 2 >= len(inside):
        return "it repeats the folders beside it: a copy of the data set inside itself"
    return None


def _read_other(
    child: Folder, name: str, classes: Mapping[str, Folder], reasons: Reasons
) -> _Split | None:
    """Return a validation or test split by the classes of training; None where it has no labels.

    Raises `UploadRefused` for a class that training does not have.
    """
    if not child.total:
        reasons[child.place] = "it holds no pictures"
        return None
    inner = _unwrapped(child, classes)
    # Names may differ in case between splits.
    alike: dict[str, list[str]] = {}
    for known in classes:
        alike.setdefault(known.casefold(), []).append(known)
    found: dict[str, Folder] = {}
    renamed: list[str] = []
    unknown: list[Folder] = []
    for one in inner.children:
        same = [one.name] if one.name in classes else alike.get(one.name.casefold(), [])
        if len(same) == 1 and same[0] not in found:
            found[same[0]] = one
            if one.name != same[0]:
                renamed.append(f"{one.name!r} as {same[0]!r}")
        elif one.total:
            unknown.append(one)
    if any(one.total for one in found.values()):
        for one in unknown:
            reason = _why_no_class(one, [other.name for other in inner.filled], is_split=True)
            if reason is None:
                raise _unknown_class(name, one.name)
            reasons[one.place] = reason
        return _Split(child, found, renamed=renamed)
    listed = _listed(child, classes)
    if listed is not None:
        return listed
    if not inner.pictures:
        for one in unknown:
            if len(unknown) > 1 or not (
                one.name.lower() in _ALL_PICTURES or folders.split_of(one.name)
            ):
                raise _unknown_class(name, one.name)
    reasons[child.place] = "its pictures have no labels: they lie in no class folders"
    return None


def _unknown_class(split: str, name: str) -> errors.UploadRefused:
    return errors.UploadRefused(
        "bad_labels", f"the {split} split has the class {name!r}, training has not"
    )


def _listed(folder: Folder, classes: Mapping[str, Folder]) -> _Split | None:
    """Return a split whose pictures have their classes in a file beside them.

    As in `val_annotations.txt` of Tiny-ImageNet: a line begins with a picture and its class.
    """
    by_name = {picture.name: picture for picture in folder.all_pictures()}
    numbers = {name: number for number, name in enumerate(classes)}
    for file in folder.others:
        if file.suffix.lower() not in (".txt", ".csv", ".tsv") or not _LIST.search(file.stem):
            continue
        listed: dict[Path, int] = {}
        for line in folders.read_text(file, folder.place).splitlines():
            words = re.split(r"[\t,;]|\s+", line.strip())
            if len(words) > 1 and words[0] in by_name and words[1] in numbers:
                listed[by_name[words[0]]] = numbers[words[1]]
        if listed:
            pictures = [LabelledPicture(picture, label) for picture, label in listed.items()]
            return _Split(folder, {}, pictures, file)
    return None


def _find_classes(tree: Folder) -> tuple[dict[str, _Split], Reasons]:
    """Return the training split, or all where each class folder has its own splits."""
    folder = tree
    while True:
        inside = [
            child
            for child in folder.filled
            if child.name.lower() not in _SIDE_FOLDERS and folders.split_of(child.name) is None
        ]
        if len(inside) != 1 or not inside[0].filled:
            break
        folder = inside[0]
    reasons: Reasons = {}
    classes = _class_folders(folder, reasons, is_split=False)
    if not any(child.total for child in classes.values()):
        splits = [child.name for child in folder.filled if folders.split_of(child.name)]
        raise errors.UploadRefused(
            "no_images",
            (f"there is no 'train' folder beside {', '.join(splits)}; " if splits else "")
            + "the archive has no class folders with pictures; put each picture in a folder that "
            "is named for its class, such as cat/1.png",
        )
    by_split: dict[str, dict[str, Folder]] = {}
    for name, child in classes.items():
        for part in child.filled:
            split = None if child.pictures else folders.split_of(part.name)
            if split is None or split in by_split.get(name, {}):
                return {"train": _Split(folder, classes)}, reasons
            by_split.setdefault(split, {})[name] = part
    if "train" not in by_split:
        return {"train": _Split(folder, classes)}, reasons
    empty = {name: Folder(child.place) for name, child in classes.items()}
    return {split: _Split(folder, {**empty, **parts}) for split, parts in by_split.items()}, reasons


def _pictures(split: _Split, numbers: Mapping[str, int]) -> list[LabelledPicture]:
    if split.listed is not None:
        return split.listed
    return [
        LabelledPicture(file, numbers[name])
        for name, folder in sorted(split.classes.items())
        for file in folder.all_pictures()
    ]


def _add_unread(tree: Folder, splits: Mapping[str, _Split], reasons: Reasons) -> dict[Path, int]:
    """Add the folders that nothing reads; return numbers of pictures outside of class folders."""
    read = {one.place for split in splits.values() for one in split.classes.values()}
    read |= {split.folder.place for split in splits.values() if split.listed is not None}
    above = {parent for place in read for parent in place.parents}
    names = {place.name for place in read} | {split.folder.name for split in splits.values()}
    strays: dict[Path, int] = {}

    def visit(folder: Folder) -> None:
        if folder.place in read or folder.place in reasons:
            return
        if folder.place not in above:
            if folder.total:
                is_copy = bool({child.name for child in folder.filled} & names)
                reasons[folder.place] = (
                    "it looks like another copy of the data set"
                    if is_copy
                    else "it lies beside the data set"
                )
            return
        if folder.pictures:
            strays[folder.place] = len(folder.pictures)
        for child in folder.children:
            visit(child)

    visit(tree)
    for split in splits.values():
        if split.listed is not None and len(split.listed) < split.folder.total:
            strays[split.folder.place] = split.folder.total - len(split.listed)
    return strays


def _name(place: Path, root: Path) -> str:
    return str(place.relative_to(root)) if place != root else "the archive"


def _notes_of_reasons(reasons: Reasons, root: Path) -> list[str]:
    return [
        f"the folder {_name(place, root)!r} was left out: {reason}"
        for place, reason in sorted(reasons.items())
        if not any(parent in reasons for parent in place.parents)
    ]


def _notes_of_splits(splits: Mapping[str, _Split], root: Path) -> list[str]:
    notes: list[str] = []
    if any(split.folder is not splits["train"].folder for split in splits.values()):
        notes += [
            f"the folder {_name(split.folder.place, root)!r} is the {name} split"
            for name, split in splits.items()
            if split.folder.name.lower() not in folders.SPLIT_NAMES
        ]
    elif len(splits) > 1:
        notes.append(f"each class folder has its own folders of splits: {', '.join(splits)}")
    for name, split in splits.items():
        if split.renamed:
            notes.append(f"classes of the {name} split were taken: {', '.join(split.renamed)}")
        if split.listed is not None and split.list_file is not None:
            notes.append(
                f"the classes of the {name} split were read from {_name(split.list_file, root)!r}"
            )
            continue
        empty = sorted(one for one in splits["train"].classes if not _count(split, one))
        if empty and name != "train":
            notes += conversion.notes_of_absent(empty, "images", split=name)
    inner = {part.name for one in splits["train"].classes.values() for part in one.filled}
    if len(inner) > 1:
        some = ", ".join(sorted(inner)[:MOST_NAMED])
        notes.append(f"folders in class folders ({some}) belong to the class of the outer folder")
    return notes


def _count(split: _Split, name: str) -> int:
    return split.classes[name].total if name in split.classes else 0


def _notes_of_files(tree: Folder, lists: Collection[Path]) -> list[str]:
    left = [file for file in tree.all_others() if file not in lists]
    return [f"files that are no pictures were left out: {_kinds(left)}"] if left else []


def _kinds(files: Sequence[Path]) -> str:
    """Return in words how many files there are of each ending."""
    counts = Counter(file.suffix.lower() for file in files)
    return ", ".join(
        f"{count} {'ending in ' + suffix if suffix else 'without an ending'}"
        for suffix, count in counts.most_common(MOST_NAMED)
    )


def without_pictures(tree: Folder) -> errors.UploadRefused:
    """Return the refusal of an archive that has no pictures: what it has instead, and a way out."""
    others = tree.all_others()
    packed = [file for file in others if file.suffix.lower() in (".zip", ".tar", ".gz", ".tgz")]
    way_out = f"; pictures end in {', '.join(sorted(folders.PICTURE_SUFFIXES))}"
    if packed:
        way_out = "; unpack the archives in it, and pack their files"
    but = f", but {_kinds(others)}" if others else ""
    return errors.UploadRefused("no_images", f"the archive has no pictures{but}{way_out}")
