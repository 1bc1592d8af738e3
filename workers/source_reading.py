"""Lists and reads what a data set refers to: a file or folder of this machine, or of a bucket.

A listing has a name, a size and a mark for each file: the ETag of an object, the time at which a
file was last changed. Its digest pins the source: whoever reads it later compares it first. Files
are read as the listing says, or not at all: one that has changed since is noticed when it is opened
or read.
"""

import collections
import contextlib
import errno
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import obstore
import obstore.exceptions
import obstore.store

from models_registry import errors
from models_registry.artifacts.dataset_sources import PinnedSource
from models_registry.persistence import source_places, storage
from models_registry.persistence.source_places import SourcePlace
from models_registry.settings import Settings
from workers import child_files
from workers.distill.config import formats as format_rules

MOST_FOLDERS = 100
"""Folders in each other, as in archives."""
READERS = 16
"""Small objects of a bucket that are fetched at a time."""
AHEAD = 64
"""Of which so many wait to be used."""
SMALL_BYTES = 2**20
_REQUEST = timedelta(minutes=5)
_PATIENCE = timedelta(seconds=60)
_CHUNK_BYTES = 2**20
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Kind = Literal["file", "folder"]


class SourceRefused(Exception):
    """A source cannot be read, and the same would happen again: a code, and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class SourceChanged(SourceRefused):
    """A source is not as its listing says."""

    def __init__(self, message: str) -> None:
        super().__init__("source_changed", message)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file: its path below the source, which has `/` on every system."""

    name: str
    size_bytes: int
    mark: str
    """What changes with its content: an ETag, or the time of its last change in nanoseconds."""


@dataclass(frozen=True)
class Listing:
    """All files of a source, by name."""

    kind: Kind
    files: Sequence[SourceFile]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def sha256(self) -> str:
        """Return the digest of kind, names, sizes and marks."""
        digest = hashlib.sha256(f"{self.kind}\n".encode())
        for file in self.files:
            line = json.dumps([file.name, file.size_bytes, file.mark], ensure_ascii=True)
            digest.update(f"{line}\n".encode())
        return digest.hexdigest()


Chunks = Iterator[bytes]


class SourceReader(Protocol):
    """Reads one source. Every method raises `errors.StorageDown` where it cannot be reached."""

    def listing(self) -> Listing:
        """Return what there is; raises `SourceRefused` where that cannot be a data set."""
        ...

    def contents(self, listing: Listing) -> Iterator[tuple[SourceFile, Chunks]]:
        """Yield the files of a listing in its order, each to be read before the next.

        Raises `SourceChanged` for one that is not as it was listed, also while it is read.
        """
        ...


def open_source(url: str, settings: Settings, *, project: str) -> SourceReader:
    """Return the reader of an address that a project may refer to.

    Raises: SourceRefused where it may not, by the settings of this worker.
    """
    refused = source_places.refusal(url, settings.allowed_sources, project=project)
    if refused is not None:
        raise SourceRefused(*refused)
    place = source_places.parse(url)
    if place.scheme == "s3":
        return BucketReader(place, storage.s3_options(settings))
    root = source_places.root_of(place, settings.allowed_sources, project=project)
    if root is None:
        raise RuntimeError(f"{url} is allowed, and below no allowed place")
    return FolderReader(place, root.path)


def _one_file(place: SourcePlace, file: SourceFile) -> Listing:
    if file.size_bytes > format_rules.LARGEST_TOTAL_BYTES:
        raise SourceRefused(
            "too_large",
            f"{place.url} has {file.size_bytes} bytes, more than "
            f"{format_rules.LARGEST_TOTAL_BYTES}: divide it",
        )
    return Listing("file", [file])


class _Collected:
    """Files of a listing, counted against the limits of an upload as they are found."""

    def __init__(self, place: SourcePlace) -> None:
        self._place = place
        self._files: list[SourceFile] = []
        self._entries = 0
        self._size_bytes = 0

    def count_entry(self) -> None:
        """Count a file or folder; raises `SourceRefused` for more than an upload may have."""
        self._entries += 1
        if self._entries > format_rules.MOST_ENTRIES:
            raise self._too_large(f"lists more than {format_rules.MOST_ENTRIES} names")

    def add(self, file: SourceFile) -> None:
        """Add a file; raises `SourceRefused` where it is, or all are, too large."""
        self._size_bytes += file.size_bytes
        if file.size_bytes > format_rules.LARGEST_FILE_BYTES:
            most = format_rules.LARGEST_FILE_BYTES
            raise self._too_large(f"has {file.name[:200]!r}, which has more than {most} bytes")
        if self._size_bytes > format_rules.LARGEST_TOTAL_BYTES:
            raise self._too_large(f"has more than {format_rules.LARGEST_TOTAL_BYTES} bytes")
        self._files.append(file)

    def _too_large(self, what: str) -> SourceRefused:
        return SourceRefused(
            "too_large", f"{self._place.url} {what}: refer to a smaller folder, or to several"
        )

    def listing(self) -> Listing:
        """Return the listing of a folder; raises `SourceRefused` for one without files."""
        if not self._files:
            raise SourceRefused(
                "source_empty",
                f"{self._place.url} has no files: put them there, then register it again",
            )
        return Listing("folder", sorted(self._files, key=lambda file: file.name))


class FolderReader:
    """Reads a file or folder of this machine, and nothing outside of the allowed folder.

    A link to a file is read where that file is in the allowed folder as well; no link to a folder
    is followed. Whatever changes meanwhile, no link is followed when a file is opened.
    """

    def __init__(self, place: SourcePlace, root: Path) -> None:
        self._place = place
        self._allowed = root
        self._root = Path(os.path.realpath(root))
        self._top = Path(os.path.realpath(place.path))

    def listing(self) -> Listing:
        """Return the file, or all files of the folder and of those in it."""
        if not self._root.exists():
            raise errors.StorageDown(
                f"this worker has no {self._allowed}, below which {self._place.url} is: mount it "
                "on every worker"
            )
        try:
            self._inside(self._top, self._place.url)
            found = self._top.stat()
        except OSError as error:
            if error.errno in _NOWHERE:
                raise self._missing() from error
            raise self._unreadable("", error) from error
        if stat.S_ISDIR(found.st_mode):
            collected = _Collected(self._place)
            self._walk_top(collected)
            return collected.listing()
        if self._place.is_folder:
            raise self._missing("it is a file: leave the last / out, or name a folder")
        if not stat.S_ISREG(found.st_mode):
            raise self._odd(self._place.url, "neither a file nor a folder")
        return _one_file(self._place, _file(self._place.name, found))

    def contents(self, listing: Listing) -> Iterator[tuple[SourceFile, Chunks]]:
        """Yield files with their content."""
        for file in listing.files:
            place = self._top if listing.kind == "file" else self._top / file.name
            yield file, self._read(file, place)

    def _read(self, file: SourceFile, place: Path) -> Chunks:
        path = Path(os.path.realpath(place))
        self._inside(path, file.name)
        try:
            above = self._root.parent
            with child_files.open_below(above, path.relative_to(above)) as stream:
                self._check(file, os.fstat(stream.fileno()))
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
                # A writer that was at work meanwhile has left its mark by now.
                self._check(file, os.fstat(stream.fileno()))
        except FileNotFoundError as error:
            raise SourceChanged(f"{file.name!r} of {self._place.url} is no longer there") from error
        except OSError as error:
            raise self._unreadable(file.name, error) from error

    def _check(self, file: SourceFile, found: os.stat_result) -> None:
        if _file(file.name, found) != file:
            raise SourceChanged(f"{file.name!r} of {self._place.url} was changed")

    def _inside(self, path: Path, name: str) -> None:
        if path != self._root and self._root not in path.parents:
            raise self._odd(name, f"a link that leads out of {self._allowed}")

    def _walk_top(self, collected: _Collected) -> None:
        try:
            self._walk(os.open(self._top, _FOLDER), (), collected)
        except OSError as error:
            raise self._unreadable("", error) from error

    def _walk(self, folder: int, parents: tuple[str, ...], collected: _Collected) -> None:
        """Add the files of an open folder, which is closed, and of those below it."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._visit(folder, parents, entry, collected)
        finally:
            os.close(folder)

    # Any: entries of an open folder, whose type names a path.
    def _visit(
        self, folder: int, parents: tuple[str, ...], entry: Any, collected: _Collected
    ) -> None:
        collected.count_entry()
        path = (*parents, entry.name)
        name = "/".join(path)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise self._odd(ascii(name), "not named in UTF-8") from error
        try:
            if entry.is_symlink():
                collected.add(self._linked(name))
            elif entry.is_dir(follow_symlinks=False):
                if len(path) > MOST_FOLDERS:
                    raise self._odd(name, f"in more than {MOST_FOLDERS} folders")
                self._walk(os.open(entry.name, _FOLDER, dir_fd=folder), path, collected)
            elif entry.is_file(follow_symlinks=False):
                collected.add(_file(name, entry.stat(follow_symlinks=False)))
            else:
                raise self._odd(name, "neither a file nor a folder")
        except FileNotFoundError as error:
            raise SourceChanged(
                f"{name!r} of {self._place.url} went away while it was listed"
            ) from error
        except OSError as error:
            raise self._unreadable(name, error) from error

    def _linked(self, name: str) -> SourceFile:
        """Return the file that a link in the source leads to, under the link's name."""
        path = Path(os.path.realpath(self._top / name))
        self._inside(path, name)
        try:
            found = path.stat()
        except OSError as error:
            if error.errno in _NOWHERE:
                raise self._odd(name, "a link that leads nowhere") from error
            raise
        if not stat.S_ISREG(found.st_mode):
            raise self._odd(name, "a link to something else than a file")
        return _file(name, found)

    def _odd(self, name: str, what: str) -> SourceRefused:
        return SourceRefused(
            "source_refused",
            f"{name[:300]!r} of {self._place.url} is {what}: take it out, or put a copy in its "
            "place",
        )

    def _missing(self, way_out: str = "check the address") -> SourceRefused:
        return SourceRefused("source_missing", f"there is no {self._place.url}: {way_out}")

    def _unreadable(self, name: str, error: OSError) -> Exception:
        if error.errno not in (errno.EACCES, errno.EPERM):
            return errors.StorageDown(
                f"{self._place.url} cannot be read just now ({os.strerror(error.errno or 0)})"
            )
        what = f"{name!r} of {self._place.url}" if name else self._place.url
        return SourceRefused(
            "source_unreadable", f"the worker's user may not read {what}: change its permissions"
        )


def _file(name: str, found: os.stat_result) -> SourceFile:
    return SourceFile(name, found.st_size, str(found.st_mtime_ns))


class BucketReader:
    """Reads an object, or all objects below a prefix, with the service's own key.

    An object of the given name comes before a prefix, unless the address ends in `/`.
    """

    def __init__(self, place: SourcePlace, options: storage.S3Options) -> None:
        self._place = place
        self._store = storage.s3_store(
            place.bucket, "", options, timeout=_REQUEST, patience=_PATIENCE
        )

    def listing(self) -> Listing:
        """Return the object, or those below the prefix."""
        place = self._place
        if not place.is_folder:
            with self._reported():
                try:
                    found = obstore.head(self._store, place.key)
                except FileNotFoundError:
                    pass  # then it may be a prefix
                else:
                    return _one_file(place, _object(place.name, found))
        collected = _Collected(place)
        with self._reported():
            for page in obstore.list(self._store, place.key or None):
                for entry in page:
                    name = entry["path"][len(place.key) :].lstrip("/")
                    collected.count_entry()
                    if name:
                        collected.add(_object(name, entry))
        return _without_markers(collected.listing())

    def contents(self, listing: Listing) -> Iterator[tuple[SourceFile, Chunks]]:
        """Yield objects with their content; small ones are fetched side by side."""
        is_one = listing.kind == "file"
        waiting: collections.deque[tuple[SourceFile, Future[bytes] | None]] = collections.deque()
        rest = iter(listing.files)
        pool = ThreadPoolExecutor(READERS, "source")
        try:
            while True:
                for file in itertools.islice(rest, AHEAD - len(waiting)):
                    is_small = file.size_bytes <= SMALL_BYTES
                    key = self._place.key if is_one else self._key(file)
                    begun = pool.submit(self._whole, file, key) if is_small else None
                    waiting.append((file, begun))
                if not waiting:
                    return
                file, begun = waiting.popleft()
                if begun is not None:
                    yield file, iter((begun.result(),))
                else:
                    yield file, self._parts(file, self._place.key if is_one else self._key(file))
        finally:
            pool.shutdown(cancel_futures=True)

    def _whole(self, file: SourceFile, key: str) -> bytes:
        return b"".join(self._parts(file, key))

    def _parts(self, file: SourceFile, key: str) -> Chunks:
        for start in range(0, file.size_bytes, storage.TRANSFER_BYTES):
            end = min(start + storage.TRANSFER_BYTES, file.size_bytes)
            with self._reported(file):
                answer = obstore.get(
                    self._store, key, options={"if_match": file.mark, "range": (start, end)}
                )
                chunk = bytes(answer.bytes())
            yield chunk

    def _key(self, file: SourceFile) -> str:
        return f"{self._place.key}/{file.name}" if self._place.key else file.name

    @contextlib.contextmanager
    def _reported(self, file: SourceFile | None = None) -> Iterator[None]:
        url = self._place.url
        try:
            yield
        except obstore.exceptions.PreconditionError as error:
            raise SourceChanged(f"{_named(file, url)} was changed") from error
        except (
            obstore.exceptions.PermissionDeniedError,
            obstore.exceptions.UnauthenticatedError,
        ) as error:
            raise SourceRefused(
                "source_unreadable",
                f"the service's key may not read {url}: have the operator allow it to list the "
                "bucket (s3:ListBucket) and to read its objects (s3:GetObject)",
            ) from error
        except obstore.exceptions.InvalidPathError as error:
            raise SourceRefused(
                "source_refused",
                f"{url} has a key with an empty name, '.' or '..' between its slashes: rename the "
                "object, or refer to a folder without it",
            ) from error
        except FileNotFoundError as error:
            raise SourceChanged(f"{_named(file, url)} is no longer there") from error
        except obstore.exceptions.BaseError as error:
            if "NoSuchBucket" in str(error):
                raise SourceRefused(
                    "source_missing", f"there is no bucket {self._place.bucket}: check the address"
                ) from error
            raise errors.StorageDown(
                f"{url} cannot be read just now ({type(error).__name__})"
            ) from error


# Any: what obstore says of an object.
def _object(name: str, found: Any) -> SourceFile:
    mark = found["e_tag"]
    if mark is None:
        # Without it, nothing says that an object is still the one that was listed.
        raise SourceRefused(
            "source_unreadable", f"the bucket gives no ETag for {name[:300]!r}: upload the files"
        )
    return SourceFile(name, found["size"], mark)


def _without_markers(listing: Listing) -> Listing:
    """Leave out the empty objects by which consoles mark folders: others lie below their names."""
    folders = {
        name
        for file in listing.files
        for name in itertools.accumulate(file.name.split("/")[:-1], "{}/{}".format)
    }
    kept = [file for file in listing.files if file.size_bytes or file.name not in folders]
    return Listing(listing.kind, kept)


def check_unchanged(listing: Listing, pinned: PinnedSource) -> None:
    """Raise `SourceChanged` unless a source lists what it did when it was registered."""
    if listing.sha256 == pinned.sha256:
        return
    then, now = (pinned.files, pinned.size_bytes), (len(listing.files), listing.size_bytes)
    counts = (
        f"{then[0]} files of {then[1]} bytes then, {now[0]} of {now[1]} now"
        if now != then
        else "as many files of as many bytes, but others, or written again"
    )
    raise SourceChanged(
        f"{pinned.url} is not as it was when it was registered ({counts}): restore it, or register "
        "it again as a new version"
    )


def _named(file: SourceFile | None, url: str) -> str:
    return url if file is None else f"{file.name!r} of {url}"
