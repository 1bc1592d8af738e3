"""Find the parts of an unpacked archive: its top folder, splits, pictures, names of classes."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from workers.distill import errors
from workers.distill.data import dataset

PICTURE_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".hif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Folders and lists of this name hold this split."""
CLASSES_FILE = "classes.txt"
LARGEST_TEXT_BYTES = 16 << 20
"""Bound of a file that is read as a whole: a list, or the annotations of one picture."""


SPLIT_WORDS = {
    **SPLIT_NAMES,
    "trn": "train",
    "dev": "validation",
    "devel": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "validate": "validation",
    "testing": "test",
    "tests": "test",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
}
"""Words that name a split, alone or with others: `training_set`, `seg_test`, `val2017`."""
UNLABELLED = "unlabelled"
"""What `split_of` returns for a folder whose name says that its pictures have no labels."""
_UNLABELLED_WORDS = frozenset(
    [
        "unlabelled",
        "unlabeled",
        "unlabel",
        "nolabel",
        "nolabels",
        "pred",
        "preds",
        "predict",
        "prediction",
        "predictions",
        "inference",
    ]
)
_SPLIT_DECORATIONS = frozenset(
    [
        "set",
        "sets",
        "data",
        "dataset",
        "datasets",
        "images",
        "image",
        "imgs",
        "img",
        "pics",
        "pictures",
        "photos",
        "seg",
        "split",
        "splits",
        "folder",
        "dir",
        "samples",
        "subset",
        "cls",
        "class",
        "classes",
        "classification",
        "labelled",
        "labeled",
        "orig",
        "original",
        "raw",
        "processed",
        "cropped",
        "crops",
        "resized",
        "augmented",
        "aug",
        "full",
        "mini",
        "small",
        "final",
        "new",
        "the",
        "of",
        "for",
        "to",
        "jpg",
        "jpeg",
        "png",
        "rgb",
        "part",
    ]
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")


def split_of(name: str, siblings: Collection[str] = ()) -> str | None:
    """Return the split that a folder is named for, `UNLABELLED`, or None for any other name.

    Case, digits and words such as `set`, `images` and `seg` do not count: `Training`, `test_set`,
    `seg_train` and `valImages` are splits. A name with another word in it, such as `pets_train`, is
    a split where `siblings` have that word with another split.
    """
    found, others = _read_words(name)
    if found is None or not others:
        return found
    if found == UNLABELLED:
        return None
    for sibling in siblings:
        split, words = _read_words(sibling)
        if words == others and split not in (None, found):
            return found
    return None


def _read_words(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the split in a name, and the words that say nothing about splits."""
    found: list[str] = []
    others: list[str] = []
    for word in _WORD.findall(name):
        lower = word.lower()
        # Words may be glued together: `trainset`.
        glued = next(
            (
                split
                for end in _SPLIT_DECORATIONS
                if lower.endswith(end) and (split := SPLIT_WORDS.get(lower.removesuffix(end)))
            ),
            None,
        )
        split = SPLIT_WORDS.get(lower, glued)
        if lower in _UNLABELLED_WORDS:
            return UNLABELLED, ()
        if split is not None:
            found.append(split)
        elif lower == "trainval":
            found.append("train")
        elif lower not in _SPLIT_DECORATIONS:
            others.append(lower)
    # Two splits in a name, as in `test_train`, name none.
    return (found[0] if len(set(found)) == 1 else None), tuple(others)


def is_debris(place: Path) -> bool:
    """Return whether an operating system's file manager made this file or folder."""
    return place.name.startswith((".", "__MACOSX")) or place.name == "Thumbs.db"


def subfolders(place: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name, without debris."""
    return sorted(
        (child for child in place.iterdir() if child.is_dir() and not is_debris(child)),
        key=lambda child: child.name,
    )


def descend(root: Path, is_top: Callable[[Path], bool]) -> Path | None:
    """Return the first folder that is the top, going down while a folder holds but one other.

    Archives often wrap everything in another folder. Returns None where there is no top.
    """
    while not is_top(root):
        inside = subfolders(root)
        if len(inside) != 1:
            return None
        root = inside[0]
    return root


def by_split(place: Path) -> dict[str, Path]:
    """Return the subfolders of a folder that are named for splits, by split; there may be none.

    Raises `UploadRefused` where two of them are the same split.
    """
    found: dict[str, Path] = {}
    for child in subfolders(place):
        split = split_of(child.name)
        if split is not None and split != UNLABELLED:
            if split in found:
                raise errors.UploadRefused(
                    "bad_labels", f"{found[split].name!r} and {child.name!r} are the same split"
                )
            found[split] = child
    return found


def pictures(place: Path) -> list[Path]:
    """Return the pictures in a folder and below it, by suffix, sorted by path."""
    return sorted(file for file in files(place) if file.suffix.lower() in PICTURE_SUFFIXES)


def files(place: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it, without debris, in no order."""
    return (file for file in place.rglob("*") if file.is_file() and not is_debris(file))


def below(place: Path, name: str) -> Path | None:
    """Return the path that a file of the archive names, or None if it leads out of `place`."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[:1]:
        return None
    return place / path


def read_text(file: Path, root: Path) -> str:
    """Return a text file's content; raises `UploadRefused` if it is too large or not UTF-8."""
    name = file.relative_to(root)
    if file.stat().st_size > LARGEST_TEXT_BYTES:
        raise errors.UploadRefused("too_large", f"{name} has more than {LARGEST_TEXT_BYTES} bytes")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.UploadRefused("unreadable", f"{name} is not UTF-8 text: {error}") from error


def read_classes(file: Path, root: Path) -> list[str]:
    """Return the names of classes in a file with one a line; blank lines at its end do not count.

    Raises `UploadRefused` for names that are empty or there twice.
    """
    return checked_classes(
        [line.strip() for line in read_text(file, root).rstrip().splitlines()],
        str(file.relative_to(root)),
    )


def checked_classes(names: list[str], where: str) -> list[str]:
    """Return names of classes; raises `UploadRefused` for none, empty names and repeated ones."""
    if not names:
        raise errors.UploadRefused("bad_labels", f"{where} names no classes")
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name:
            raise errors.UploadRefused("bad_labels", f"{where}: class {number} has no name")
        if name in first:
            raise errors.UploadRefused(
                "bad_labels",
                f"{where}: {name!r} is the name of classes {first[name]} and {number}",
            )
        first[name] = number
    return names


def check_mask_classes(count: int, where: str) -> None:
    """Raise `UploadRefused` where masks cannot hold the numbers of so many classes."""
    if count > dataset.IGNORE_INDEX:
        raise errors.UploadRefused(
            "bad_labels",
            f"{where} has {count} classes, but masks hold at most {dataset.IGNORE_INDEX}: a pixel "
            f"is stored as one byte, and {dataset.IGNORE_INDEX} means that it has no class",
        )
