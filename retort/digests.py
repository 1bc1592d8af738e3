"""SHA-256 of files, and its form in HTTP headers (RFC 9530)."""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path

from retort import errors

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """Size and digest of a file, as they were when it was read."""

    size_bytes: int
    sha256: str


def measure(path: Path) -> FileDigest:
    """Read a file once and return its size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise errors.LocalFileProblem(path, _reason(error)) from error
    return FileDigest(size, digest.hexdigest())


def begun(path: Path) -> "hashlib._Hash":
    """Return a SHA-256 that has taken a file so far, and can take what follows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def of_slice(path: Path, offset: int, length: int) -> bytes:
    """Return the raw SHA-256 of `length` bytes of a file from `offset`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while length and (chunk := file.read(min(CHUNK_BYTES, length))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.digest()


def header(raw: bytes) -> str:
    """Return the value of a `Repr-Digest` header for a raw SHA-256."""
    return f"sha-256=:{base64.b64encode(raw).decode()}:"


def from_header(value: str | None) -> str | None:
    """Return the hexadecimal SHA-256 of a `Repr-Digest` header, or None if it has none."""
    for member in (value or "").split(","):
        name, _, encoded = member.strip().partition("=")
        if name == "sha-256" and encoded.startswith(":") and encoded.endswith(":"):
            try:
                raw = base64.b64decode(encoded[1:-1], validate=True)
            except binascii.Error:
                return None
            return raw.hex() if len(raw) == hashlib.sha256().digest_size else None
    return None


def hexadecimal(digest: str | None) -> str | None:
    """Return the digest without its `sha256:` prefix."""
    return digest.removeprefix("sha256:").lower() if digest else None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
