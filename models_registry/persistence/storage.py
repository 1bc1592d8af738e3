"""Storage of bytes: a local folder, or a bucket of an S3-compatible store.

A blob's key is the SHA-256 of its content, so the same bytes have the same key, a download can be
verified, and no path ever comes from a caller. Parts of an upload have keys that no other upload
shares, so they may be deleted without checking for other references.

No put is visible before it is complete, verified and durable. Reads and writes stream: memory does
not grow with the size of the bytes.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import tempfile
import urllib.parse
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol, Self, runtime_checkable

import obstore
import obstore.exceptions
import obstore.store

from models_registry import errors
from models_registry.settings import Settings

CHUNK_BYTES = 2**20
# Of one S3 request. A store takes 10,000 parts for one upload, so this bounds a blob to 78 GiB.
TRANSFER_BYTES = 8 * 2**20
# In flight at one time, for each put.
TRANSFERS = 3
LONGEST_SIGNATURE = timedelta(days=7)
"""For which S3 takes a presigned URL."""

KEY = re.compile(
    r"sha256/(?P<first>[0-9a-f]{2})/(?P<second>[0-9a-f]{2})/(?P=first)(?P=second)[0-9a-f]{60}"
    r"|parts/[0-9a-f]{32}(?:/[0-9]{1,15})?"
)


class BytesNotFound(errors.NotFound):
    """No bytes are stored under this key."""

    code = "bytes_not_found"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What a put has made durable; `sha256` is lower-case hexadecimal."""

    key: str
    size_bytes: int
    sha256: str


@runtime_checkable
class BinaryReader(Protocol):
    """Anything with `read`, such as a file opened in binary mode."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


Source = BinaryReader | Iterable[bytes]


@dataclass(frozen=True, slots=True)
class PartPlace:
    """Where a part goes: the id of its upload, and its first byte in the whole file."""

    upload_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class StoredPart:
    """Where the bytes of a part are: from `start` on under a key that other parts may share."""

    key: str
    start: int
    size_bytes: int


class ByteStream(Iterator[bytes]):
    """The bytes of one key, chunk by chunk; close it, or use `with`, when stopping early."""

    def __init__(
        self, chunks: Generator[bytes], release: Callable[[], None] = lambda: None
    ) -> None:
        self._chunks = chunks
        self._release = release

    def __next__(self) -> bytes:
        """Return the next chunk."""
        return next(self._chunks)

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def __del__(self) -> None:
        """Close a stream that was dropped half-read, as a web server does with a lost client."""
        self.close()

    def close(self) -> None:
        """End the stream and release what it holds; may be called again."""
        self._chunks.close()
        # Not the generator's own business: one that was never started has nothing to clean up.
        self._release()


class Storage(Protocol):
    """Put, open, exists and delete, and what uploads and maintenance need besides.

    Every method raises `errors.StorageDown` when the store cannot do its work (`StorageFull` where
    its disk has no room), and `errors.Malformed` for a key that is not one of ours.
    """

    def put(self, stream: Source, *, expected: str | None = None) -> StoredBlob:
        """Store a blob under its digest, all or nothing.

        `expected` is a SHA-256 in hexadecimal; other bytes raise `errors.DigestMismatch`. Bytes
        that are there already are stored again, which renews their time for `stored_before`. What
        the stream raises passes through, and nothing is stored.
        """
        ...

    def put_part(
        self, stream: Source, place: PartPlace, *, expected: str | None = None
    ) -> contextlib.AbstractContextManager[StoredBlob]:
        """Store one part of an upload; like `put` in all else.

        The block that follows records it: until its end no other part of these bytes' place is
        stored, so what was recorded last is what is there.

        Raises `errors.Conflict` where the parts have been assembled already.
        """
        ...

    def direct_url(self, place: PartPlace, *, lifetime: timedelta) -> str | None:
        """Return a presigned URL to which a client may PUT a part itself; None if there is none.

        Nothing of what is put there is checked, neither its size nor its digest.
        """
        ...

    def direct_parts(self, upload_id: str) -> Mapping[int, StoredPart]:
        """Return the parts that clients have put themselves, by their first byte in the file."""
        ...

    def assemble(self, parts: Sequence[StoredPart], *, expected: str) -> StoredBlob:
        """Make one blob of the parts, one after the other.

        The parts stay: delete them after the row that names the blob is committed, so that a crash
        between the two can be repeated.

        Raises `BytesNotFound` where one is gone; `errors.DigestMismatch`.
        """
        ...

    def open(self, key: str, *, start: int = 0, end: int | None = None) -> ByteStream:
        """Stream bytes `start` up to, not including, `end`; beyond the last byte there are none.

        Raises `BytesNotFound` here, not at the first chunk.
        """
        ...

    def exists(self, key: str) -> bool:
        """Return whether bytes are stored under this key."""
        ...

    def size(self, key: str) -> int | None:
        """Return how many bytes are stored under this key; None if there are none."""
        ...

    def delete(self, key: str, *, unless_stored_since: datetime | None = None) -> None:
        """Delete these bytes; missing ones are no error.

        `unless_stored_since` keeps bytes that were put, perhaps again, at that moment or later: a
        sweep passes the moment of its `stored_before`.
        """
        ...

    def stored_before(self, moment: datetime) -> Iterator[str]:
        """Yield the keys of blobs and parts that were last put before this moment."""
        ...

    def discard_unfinished(self, moment: datetime) -> int:
        """Remove temporary files of puts that were killed before this moment; return how many."""
        ...

    def check(self) -> None:
        """Raise `errors.StorageDown` unless the store can be reached and used, within seconds."""
        ...

    def free_bytes(self) -> int | None:
        """Return how many bytes there is room for, None where that cannot be known."""
        ...


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """How to reach a bucket; without keys, those of the environment or the instance are used."""

    endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = None
    # Where clients reach the bucket; without, they reach it through the API alone.
    public_endpoint: str | None = None
    # Needs room for the largest blobs being put at one time; must not be a memory file system.
    spool_folder: Path | None = None


def from_url(url: str, options: S3Options | None = None) -> Storage:
    """Return the storage that `file:///folder` or `s3://bucket/prefix` names."""
    place = urllib.parse.urlsplit(url)
    if place.query or place.fragment:
        raise ValueError(f"storage_url must have neither ? nor #, got {url!r}")
    if place.scheme == "file" and place.netloc in ("", "localhost") and place.path:
        return LocalStorage(Path(urllib.parse.unquote(place.path)))
    if place.scheme == "s3" and place.netloc:
        return S3Storage(place.netloc, place.path.strip("/"), options or S3Options())
    raise ValueError(f"storage_url must be file:///folder or s3://bucket/prefix, got {url!r}")


def from_settings(settings: Settings) -> Storage:
    """Return the storage that the settings name."""
    return from_url(settings.storage_url, s3_options(settings))


def s3_options(settings: Settings) -> S3Options:
    """Return how the settings say that buckets are reached."""
    secret = settings.s3_secret_access_key
    return S3Options(
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
        public_endpoint=settings.s3_public_endpoint,
    )


def stored_part(key: str, place: PartPlace, size_bytes: int) -> StoredPart:
    """Return where a part is that was put at `place`, and has this key since."""
    return StoredPart(key, place.offset if key == whole_key(place.upload_id) else 0, size_bytes)


class LocalStorage:
    """Bytes in a folder of this machine, or of a file system that all processes mount.

    The parts of an upload are written into one file, each at its place, which becomes the blob by
    getting a second name: so a file that is uploaded needs its own size on the disk, and a part's
    more while it is received.

    A part is not durable before its upload is assembled, since waiting for the disk once costs less
    than once for each part. What a machine that loses power has lost of a part is noticed when the
    parts are assembled (`BytesNotFound`, `errors.DigestMismatch`).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        # On the file system of the blobs, or the rename would not be atomic.
        self._unfinished = self._folder / "unfinished"
        with _reported():
            self._unfinished.mkdir(parents=True, exist_ok=True)

    def put(self, stream: Source, *, expected: str | None = None) -> StoredBlob:
        """Store a blob under its digest, all or nothing."""
        return self._write(_HashingStream(stream), expected, _blob_key)

    @contextlib.contextmanager
    def put_part(
        self, stream: Source, place: PartPlace, *, expected: str | None = None
    ) -> Iterator[StoredBlob]:
        """Store one part of an upload at its place in the file of the upload."""
        hashed, key = _HashingStream(stream), whole_key(place.upload_id)
        # Received beside it first: a slow sender must not keep others out, and a part that is cut
        # short must not damage the one that it was to replace.
        with self._temporary() as received:
            _drain(hashed, received.fileno())
            stored = hashed.stored(expected, lambda _sha256: key)
            with self._locked(self._path(key), missing_ok=True) as whole:
                with _reported():
                    if os.fstat(whole.fileno()).st_nlink > 1:
                        raise errors.Conflict(
                            "the parts of this upload have been put together: complete it",
                            code="upload_completed",
                        )
                    _copy(received.fileno(), whole.fileno(), place.offset, stored.size_bytes)
                    _begin_writing(whole.fileno(), place.offset, stored.size_bytes)
                yield stored

    def direct_url(self, place: PartPlace, *, lifetime: timedelta) -> None:
        """Return None: nobody but the service reaches a folder."""

    def direct_parts(self, upload_id: str) -> Mapping[int, StoredPart]:  # noqa: ARG002 - the protocol's
        """Return none: nobody but the service reaches a folder."""
        return {}

    def assemble(self, parts: Sequence[StoredPart], *, expected: str) -> StoredBlob:
        """Make one blob of the parts: without a copy where they are in one file."""
        if not _is_one_file(parts):
            return self.put(_joined(self, parts), expected=expected)
        path = self._path(parts[0].key)
        with self._locked(path, missing_ok=False) as whole:
            if os.fstat(whole.fileno()).st_size != sum(part.size_bytes for part in parts):
                raise BytesNotFound(f"some bytes of {parts[0].key} are missing")
            with _reported():
                # The digest is made while the disk takes what it has not taken yet.
                hashed = _HashingStream(whole)
                hashed.drain()
                os.fsync(whole.fileno())
            stored = hashed.stored(expected, _blob_key)
            linked = self._unfinished / uuid.uuid4().hex
            try:
                linked.hardlink_to(path)
            except OSError as error:
                if error.errno not in _NO_SECOND_NAME:
                    with _reported(parts[0].key):  # taken by another completion while it was read
                        raise
                return self.put(_joined(self, parts), expected=expected)
            with _reported():
                os.utime(linked)
                self._publish(linked, stored.key)
        return stored

    def open(self, key: str, *, start: int = 0, end: int | None = None) -> ByteStream:
        """Stream bytes `start` up to, not including, `end`."""
        path = self._path(key)
        _check_range(start, end)
        with _reported(key):
            file = path.open("rb", buffering=0)
            size_bytes = os.fstat(file.fileno()).st_size
            file.seek(start)
        stop = size_bytes if end is None else min(end, size_bytes)

        def chunks() -> Generator[bytes]:
            remaining = stop - start
            while remaining > 0:
                with _reported(key):
                    chunk = file.read(min(CHUNK_BYTES, remaining))
                if not chunk:
                    raise errors.StorageDown(f"the bytes of {key} end too early")
                remaining -= len(chunk)
                yield chunk

        return ByteStream(chunks(), file.close)

    def exists(self, key: str) -> bool:
        """Return whether bytes are stored under this key."""
        path = self._path(key)
        with _reported():
            return path.is_file()

    def size(self, key: str) -> int | None:
        """Return how many bytes are stored under this key; None if there are none."""
        path = self._path(key)
        try:
            with _reported(key):
                return path.stat().st_size
        except BytesNotFound:
            return None

    def delete(self, key: str, *, unless_stored_since: datetime | None = None) -> None:
        """Delete these bytes; missing ones are no error."""
        path = self._path(key)
        with _reported(), contextlib.suppress(FileNotFoundError):
            if unless_stored_since is None or _modified_at(path) < unless_stored_since:
                path.unlink()

    def stored_before(self, moment: datetime) -> Iterator[str]:
        """Yield the keys of blobs and parts that were last put before this moment."""
        for pattern in ("sha256/*/*/*", "parts/*"):
            for path in self._older(pattern, moment):
                key = path.relative_to(self._folder).as_posix()
                if KEY.fullmatch(key):
                    yield key

    def discard_unfinished(self, moment: datetime) -> int:
        """Remove temporary files of puts that were killed before this moment; return how many."""
        leftovers = list(self._older("unfinished/*", moment))
        for leftover in leftovers:
            with _reported():
                leftover.unlink(missing_ok=True)
        return len(leftovers)

    def check(self) -> None:
        """Raise `errors.StorageDown` unless a file can be written here."""
        with _reported(), tempfile.TemporaryFile(dir=self._unfinished, buffering=0) as probe:
            probe.write(b"ready")

    def free_bytes(self) -> int:
        """Return how many bytes there is room for on the file system."""
        with _reported():
            return shutil.disk_usage(self._folder).free

    def _path(self, key: str) -> Path:
        _check_key(key)
        return self._folder / key

    def _older(self, pattern: str, moment: datetime) -> Iterator[Path]:
        for path in self._folder.glob(pattern):
            # Another process may delete or publish a file while this one looks.
            with _reported(), contextlib.suppress(FileNotFoundError):
                if _modified_at(path) < moment:
                    yield path

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[BinaryIO]:
        path = self._unfinished / uuid.uuid4().hex
        with _reported():
            file = path.open("x+b", buffering=0)
        with file:
            try:
                yield file
            finally:
                with contextlib.suppress(OSError):  # as in `_write`
                    path.unlink()

    @contextlib.contextmanager
    def _locked(self, path: Path, *, missing_ok: bool) -> Iterator[BinaryIO]:
        """Hold the file of an upload for this block alone; with `missing_ok`, make it if needed.

        Raises: BytesNotFound.
        """
        flags = os.O_RDWR | (os.O_CREAT if missing_ok else 0)
        while True:
            with _reported(path.relative_to(self._folder).as_posix()):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = os.fdopen(os.open(path, flags, 0o644), "r+b", buffering=0)
            with file:
                with _reported():
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if not _is_at(file, path):
                        continue  # deleted while we waited: what we hold may be a blob by now
                yield file
                return

    def _write(self, hashed: "_HashingStream", expected: str | None, name: "_Namer") -> StoredBlob:
        unfinished = self._unfinished / uuid.uuid4().hex
        try:
            with _reported():
                file = unfinished.open("xb", buffering=0)
            with file:
                _drain(hashed, file.fileno())
                with _reported():
                    os.fsync(file.fileno())
            stored = hashed.stored(expected, name)
            with _reported():
                self._publish(unfinished, stored.key)
        finally:
            # Gone if published; and a broken disk must not hide the error that it caused.
            with contextlib.suppress(OSError):
                unfinished.unlink()
        return stored

    def _publish(self, unfinished: Path, key: str) -> None:
        target = self._folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replacing equal bytes renews their age, so that a sweep which saw the old ones as orphans
        # leaves them; readers of the old file keep it until they close it.
        unfinished.replace(target)
        # The name is durable when every folder on the way to it is.
        folder = target.parent
        while True:
            _sync_folder(folder)
            if folder == self._folder:
                return
            folder = folder.parent


class S3Storage:
    """Bytes in a bucket of an S3-compatible store.

    Threads may share it; a process that has used it must not fork, for the client's own threads
    stay behind and the child would wait for them for ever. Made but unused, it survives a fork.

    A put is written to a local temporary file first (parts that are assembled are not, since their
    digest was announced), and uploaded when its digest is known and
    right. The other way, a temporary object and a server-side copy, costs a second write of
    everything, leaves objects behind when killed, and stops at the 5 GiB that one copy may have. An
    upload becomes visible as a whole. Set a lifecycle rule for incomplete multipart uploads: those
    of killed processes are invisible, but cost money.
    """

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        self._spool_folder = options.spool_folder
        self._store = s3_store(
            bucket, prefix, options, timeout=timedelta(minutes=5), patience=timedelta(seconds=60)
        )
        # Signing needs no connection: the process itself may not reach this endpoint.
        self._signer = options.public_endpoint and s3_store(
            bucket,
            prefix,
            replace(options, endpoint=options.public_endpoint),
            timeout=timedelta(seconds=3),
            patience=timedelta(0),
        )
        # Readiness needs an answer soon; the other calls wait for a store that restarts.
        self._impatient = s3_store(
            bucket, prefix, options, timeout=timedelta(seconds=3), patience=timedelta(0)
        )

    def put(self, stream: Source, *, expected: str | None = None) -> StoredBlob:
        """Store a blob under its digest, all or nothing."""
        return self._write(_HashingStream(stream), expected, _blob_key)

    @contextlib.contextmanager
    def put_part(
        self,
        stream: Source,
        place: PartPlace,  # noqa: ARG002 - the protocol's: here each part is an object of its own
        *,
        expected: str | None = None,
    ) -> Iterator[StoredBlob]:
        """Store one part of an upload under a key of its own."""
        yield self._write(_HashingStream(stream), expected, _part_key)

    def direct_url(self, place: PartPlace, *, lifetime: timedelta) -> str | None:
        """Return a presigned URL to which a client may PUT a part itself; None if there is none."""
        if not self._signer:
            return None
        key = f"{whole_key(place.upload_id)}/{place.offset}"
        with _reported():
            return obstore.sign(self._signer, "PUT", key, min(lifetime, LONGEST_SIGNATURE))

    def direct_parts(self, upload_id: str) -> Mapping[int, StoredPart]:
        """Return the parts that clients have put themselves, by their first byte in the file."""
        found: dict[int, StoredPart] = {}
        if not self._signer:
            return found
        with _reported():
            for page in obstore.list(self._store, whole_key(upload_id)):
                for entry in page:
                    key = entry["path"]
                    offset = int(key.rpartition("/")[2])
                    found[offset] = StoredPart(key, 0, entry["size"])
        return found

    def assemble(self, parts: Sequence[StoredPart], *, expected: str) -> StoredBlob:
        """Make one blob of the parts, through this process and none of its disks.

        The key is known before, so the parts are sent on as they are read, as one multipart upload
        that is completed only when the digest is right: until then it is invisible.
        """
        hashed = _HashingStream(_joined(self, parts))
        with _reported():
            writer = obstore.open_writer(
                self._store,
                _blob_key(expected),
                buffer_size=TRANSFER_BYTES,
                max_concurrency=TRANSFERS,
            )
        for chunk in hashed:
            with _reported():
                writer.write(chunk)
        stored = hashed.stored(expected, _blob_key)
        with _reported():
            writer.close()
        return stored

    def open(self, key: str, *, start: int = 0, end: int | None = None) -> ByteStream:
        """Stream bytes `start` up to, not including, `end`."""
        _check_key(key)
        _check_range(start, end)
        with _reported(key):
            size_bytes = obstore.head(self._store, key)["size"]
        stop = size_bytes if end is None else min(end, size_bytes)

        # Many short requests, not one long one: a slow reader would let the store hang up, and the
        # bytes of a key never change in between.
        def chunks() -> Generator[bytes]:
            for position in range(start, stop, TRANSFER_BYTES):
                with _reported(key):
                    chunk = obstore.get_range(
                        self._store,
                        key,
                        start=position,
                        end=min(position + TRANSFER_BYTES, stop),
                    )
                yield bytes(chunk)

        return ByteStream(chunks())

    def exists(self, key: str) -> bool:
        """Return whether bytes are stored under this key."""
        return self._stored_at(key) is not None

    def size(self, key: str) -> int | None:
        """Return how many bytes are stored under this key; None if there are none."""
        _check_key(key)
        try:
            with _reported(key):
                return obstore.head(self._store, key)["size"]
        except BytesNotFound:
            return None

    def delete(self, key: str, *, unless_stored_since: datetime | None = None) -> None:
        """Delete these bytes; missing ones are no error."""
        _check_key(key)
        if unless_stored_since is not None:
            stored_at = self._stored_at(key)
            if stored_at is None or stored_at >= unless_stored_since:
                return
        with _reported():
            obstore.delete(self._store, key)

    def stored_before(self, moment: datetime) -> Iterator[str]:
        """Yield the keys of blobs and parts that were last put before this moment."""
        with _reported():
            for page in obstore.list(self._store):
                for entry in page:
                    if entry["last_modified"] < moment and KEY.fullmatch(entry["path"]):
                        yield entry["path"]

    def discard_unfinished(self, moment: datetime) -> int:  # noqa: ARG002 - the protocol's name
        """Return 0: temporary files die with their process, the rest is the lifecycle rule's."""
        return 0

    def check(self) -> None:
        """Raise `errors.StorageDown` unless the bucket answers and knows our keys."""
        with _reported():
            next(iter(obstore.list(self._impatient, "check", chunk_size=1)), None)

    def free_bytes(self) -> None:
        """Return None: a bucket does not say how much fits into it."""

    def _stored_at(self, key: str) -> datetime | None:
        _check_key(key)
        try:
            with _reported(key):
                return obstore.head(self._store, key)["last_modified"]
        except BytesNotFound:
            return None

    def _write(self, hashed: "_HashingStream", expected: str | None, name: "_Namer") -> StoredBlob:
        with _reported():
            spool = tempfile.TemporaryFile(dir=self._spool_folder, buffering=0)  # noqa: SIM115 - closed below
        with spool:
            _drain(hashed, spool.fileno())
            stored = hashed.stored(expected, name)
            spool.seek(0)
            with _reported():
                obstore.put(
                    self._store,
                    stored.key,
                    spool,
                    chunk_size=TRANSFER_BYTES,
                    max_concurrency=TRANSFERS,
                )
        return stored


_Namer = Callable[[str], str]


class _HashingStream:
    """Counts and hashes a stream as it passes."""

    def __init__(self, stream: Source) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def drain(self) -> None:
        """Hash a file to its end, in one buffer that is filled again and again."""
        if not isinstance(self._stream, io.RawIOBase):
            raise TypeError(f"not a file without a buffer: {self._stream!r}")
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while size := self._stream.readinto(buffer):
            self._digest.update(buffer[:size])
            self._size_bytes += size

    def __iter__(self) -> Iterator[bytes]:
        for chunk in _chunks(self._stream):
            self._digest.update(chunk)
            self._size_bytes += len(chunk)
            yield chunk

    def stored(self, expected: str | None, name: _Namer) -> StoredBlob:
        sha256 = self._digest.hexdigest()
        if expected is not None and expected != sha256:
            raise errors.DigestMismatch(
                f"the {self._size_bytes} bytes received have the SHA-256 {sha256}, "
                f"{expected} was announced: send them again"
            )
        return StoredBlob(key=name(sha256), size_bytes=self._size_bytes, sha256=sha256)


def _blob_key(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def _part_key(_sha256: str) -> str:
    return f"parts/{uuid.uuid4().hex}"


def whole_key(upload_id: str) -> str:
    """Return the key of the file that holds all parts of an upload, each at its place.

    In a bucket, it is the prefix of the parts that clients have put themselves.
    """
    return f"parts/{hashlib.sha256(upload_id.encode()).hexdigest()[:32]}"


def _is_one_file(parts: Sequence[StoredPart]) -> bool:
    """Return whether the parts follow one another under one key."""
    end = 0
    for part in parts:
        if part.key != parts[0].key or part.start != end:
            return False
        end += part.size_bytes
    return True


def _check_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise errors.Malformed(f"not a key of this store: {key[:200]!r}")


def _check_range(start: int, end: int | None) -> None:
    if start < 0 or (end is not None and end < start):
        raise errors.Malformed(f"a range must be 0 <= start <= end, got {start} to {end}")


def _chunks(stream: Source) -> Iterator[bytes]:
    # A binary file is iterable as well, but by lines, and a line may be as long as the file.
    if isinstance(stream, BinaryReader):
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
    else:
        yield from stream


def _drain(chunks: Iterable[bytes], descriptor: int) -> None:
    # Only our own writes are reported as trouble of the store: reading the stream may raise OSError
    # too (a caller's time-out is one), and that is not ours to rename.
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            with _reported():
                rest = rest[os.write(descriptor, rest) :]


def _copy(source: int, target: int, offset: int, size_bytes: int) -> None:
    """Copy a file into another one, from `offset` on: by the system where it can.

    Some file systems then share the blocks of both, and nothing is copied at all.
    """
    done = 0
    by_system = hasattr(os, "copy_file_range")
    while done < size_bytes:
        if by_system:
            try:
                copied = os.copy_file_range(source, target, size_bytes - done, done, offset + done)
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                by_system = False
                continue
        else:
            copied = os.pwrite(target, os.pread(source, CHUNK_BYTES, done), offset + done)
        if not copied:
            raise OSError(errno.EIO, "the part that was received became shorter")
        done += copied


def _begin_writing(descriptor: int, offset: int, size_bytes: int) -> None:
    """Let the disk begin to take these bytes, and wait for nothing.

    Linux begins to write out what is to leave its cache; what it has not written yet stays there.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size_bytes, os.POSIX_FADV_DONTNEED)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _joined(storage: Storage, parts: Sequence[StoredPart]) -> Iterator[bytes]:
    for part in parts:
        with storage.open(part.key, start=part.start, end=part.start + part.size_bytes) as stream:
            yield from stream


# The disk, the owner's quota or the largest size of a file is reached.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What systems answer that cannot copy from this file system to that one by themselves.
_CANNOT_COPY = frozenset(
    {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}
)
# What file systems without a second name for a file answer.
_NO_SECOND_NAME = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})


@contextlib.contextmanager
def _reported(key: str | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, obstore.exceptions.BaseError) as error:
        if key is not None and isinstance(error, FileNotFoundError):
            raise BytesNotFound(f"no bytes are stored under {key}") from error
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise errors.StorageFull(
                "the disk of the byte store is full: what was sent is not stored; delete uploads, "
                "versions or jobs that nobody needs, or have the disk enlarged"
            ) from error
        # The cause, which may name hosts and folders, is for the log and not for callers.
        raise errors.StorageDown(
            f"the byte store cannot be used just now ({type(error).__name__}): try again later"
        ) from error


def _modified_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def s3_store(
    bucket: str, prefix: str, options: S3Options, *, timeout: timedelta, patience: timedelta
) -> obstore.store.S3Store:
    """Return a bucket's prefix: a request ends by `timeout`, and is repeated for `patience`."""
    config: obstore.store.S3Config = {"region": options.region}
    if options.endpoint is not None:
        config["endpoint"] = options.endpoint
    if options.access_key_id is not None and options.secret_access_key is not None:
        config["access_key_id"] = options.access_key_id
        config["secret_access_key"] = options.secret_access_key
    return obstore.store.S3Store(
        bucket,
        prefix=prefix or None,
        config=config,
        client_options={
            "allow_http": (options.endpoint or "").startswith("http://"),
            "connect_timeout": min(timeout, timedelta(seconds=5)),
            # Of one request: eight megabytes, not a whole blob.
            "timeout": timeout,
        },
        retry_config={"max_retries": 10 if patience else 0, "retry_timeout": patience},
    )
