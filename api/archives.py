"""Streams stored files as one zip archive, so that memory use does not depend on its size.

Entries are not compressed (pictures are already) and have no time, so the same files always give
the same bytes: the entity tag is computed from theirs, and the length is known in advance.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from api import ranges
from models_registry import errors
from models_registry.persistence import storage as bytes_store

MEDIA_TYPE = "application/zip"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of the format
_READABLE = 0o100644 << 16
# Bytes of the format around an entry's name and content: header, descriptor, directory, end.
_HEADER, _DESCRIPTOR, _DIRECTORY, _END = 30, 16, 46, 22
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ArchiveEntry:
    """A stored file, and the path it gets in the archive."""

    path: str
    sha256: str
    size_bytes: int
    storage_key: str


def respond(
    request: Request,
    storage: bytes_store.Storage,
    entries: Sequence[ArchiveEntry],
    *,
    filename: str,
) -> Response:
    """Return the response to a GET or HEAD for an archive of these files.

    Raises: errors.PreconditionFailed; errors.Malformed; errors.Gone.
    """
    etag = _etag(entries)
    headers = {
        "etag": etag,
        "cache-control": "private, max-age=31536000, immutable",
        "content-disposition": f'attachment; filename="{_NOT_PLAIN.sub("-", filename)}"',
    }
    if ranges.is_known(request, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    # Checked before the response starts: afterwards no error status can be sent.
    for entry in entries:
        if not storage.exists(entry.storage_key):
            raise errors.Gone(f"{entry.path} was deleted a moment ago")
    headers["content-length"] = str(length(entries))
    if ranges.is_head(request):
        return Response(headers=headers, media_type=MEDIA_TYPE)
    return StreamingResponse(stream(storage, entries), headers=headers, media_type=MEDIA_TYPE)


def stream(storage: bytes_store.Storage, entries: Sequence[ArchiveEntry]) -> Iterator[bytes]:
    """Yield the archive piece by piece."""
    outlet = _Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]  # it needs no more than `write` and `flush`
        for entry in entries:
            header = zipfile.ZipInfo(entry.path, date_time=_EPOCH)
            header.external_attr, header.create_system = _READABLE, 3
            header.file_size = entry.size_bytes
            with archive.open(header, "w") as member, storage.open(entry.storage_key) as chunks:
                for chunk in chunks:
                    member.write(chunk)
                    yield outlet.take()
    yield outlet.take()


def length(entries: Sequence[ArchiveEntry]) -> int:
    """Return the size of the archive in bytes."""
    around = sum(
        _HEADER + _DESCRIPTOR + _DIRECTORY + 2 * len(entry.path.encode()) for entry in entries
    )
    return around + sum(entry.size_bytes for entry in entries) + _END


def _etag(entries: Sequence[ArchiveEntry]) -> str:
    lines = "".join(f"{entry.sha256} {entry.path}\n" for entry in entries)
    return f'"{hashlib.sha256(lines.encode()).hexdigest()}"'


class _Outlet:
    """A write-only file whose bytes are taken out as they are written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        """Keep a piece until it is taken."""
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Do nothing: the bytes are in memory."""

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
