"""Reads and writes files below a folder in which a child process may have left anything.

A link that leads out of the folder would have the worker publish, or write over, what its child may
not even open. So no link is followed, in no part of a path, and only regular files are read.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OddFile(FileNotFoundError):
    """What a child left in place of a file of its own: a link, a device, a path that leads out."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ENOENT, "no regular file of the working folder", str(path))


@contextlib.contextmanager
def open_below(folder: Path, name: str | PurePath) -> Iterator[BinaryIO]:
    """Open a file below `folder` for reading.

    Raises: FileNotFoundError without one; OddFile, which is one too, for anything but a file.
    """
    with _parent(folder, name) as (parent, last):
        try:
            number = os.open(
                last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent
            )
        except OSError as error:
            raise _described(error, folder / name) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OddFile(folder / name)
    # With its path as its name, as other files have it.
    with open(folder / name, "rb", opener=lambda *_: number) as file:
        yield file


def read_below(folder: Path, name: str | PurePath) -> bytes:
    """Return a file's content. Raises: as `open_below`."""
    with open_below(folder, name) as file:
        return file.read()


def json_below(folder: Path, name: str | PurePath) -> Any:  # Any: JSON
    """Return a JSON file's content as a database takes it.

    Raises: as `open_below`; ValueError for what is no JSON.
    """
    return storable(json.loads(read_below(folder, name)))


def storable(value: Any) -> Any:  # Any: JSON
    """Return JSON with U+FFFD for what no database takes: NUL, and halves of surrogate pairs.

    Names out of an uploaded file may contain them. Every text of a child comes through here.
    """
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value


def write_below(folder: Path, name: str | PurePath, content: bytes) -> None:
    """Replace a file below `folder`, as a whole; the folder that it lies in exists.

    Raises: OddFile for a path with links.
    """
    with _parent(folder, name) as (parent, last):
        unfinished = f".{last}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        number = os.open(unfinished, flags, 0o644, dir_fd=parent)
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.replace(unfinished, last, src_dir_fd=parent, dst_dir_fd=parent)


@contextlib.contextmanager
def resolved(folder: Path, path: Path) -> Iterator[Path]:
    """Yield a path by which the folder `path` below `folder` is reached whatever links appear.

    Raises: OddFile for a path with links.
    """
    with _parent(folder, path.relative_to(folder) / "x") as (number, _):
        yield Path(f"/proc/self/fd/{number}") if Path("/proc/self/fd").is_dir() else path


@contextlib.contextmanager
def _parent(folder: Path, name: str | PurePath) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder that a path's last part lies in, and that part."""
    parts = PurePath(name).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts:
        raise OddFile(folder / name)
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            try:
                inner = os.open(part, _FOLDER, dir_fd=number)
            except OSError as error:
                raise _described(error, folder / name) from error
            os.close(number)
            number = inner
        yield number, parts[-1]
    finally:
        os.close(number)


def _described(error: OSError, path: Path) -> OSError:
    """Return an error that names the path; a link, or what is no folder, is odd."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return OddFile(path)
    error.filename = str(path)
    return error
