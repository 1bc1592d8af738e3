"""Puts inputs into working folders: from storage, through a cache by digest, verified.

The cache is shared by all attempts on this machine. Files are hard-linked into the working folder,
so dropping an old one from the cache does not affect a running job.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from models_registry import errors
from models_registry.persistence import tables
from models_registry.persistence.storage import Storage

_LOCK = ".lock"


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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file; the kernel releases that of a killed process."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def place(storage: Storage, blob: tables.BlobRow, target: Path, *, cache: Path) -> None:
    """Make `target` the bytes of `blob`, from the cache or from storage.

    Raises: errors.DigestMismatch when storage returns other bytes.
    """
    kept = cache / blob.sha256
    try:
        os.utime(kept)  # recently used
        link(kept, target)
    except FileNotFoundError:  # not there, or dropped in this moment
        fetch(storage, blob, target)
        with contextlib.suppress(FileExistsError):  # another attempt needs the same bytes
            link(target, kept)


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


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy across file systems.

    Raises: FileNotFoundError without a source, FileExistsError where there is a target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".copy-", delete=False) as file:
        try:
            with source.open("rb") as original:
                shutil.copyfileobj(original, file)
            Path(file.name).rename(target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


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
    return sorted(_stats(files), key=lambda pair: pair[0].st_mtime)


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
