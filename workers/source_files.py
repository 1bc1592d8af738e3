"""Makes the files of a data set that refers to a source: fetches it, and has a child prepare it.

The files are in the cache by their digests like all other inputs, and nowhere else: a worker whose
cache does not have them makes them again. Before a job gets them, from the cache or not, the
source must list what it did when the data set was registered.
"""

import contextlib
import errno
import fcntl
import shutil
import tarfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import structlog

from models_registry import errors
from models_registry.artifacts import datasets
from models_registry.artifacts.dataset_sources import PreparedFile, SourceInputs
from models_registry.settings import Settings
from workers import child_files, machine_health, source_reading, staging
from workers.child_requests import ChildDied, ask
from workers.context import Context
from workers.source_reading import Chunks, Listing, SourceReader, SourceRefused

log = structlog.get_logger()

MODULE = "workers.distill.inspection.uploads"
UPLOAD = "upload"
"""The file that the inspecting process reads; a folder is packed into one, as uploads are."""
FOLDER = "dataset"
UNPACKED = 2
"""So many times a source is on the disk while it is prepared."""
_TICK_SECONDS = 0.2


def are_cached(settings: Settings, source: SourceInputs) -> bool:
    """Return whether this machine has all prepared files of a source."""
    return all((settings.cache_dir / file.sha256).exists() for file in source.files)


def room_of(source: SourceInputs) -> int:
    """Return how many bytes of disk it takes to make the files, beside the files themselves.

    The source is there twice meanwhile, as it was fetched and unpacked, and each file where it was
    made and where it is used.
    """
    made = sum(file.size_bytes for file in source.files)
    return UNPACKED * source.pinned.size_bytes + made


def check_room(settings: Settings, listing: Listing, folder: Path) -> None:
    """Raise `OSError` where a folder has no room for a source beside what must stay free."""
    needed = UNPACKED * listing.size_bytes + settings.worker_min_free_bytes
    if machine_health.free_bytes(folder) < needed:
        raise OSError(
            errno.ENOSPC,
            f"the source and what is unpacked of it take {needed} bytes, with those that stay free",
        )


def file_name(name: str, kind: str) -> str:
    """Return the name that the inspecting process is told of what was fetched."""
    return name if kind == "file" else f"{name}.tar"


def fetch(
    reader: SourceReader, listing: Listing, target: Path, *, must_stop: Callable[[], bool]
) -> bool:
    """Write a file, or a folder as a tar archive, to `target`; return whether it is whole.

    It is not where `must_stop` ended it. Raises: as the reader.
    """
    with target.open("xb") as stream:
        for file, chunks in reader.contents(listing):
            is_packed = listing.kind == "folder"
            if is_packed:
                header = tarfile.TarInfo(file.name)
                header.size = file.size_bytes
                stream.write(header.tobuf(tarfile.PAX_FORMAT))
            size_bytes = 0
            for chunk in _until(chunks, must_stop):
                size_bytes += len(chunk)
                stream.write(chunk)
            if must_stop():
                return False
            if size_bytes != file.size_bytes:
                raise source_reading.SourceChanged(
                    f"{file.name!r} has {size_bytes} bytes, {file.size_bytes} were listed"
                )
            if is_packed:
                stream.write(bytes(-size_bytes % tarfile.BLOCKSIZE))
        if listing.kind == "folder":
            stream.write(bytes(2 * tarfile.BLOCKSIZE))
    return True


def _until(chunks: Chunks, must_stop: Callable[[], bool]) -> Chunks:
    for chunk in chunks:
        if must_stop():
            return
        yield chunk


def keep(context: Context, workdir: Path) -> list[PreparedFile]:
    """Describe what a child has prepared in `workdir`, and keep it in the cache if there is room.

    Raises: child_files.OddFile for what is no file of its own.
    """
    settings = context.settings
    made = []
    for name in sorted(path.name for path in (workdir / FOLDER).iterdir()):
        with child_files.open_below(workdir, f"{FOLDER}/{name}") as file:
            sha256, size_bytes = staging.digest_of(file)
        staging.keep(
            workdir / FOLDER / name,
            sha256,
            size_bytes,
            cache=settings.cache_dir,
            keep_free=settings.worker_min_free_bytes,
        )
        made.append(PreparedFile(name, sha256, size_bytes))
    return made


def provide(
    context: Context,
    source: SourceInputs,
    workdir: Path,
    *,
    must_stop: Callable[[], bool],
    without: Collection[str] = (),
) -> None:
    """Put the prepared files of a data set into `workdir / "dataset"`, but for those `without`.

    Where `must_stop` ends it, some of them are missing.

    Raises: SourceRefused where the source has changed, is gone, or may not be read; StorageDown
    where it cannot be reached; Unavailable where the child that prepares it died; OSError.
    """
    place, settings = source.source, context.settings
    pinned = source.pinned
    reader = source_reading.open_source(place.url, settings, project=place.project)
    listing = _listed(reader, pinned.url)
    source_reading.check_unchanged(listing, pinned)
    wanted = [file for file in source.files if not datasets.is_withheld(file.path, without)]
    try:
        missing = _from_cache(settings, wanted, workdir)
        if missing:
            _make(context, source, reader, listing, missing, workdir, must_stop=must_stop)
    except BaseException:
        # What is not whole must not look like a data set.
        shutil.rmtree(workdir / FOLDER, ignore_errors=True)
        raise


def _make(
    context: Context,
    source: SourceInputs,
    reader: SourceReader,
    listing: Listing,
    missing: Sequence[PreparedFile],
    workdir: Path,
    *,
    must_stop: Callable[[], bool],
) -> None:
    """Prepare the files of a source, unless another worker of this machine does it first."""
    settings = context.settings
    lock = settings.cache_dir / f".source-{source.pinned.sha256}.lock"
    with _locked(lock, must_stop) as is_held:
        if not is_held:
            return
        missing = _from_cache(settings, missing, workdir)
        if not missing:
            return
        with staging.scratch(settings.scratch_dir, "source") as scratch:
            is_whole = fetch(reader, listing, scratch / UPLOAD, must_stop=must_stop)
            if is_whole and _prepare(context, source, scratch, must_stop):
                _hand_out(context, source, missing, scratch, workdir)


def _listed(reader: SourceReader, url: str) -> Listing:
    try:
        return reader.listing()
    except SourceRefused as error:
        if error.code in ("source_missing", "source_empty"):
            raise source_reading.SourceChanged(
                f"{url} is no longer there, or empty: restore it as it was, or register its files "
                "again as a new version"
            ) from error
        raise


def _from_cache(
    settings: Settings, files: Sequence[PreparedFile], workdir: Path
) -> list[PreparedFile]:
    """Put files that the cache has into the working folder; return the others."""
    return [
        file
        for file in files
        if not staging.from_cache(
            file.sha256,
            file.size_bytes,
            workdir / FOLDER / file.path,
            cache=settings.cache_dir,
            keep_free=settings.worker_min_free_bytes,
        )
    ]


def _prepare(
    context: Context, source: SourceInputs, scratch: Path, must_stop: Callable[[], bool]
) -> bool:
    """Have a child prepare what was fetched; return whether it has."""
    settings = context.settings
    try:
        report = ask(
            MODULE,
            source.pinned.request,
            scratch,
            launcher=context.launcher,
            must_stop=must_stop,
            memory_bytes=settings.inspection_memory_bytes,
        )
    except ChildDied as error:
        message = f"the process that prepares {source.reference} died: {error}"
        raise errors.Unavailable(message) from error
    if report is None:
        return False
    if report.get("retryable"):
        # Only a full disk is reported so.
        raise OSError(errno.ENOSPC, str(report["message"]))
    if report["type"] == "failure" and report["code"] == "too_large":
        # It took no more on the machine that registered it: another worker may have room.
        raise errors.Unavailable(f"{source.reference} cannot be prepared here: {report['message']}")
    if report["type"] == "failure":
        raise _not_reproduced(source, str(report["message"]))
    return True


def _hand_out(
    context: Context,
    source: SourceInputs,
    missing: Sequence[PreparedFile],
    scratch: Path,
    workdir: Path,
) -> None:
    """Move what was prepared into the working folder, if it is what was registered."""
    (scratch / UPLOAD).unlink()
    made = {file.path: file for file in keep(context, scratch)}
    for file in source.files:
        if made.get(file.path) != file:
            raise _not_reproduced(source, f"{file.path} has other bytes")
    for file in missing:
        if staging.copy(scratch / FOLDER / file.path, workdir / FOLDER / file.path) != file.sha256:
            raise OSError(errno.EIO, f"{file.path} was damaged while it was copied")


def _not_reproduced(source: SourceInputs, because: str) -> SourceRefused:
    return SourceRefused(
        "source_not_reproduced",
        f"{source.pinned.url} lists what it did, but this worker prepares it otherwise than when "
        f"{source.reference} was registered ({because}): its content was changed with sizes and "
        "times kept, or the worker has other versions of its libraries; register it again as a new "
        "version",
    )


@contextlib.contextmanager
def _locked(path: Path, must_stop: Callable[[], bool]) -> Iterator[bool]:
    """Hold the lock of this file; yield False where `must_stop` ended the waiting for it."""
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if must_stop():
                    yield False
                    return
                time.sleep(_TICK_SECONDS)
            else:
                yield True
                return
