"""Unpack an uploaded archive without trusting it.

Devices, absolute paths, `..` and links that lead out of the archive are refused; a link to another
entry becomes that entry's file or folder. Sizes are counted while bytes are written, never taken
from headers, so a small file cannot fill the disk. Zip and tar (plain, gzip, bzip2, xz) are told
apart by content. Names are stored as composed Unicode (NFC), whatever the system that packed them.
"""

import errno
import gzip
import lzma
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from workers.distill import errors
from workers.distill.config import formats as format_rules
from workers.distill.data.formats import entry_names, file_kinds

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Usual endings of the archives that `unpack` reads."""
CHUNK_BYTES = 1 << 20
LARGEST_LINK_BYTES = 4096
MOST_FOLDERS = 100
"""Folders in each other; those who walk the tree call themselves for each."""
MOST_STEPS = 40
"""Links to links that are followed, as by operating systems."""
MOST_NAMED = 3
"""Entries that a note names."""
LARGEST_TAR_HEADER_BYTES = 1 << 20
"""Long names have headers of their own, which the tar reader loads into memory at once."""


_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11
"""Bits of a zip entry's flags."""
_UNICODE_PATH = 0x7075
_DOS = 0
"""The system of zip archives that programs of DOS and Windows write."""
_METHODS = frozenset(
    {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
)
_PAGES = {
    "cp437": "cp437 (Western)",
    "cp850": "cp850 (Western)",
    "cp1252": "cp1252 (Western)",
    "gb18030": "GBK (Chinese)",
    "big5": "Big5 (Chinese)",
    "cp949": "cp949 (Korean)",
    "cp932": "Shift JIS (Japanese)",
    "cp866": "cp866 (Cyrillic)",
    "cp1251": "cp1251 (Cyrillic)",
}
"""Code pages in words."""


@dataclass(frozen=True)
class Limits:
    """Upper bounds for the content of an archive, against files that unpack to fill a disk."""

    entries: int = format_rules.MOST_ENTRIES
    file_bytes: int = format_rules.LARGEST_FILE_BYTES
    total_bytes: int = format_rules.LARGEST_TOTAL_BYTES
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
        self._links: dict[Path, Path] = {}
        self._renamed = 0

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

    def link(self, name: str, target: str, *, is_hard: bool = False) -> None:
        """Remember a link until all entries are there; `target` is as the archive gives it.

        Hard links name an entry, symbolic ones a path from their own folder.
        """
        place = self._place(name)
        parts = target.replace("\\", "/").split("/")
        if not target or parts[0] == "" or parts[0].endswith(":"):
            raise _unsafe(f"entry {name!r} is a link to {target[:200]!r}, out of the archive")
        inside = [] if is_hard else list(place.parent.relative_to(self._folder).parts)
        for part in unicodedata.normalize("NFC", "/".join(parts)).split("/"):
            if part == ".." and not inside:
                raise _unsafe(f"entry {name!r} is a link to {target[:200]!r}, out of the archive")
            if part == "..":
                inside.pop()
            elif part not in ("", "."):
                inside.append(part)
        self._links[place] = self._folder.joinpath(*inside)

    def finish(self) -> list[str]:
        """Put files and folders where links to them are; return notes about names and links."""
        count = len(self._links)
        for _ in range(MOST_STEPS):
            # A folder is copied after all links in it; one that holds itself never is.
            unfinished = {parent for place in self._links for parent in place.parents}
            ready = [
                place
                for place, target in self._links.items()
                if target not in unfinished and target.exists()
            ]
            for place in ready:
                self._resolve(place, self._links.pop(place))
        waiting = list(self._links)
        notes = []
        if count > len(waiting):
            notes.append(f"{count - len(waiting)} links were replaced by what they lead to")
        if waiting:
            some = ", ".join(str(place.relative_to(self._folder)) for place in waiting[:MOST_NAMED])
            notes.append(
                f"{len(waiting)} links that lead to no entry, or in a circle, were left out: {some}"
            )
        if self._renamed:
            notes.append(
                f"{self._renamed} names of entries were written with separate accents and are "
                "stored as composed letters (Unicode NFC)"
            )
        return notes

    def _resolve(self, place: Path, target: Path) -> None:
        """Put a copy of a link's target, a file or a folder, at its place."""
        name = str(place.relative_to(self._folder))
        if place.exists():
            raise _unsafe(f"entry {name!r} is in it twice")
        self._make(place.parent, name)
        if target.is_file():
            self._share(target, place)
            return
        place.mkdir()
        for file in sorted(target.rglob("*")):
            self.count_entry()
            copy = place / file.relative_to(target)
            if file.is_dir():
                copy.mkdir()
            else:
                self._share(file, copy)

    def _share(self, file: Path, copy: Path) -> None:
        """Make a second name of a file, which is only read; a copy where that cannot be done."""
        try:
            copy.hardlink_to(file)
        except OSError:
            with file.open("rb") as source, copy.open("xb") as target:
                self._copy(file.name, source, target)

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
        composed = unicodedata.normalize("NFC", name)
        self._renamed += composed != name
        name = composed
        parts = name.replace("\\", "/").split("/")
        if parts[0] == "" or parts[0].endswith(":"):
            raise _unsafe(f"entry {name!r} has an absolute path")
        if ".." in parts:
            raise _unsafe(f"entry {name!r} points outside of the archive with '..'")
        names = [part for part in parts if part not in ("", ".")]
        if "\0" in name or any(len(part.encode(errors="replace")) > 255 for part in names):
            raise _unsafe(f"entry {name[:60]!r} has a name that no file can have")
        if len(names) > MOST_FOLDERS:
            raise _unsafe(f"entry {name[:60]!r} lies in more than {MOST_FOLDERS} folders")
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


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip or tar archive, or a damaged one, by its content."""
    return _looks_like_zip(path) or _is_compressed(path) or tarfile.is_tarfile(path)


def unpack(path: Path, folder: Path, limits: Limits | None = None) -> list[str]:
    """Unpack an archive into an empty folder; return notes about names and links in it.

    Raises `UploadRefused` with `unreadable`, `unsafe_archive`, `too_large` or `unsupported_format`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder, limits or Limits(), path.stat().st_size)
    try:
        unpack_all = _unpack_zip if _looks_like_zip(path) else _unpack_tar
        notes = unpack_all(path, writer)
        return [*notes, *writer.finish()]
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
        struct.error,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _damaged(error) from error
    except OSError as error:
        # The zip reader seeks to places before the start of the file where offsets are damaged.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(error) from error


def _damaged(error: Exception) -> errors.UploadRefused:
    return errors.UploadRefused(
        "unreadable", f"the archive is damaged or cut short: {error or type(error).__name__}"
    )


def _looks_like_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(4)
    return head == b"PK\x03\x04" or zipfile.is_zipfile(path)


def _unpack_zip(path: Path, writer: _Writer) -> list[str]:
    if not zipfile.is_zipfile(path):
        raise zipfile.BadZipFile("it begins as a zip archive, but its end is missing")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names, page = _zip_names(entries)
        for entry, name in zip(entries, names, strict=True):
            writer.count_entry()
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise _unsafe(f"entry {name!r} is a device")
            if entry.flag_bits & _ENCRYPTED:
                raise errors.UploadRefused("unreadable", "the archive is encrypted")
            if entry.compress_type not in _METHODS:
                raise _unknown_method(name, entry.compress_type)
            # .NET and PowerShell end the names of folders in a backslash.
            if name.endswith(("/", "\\")) or entry.filename.endswith("/"):
                writer.directory(name)
                continue
            with archive.open(entry) as source:
                if kind == stat.S_IFLNK:
                    writer.link(name, source.read(LARGEST_LINK_BYTES).decode())
                else:
                    writer.file(name, source)
    return _page_notes(page)


def _zip_names(entries: Sequence[zipfile.ZipInfo]) -> tuple[list[str], str | None]:
    """Return the names of entries as text, and the code page that was guessed for some."""
    unmarked = {
        index: raw
        for index, entry in enumerate(entries)
        if not entry.flag_bits & _UTF8 and (raw := _raw_name(entry)) is not None
    }
    decoded, page = entry_names.decode(
        list(unmarked.values()), is_dos=any(entry.create_system == _DOS for entry in entries)
    )
    names = [entry.filename for entry in entries]
    for index, name in zip(unmarked, decoded, strict=True):
        names[index] = _unicode_name(entries[index], unmarked[index]) or name
    return names, page


def _raw_name(entry: zipfile.ZipInfo) -> bytes | None:
    """Return a name's bytes; the library reads those that are not marked as UTF-8 as `cp437`."""
    raw = entry.orig_filename.encode("cp437")
    return None if raw.isascii() else raw


def _unicode_name(entry: zipfile.ZipInfo, raw: bytes) -> str | None:
    """Return the name in Info-ZIP's Unicode Path field, if it belongs to these bytes."""
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(content) > 5:
            digest = int.from_bytes(content[1:5], "little")
            return content[5:].decode() if digest == zlib.crc32(raw) else None
    return None


def _page_notes(page: str | None) -> list[str]:
    if page is None:
        return []
    return [
        f"names in the archive are not Unicode and were read as {_PAGES.get(page, page)}, by their "
        "letters: if classes have wrong names, pack the archive again with names in UTF-8"
    ]


def _unpack_tar(path: Path, writer: _Writer) -> list[str]:
    page: str | None = None

    def text(name: str) -> str:
        nonlocal page
        try:
            name.encode()
        except UnicodeEncodeError:
            # The library keeps bytes that are not UTF-8 as surrogates.
            raw = name.encode(errors="surrogateescape")
            # An archive has one code page, which its first such name decides.
            try:
                return raw.decode(page or "ascii")
            except UnicodeDecodeError:
                (name,), page = entry_names.decode([raw], is_dos=False)
        return name

    with _open_tar(path) as archive:
        for member in archive:
            writer.count_entry()
            name = text(member.name)
            if member.isdir():
                writer.directory(name)
            elif member.issym() or member.islnk():
                writer.link(name, text(member.linkname), is_hard=member.islnk())
            elif member.isreg() and not member.issparse():
                source = archive.extractfile(member)
                if source is None:
                    raise _unsafe(f"entry {name!r} has no content")
                with source:
                    writer.file(name, source)
            else:
                raise _unsafe(f"entry {name!r} is a device or a sparse file")
    return _page_notes(page)


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r|*", tarinfo=_Member)
    except tarfile.ReadError as error:
        if _is_compressed(path):
            raise errors.UploadRefused(
                "unreadable",
                f"the file is compressed, but there is no whole tar archive in it: {error}",
            ) from error
        kind = file_kinds.kind_of(path)
        raise errors.UploadRefused(
            "unsupported_format",
            "the file is neither a zip nor a tar archive (plain, gzip, bzip2 or xz)"
            + (f", but {kind}" if kind else ""),
        ) from error


def _is_compressed(path: Path) -> bool:
    """Return whether the content is compressed in a way that tar archives are."""
    with path.open("rb") as stream:
        return stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))


def _unknown_method(name: str, number: int) -> errors.UploadRefused:
    method = {9: "Deflate64", 93: "Zstandard", 95: "xz", 97: "WavPack", 98: "PPMd"}.get(number)
    return errors.UploadRefused(
        "unsupported_format",
        f"entry {name!r} is compressed by {method or f'method {number}'}, which is not read; pack "
        "the archive again with Deflate, or as .tar.gz",
    )


def _unsafe(reason: str) -> errors.UploadRefused:
    return errors.UploadRefused("unsafe_archive", f"the archive was not unpacked: {reason}")


def _too_large(reason: str) -> errors.UploadRefused:
    return errors.UploadRefused("too_large", f"the archive is too large: {reason}")
