"""Find the parts of an unpacked archive: its top folder, splits, pictures, names of classes."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from workers.distill import errors
from workers.distill.data import dataset

PICTURE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
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
        split = SPLIT_NAMES.get(child.name.lower())
        if split is not None:
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
    for number, name in enumerate(names):
        if not name:
            raise errors.UploadRefused("bad_labels", f"{where}: class {number} has no name")
        if name in names[:number]:
            raise errors.UploadRefused(
                "bad_labels",
                f"{where}: {name!r} is the name of classes {names.index(name)} and {number}",
            )
    return names


def check_mask_classes(count: int, where: str) -> None:
    """Raise `UploadRefused` where masks cannot hold the numbers of so many classes."""
    if count > dataset.IGNORE_INDEX:
        raise errors.UploadRefused(
            "bad_labels",
            f"{where} has {count} classes, but masks hold at most {dataset.IGNORE_INDEX}: a pixel "
            f"is stored as one byte, and {dataset.IGNORE_INDEX} means that it has no class",
        )
