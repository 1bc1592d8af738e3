"""Unpack an uploaded archive without trusting it.

Links, devices, absolute paths and `..` are refused. Sizes are counted while bytes are written,
never taken from headers, so a small file cannot fill the disk. Zip and tar (plain, gzip, bzip2, xz)
are told apart by content.
"""

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from workers.distill import errors

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Usual endings of the archives that `unpack` reads."""
CHUNK_BYTES = 1 << 20
LARGEST_TAR_HEADER_BYTES = 1 << 20
"""Long names have headers of their own, which the tar reader loads into memory at once."""


@dataclass(frozen=True)
class Limits:
    """Upper bounds for the content of an archive, against files that unpack to fill a disk."""

    entries: int = 2_000_000
    file_bytes: int = 4 << 30
    total_bytes: int = 64 << 30
    ratio: int = 100
    ratio_free_bytes: int = 64 << 20
    """Unpacked size below which `ratio` is not checked: plain pictures compress very well."""


@runtime_checkable
class Readable(Protocol):
    """An open entry of a zip or tar archive."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


class _Writer:
    """Writes entries below a folder, and counts entries and bytes against the limits."""

    def __init__(self, folder: Path, limits: Limits, packed_bytes: int) -> None:
        self._folder = folder
        self._limits = limits
        self._allowed = min(
            limits.total_bytes, max(limits.ratio_free_bytes, limits.ratio * packed_bytes)
        )
        self._entries = 0
        self._written = 0

    def count_entry(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise _too_large(f"it has more than {self._limits.entries} entries")

    def directory(self, name: str) -> None:
        self._make(self._place(name), name)

    def file(self, name: str, source: Readable) -> None:
        place = self._place(name)
        if place == self._folder:
            raise _unsafe(f"entry {name!r} has no name of its own")
        self._make(place.parent, name)
        try:
            with place.open("xb") as target:
                self._copy(name, source, target)
        except FileExistsError as error:
            raise _unsafe(f"entry {name!r} is in it twice") from error

    # Any: a file open for writing.
    def _copy(self, name: str, source: Readable, target: Any) -> None:
        size = 0
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            self._written += len(chunk)
            if size > self._limits.file_bytes:
                raise _too_large(f"{name!r} is larger than {self._limits.file_bytes} bytes")
            if self._written > self._allowed:
                raise _too_large(
                    f"it unpacks to more than {self._allowed} bytes, which is the limit for a "
                    "file of its size"
                )
            target.write(chunk)

    def _make(self, place: Path, name: str) -> None:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise _unsafe(f"entry {name!r} is both a file and a folder") from error

    def _place(self, name: str) -> Path:
        """Return the path for an entry; accepts only plain names below the folder."""
        parts = name.replace("\\", "/").split("/")
        if parts[0] == "" or parts[0].endswith(":"):
            raise _unsafe(f"entry {name!r} has an absolute path")
        if ".." in parts:
            raise _unsafe(f"entry {name!r} points outside of the archive with '..'")
        names = [part for part in parts if part not in ("", ".")]
        if "\0" in name or any(len(part.encode(errors="replace")) > 255 for part in names):
            raise _unsafe(f"entry {name[:60]!r} has a name that no file can have")
        return self._folder.joinpath(*names)


class _Member(tarfile.TarInfo):
    """A tar entry whose headers are bounded before they are read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        plain = self.type in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
        if not plain and self.size > LARGEST_TAR_HEADER_BYTES:
            raise _unsafe(f"it has a header of {self.size} bytes")
        # The reader's own hook for members of special kinds; not in its published types.
        member: Self = super()._proc_member(archive)  # type: ignore[misc]
        return member


def unpack(path: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpack an archive into an empty folder.

    Raises `UploadRefused` with `unreadable`, `unsafe_archive`, `too_large` or `unsupported_format`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder, limits or Limits(), path.stat().st_size)
    try:
        if zipfile.is_zipfile(path):
            _unpack_zip(path, writer)
        else:
            _unpack_tar(path, writer)
    # What the readers raise for damaged bytes, each in its own way.
    except (
        EOFError,
        NotImplementedError,
        RecursionError,
        RuntimeError,
        UnicodeError,
        ValueError,
        gzip.BadGzipFile,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise errors.UploadRefused(
            "unreadable", f"the archive is damaged or cut short: {error}"
        ) from error


def _unpack_zip(path: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            writer.count_entry()
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(f"entry {entry.filename!r} is a link or a device")
            if entry.flag_bits & 1:
                raise errors.UploadRefused("unreadable", "the archive is encrypted")
            if entry.is_dir():
                writer.directory(entry.filename)
            else:
                with archive.open(entry) as source:
                    writer.file(entry.filename, source)


def _unpack_tar(path: Path, writer: _Writer) -> None:
    with _open_tar(path) as archive:
        for member in archive:
            writer.count_entry()
            if member.isdir():
                writer.directory(member.name)
            elif member.isreg() and not member.issparse():
                source = archive.extractfile(member)
                if source is None:
                    raise _unsafe(f"entry {member.name!r} has no content")
                with source:
                    writer.file(member.name, source)
            else:
                raise _unsafe(f"entry {member.name!r} is a link, a device or a sparse file")


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r|*", tarinfo=_Member)
    except tarfile.ReadError as error:
        if _is_compressed(path):
            raise
        raise errors.UploadRefused(
            "unsupported_format",
            "the file is neither a zip nor a tar archive (plain, gzip, bzip2 or xz)",
        ) from error


def _is_compressed(path: Path) -> bool:
    """Return whether the content is compressed in a way that tar archives are."""
    with path.open("rb") as stream:
        return stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))


def _unsafe(reason: str) -> errors.UploadRefused:
    return errors.UploadRefused("unsafe_archive", f"the archive was not unpacked: {reason}")


def _too_large(reason: str) -> errors.UploadRefused:
    return errors.UploadRefused("too_large", f"the archive is too large: {reason}")
