"""Puts inputs into working folders: from storage, through a cache by digest, verified each time.

The cache is shared by all attempts on this machine. A working folder gets copies, never the cache's
own file: the engine runs as the worker's user, and what it writes must not reach the next job. The
copy is verified on its way, so a damaged cache trains nobody. Where the file system can share
blocks (btrfs, XFS), a copy takes no room; where there is no room, the file leaves the cache.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import structlog

from models_registry import errors
from models_registry.persistence import tables
from models_registry.persistence.storage import Storage

log = structlog.get_logger()

_LOCK = ".lock"
_READ_ONLY = 0o444
_CHUNK_BYTES = 2**20
# A copy that is still being made begins with a dot; an older one was left by a killed process.
_UNFINISHED_SECONDS = 3600.0
_FICLONE = 0x40049409  # of <linux/fs.h>


@contextlib.contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """Yield a new private folder that is removed at the end.

    It is locked while in use, so that a later sweep can tell the folder of a killed process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with locked(folder / _LOCK):  # or a sweep might find the folder before it is locked
            path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
            held.callback(shutil.rmtree, path, ignore_errors=True)
            held.enter_context(locked(path / _LOCK))
        yield path


def sweep_scratch(folder: Path) -> int:
    """Remove working folders whose process was killed; return how many."""
    if not folder.exists():
        return 0
    removed = 0
    with locked(folder / _LOCK):
        for lock_path in folder.glob(f"*/{_LOCK}"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError):  # in use; just removed
                with lock_path.open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
                removed += 1
    return removed


def is_in_use(folder: Path) -> bool:
    """Return whether a process that lives works in one of the working folders."""
    for lock_path in folder.glob(f"*/{_LOCK}"):
        with contextlib.suppress(FileNotFoundError), lock_path.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file; the kernel releases that of a killed process."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def place(
    storage: Storage, blob: tables.BlobRow, target: Path, *, cache: Path, keep_free: int = 0
) -> None:
    """Make `target` a read-only file with the bytes of `blob`, from the cache or from storage.

    It stays in the cache as well, unless less than `keep_free` bytes of disk would be left.
    Raises: errors.DigestMismatch when storage returns other bytes.
    """
    size_bytes = blob.size_bytes
    if from_cache(blob.sha256, size_bytes, target, cache=cache, keep_free=keep_free):
        return
    fetch(storage, blob, target)
    target.chmod(_READ_ONLY)
    keep(target, blob.sha256, size_bytes, cache=cache, keep_free=keep_free)


def from_cache(
    sha256: str, size_bytes: int, target: Path, *, cache: Path, keep_free: int = 0
) -> bool:
    """Make `target` a read-only file with the cached bytes of a digest; return whether there are.

    They stay in the cache as well, unless less than `keep_free` bytes of disk would be left. What
    was damaged there is dropped.
    """
    kept = cache / sha256
    has_room = shutil.disk_usage(cache).free >= size_bytes + keep_free
    try:
        digest = copy(kept, target) if has_room else _move(kept, target)
    except FileNotFoundError:  # not there, or dropped in this moment
        return False
    if digest == sha256:
        with contextlib.suppress(FileNotFoundError):  # moved, or dropped
            os.utime(kept)  # recently used
        return True
    log.warning("cache_damaged", sha256=sha256, found=digest)
    kept.unlink(missing_ok=True)
    target.unlink()
    return False


def keep(source: Path, sha256: str, size_bytes: int, *, cache: Path, keep_free: int = 0) -> None:
    """Copy a file with this digest into the cache, unless too little of the disk would be left."""
    if shutil.disk_usage(cache).free >= size_bytes + keep_free:
        copy(source, cache / sha256)


def fetch(storage: Storage, blob: tables.BlobRow, target: Path) -> None:
    """Copy a blob from storage to `target`, all or nothing.

    Raises: errors.DigestMismatch when storage returns other bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".fetch-", delete=False) as file:
        temporary = Path(file.name)
        try:
            with storage.open(blob.storage_key) as chunks:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != blob.sha256:
                raise errors.DigestMismatch(
                    f"storage returned other bytes for sha256:{blob.sha256}: restore the object"
                )
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave half a file in the cache
            temporary.rename(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def copy(source: Path, target: Path) -> str:
    """Make `target` a read-only copy of `source`, all or nothing; return the copy's SHA-256.

    Raises: FileNotFoundError without a source.
    """
    with source.open("rb") as original:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".copy-", delete=False) as file:
            try:
                if not _share_blocks(original.fileno(), file.fileno()):
                    shutil.copyfileobj(original, file, _CHUNK_BYTES)
                file.flush()
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fchmod(file.fileno(), _READ_ONLY)
                Path(file.name).rename(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    return digest


def digest_of(file: BinaryIO) -> tuple[str, int]:
    """Return SHA-256 and size in bytes of what an open file has from here to its end."""
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
    return digest.hexdigest(), size_bytes


def _share_blocks(source: int, target: int) -> bool:
    """Let two files share their blocks until one is written; return whether that is possible."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _move(source: Path, target: Path) -> str:
    """Move a file, and return its SHA-256. Raises: FileNotFoundError without a source."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system
        return copy(source, target)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write down the digests of a folder's files, for `is_intact`."""
    seal_of(folder).write_text(json.dumps(_digests(folder)))


def is_intact(folder: Path) -> bool:
    """Return whether a sealed folder is as it was; anything else is removed."""
    try:
        if json.loads(seal_of(folder).read_text()) == _digests(folder):
            return True
        log.warning("cache_damaged", folder=folder.name)
    except (FileNotFoundError, ValueError):
        pass  # never sealed, or killed meanwhile
    if folder.exists():
        shutil.rmtree(folder)
    return False


def seal_of(folder: Path) -> Path:
    """Return the file that has the digests of a sealed folder."""
    return folder.with_name(f".{folder.name}.sha256")


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def trim(cache: Path, *, limit_bytes: int) -> int:
    """Drop the least recently used blobs above `limit_bytes`; return how many bytes went.

    Built-in data sets, in a folder of their own, are small and stay.
    """
    stats = _by_age(cache)
    return _drop(stats, sum(stat.st_size for stat, _ in stats) - limit_bytes)


def free(cache: Path, *, size_bytes: int, keep: Collection[str]) -> int:
    """Drop the least recently used blobs until this much is free; return how many bytes went.

    Those with a digest in `keep` stay.
    """
    return _drop([pair for pair in _by_age(cache) if pair[1].name not in keep], size_bytes)


def _by_age(cache: Path) -> list[tuple[os.stat_result, Path]]:
    files = [path for path in cache.glob("*") if path.is_file()]
    stats = [
        (stat, path)
        for stat, path in _stats(files)
        if not path.name.startswith(".") or time.time() - stat.st_mtime > _UNFINISHED_SECONDS
    ]
    return sorted(stats, key=lambda pair: pair[0].st_mtime)


def _drop(stats: list[tuple[os.stat_result, Path]], size_bytes: int) -> int:
    dropped = 0
    for stat, path in stats:
        if dropped >= size_bytes:
            break
        path.unlink(missing_ok=True)
        dropped += stat.st_size
    return dropped


def _stats(paths: list[Path]) -> Iterator[tuple[os.stat_result, Path]]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process trims as well
            yield path.stat(), path
