"""Backup and restore of the whole service: `python -m models_registry.backup create|restore DIR`.

A backup is a folder: `database.dump` (`database.sqlite3` of SQLite), and in `bytes` the blobs under
their digests. The service need not stop for it. Blobs are copied before and after the database is
dumped: what the dump names was there before, and is in the first copy, or came since, and is in
the second. So a student that a restored service lists can be downloaded.
"""

import argparse
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from models_registry import errors, settings
from models_registry.jobs import recovery
from models_registry.persistence import database, schema, storage, tables
from models_registry.persistence.storage import LocalStorage, Storage

DUMP = "database.dump"
SQLITE = "database.sqlite3"
BYTES = "bytes"
_BLOB = "sha256/"


class BackupFailed(Exception):
    """A backup or a restore could not be finished; the message says why, and the way out."""


def create(config: settings.Settings, folder: Path) -> dict[str, int]:
    """Write a backup into `folder`, or bring the one that is there up to date.

    Blobs that are there already are not copied again, and none is removed.

    Raises: BackupFailed; errors.StorageDown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, target = storage.from_settings(config), LocalStorage(folder / BYTES)
    copied = _copy_all(source, target)
    _dump(config.database_url, folder)
    named = _blobs(config.database_url)
    copied += _copy_all(source, target)
    missing = {key for key in named if not target.exists(key)}
    if missing:  # a blob whose row went meanwhile was deleted on purpose, after the dump
        missing &= set(_blobs(config.database_url))
    if missing:
        raise BackupFailed(
            f"{len(missing)} blobs that the database names are not in the store, the first is "
            f"{min(missing)}: the store has lost them, and no backup can have them"
        )
    return {"blobs": len(named), "copied": copied}


def restore(config: settings.Settings, folder: Path) -> dict[str, int]:
    """Fill the empty database and the store of these settings from a backup.

    Raises: BackupFailed, also where a blob is missing or damaged; errors.StorageDown.
    """
    if not any((folder / name).is_file() for name in (DUMP, SQLITE)):
        raise BackupFailed(f"{folder} is no backup: it has neither {DUMP} nor {SQLITE}")
    _load(config.database_url, folder)
    engine = database.connect(config.database_url, pool_size=1)
    try:
        schema.upgrade(engine)
        source, target = LocalStorage(folder / BYTES), storage.from_settings(config)
        blobs = _blobs(config.database_url)
        copied = 0
        for key, sha256 in blobs.items():
            if not target.exists(key):
                _copy(source, target, key, sha256)
                copied += 1
        with database.sessions(engine).begin() as session:
            handed_back = recovery.settle(session)
    finally:
        engine.dispose()
    return {"blobs": len(blobs), "copied": copied, "jobs_handed_back": handed_back}


def _copy_all(source: Storage, target: Storage) -> int:
    """Copy the blobs that `target` lacks, and return how many."""
    copied = 0
    for key in source.stored_before(datetime.now(UTC) + timedelta(minutes=1)):
        if key.startswith(_BLOB) and not target.exists(key):
            with contextlib.suppress(storage.BytesNotFound):  # deleted a moment ago
                _copy(source, target, key, key.rpartition("/")[2])
                copied += 1
    return copied


def _copy(source: Storage, target: Storage, key: str, sha256: str) -> None:
    try:
        with source.open(key) as stream:
            target.put(stream, expected=sha256)
    except errors.DigestMismatch as error:
        raise BackupFailed(
            f"the bytes of {key} are damaged where they are copied from: {error}"
        ) from error


def _blobs(database_url: str) -> dict[str, str]:
    """Return the SHA-256 of every blob that the database names, by its key."""
    engine = database.connect(database_url, pool_size=1)
    row = tables.BlobRow
    try:
        with engine.execution_options(read_only=True).connect() as connection:
            rows = connection.execute(sa.select(row.storage_key, row.sha256))
            return {key: str(sha256) for key, sha256 in rows}
    finally:
        engine.dispose()


# -- the database ------------------------------------------------------------------------------


def _dump(database_url: str, folder: Path) -> None:
    """Write a consistent copy of the database; the one before stays until it is complete."""
    url = sa.make_url(database_url)
    name = SQLITE if _is_sqlite(url) else DUMP
    fresh = folder / f"{name}.new"
    fresh.unlink(missing_ok=True)
    if _is_sqlite(url):
        with contextlib.closing(sqlite3.connect(f"file:{url.database}?mode=ro", uri=True)) as open_:
            open_.execute("VACUUM INTO ?", (str(fresh),))
    else:
        with _connection_of(url) as connection:
            _run("pg_dump", "--format=custom", "--no-owner", f"--file={fresh}", connection)
    fresh.replace(folder / name)


def _load(database_url: str, folder: Path) -> None:
    """Fill an empty database from a dump.

    Raises: BackupFailed where the database is not empty, or the dump is of the other kind.
    """
    url = sa.make_url(database_url)
    dump = folder / (SQLITE if _is_sqlite(url) else DUMP)
    if not dump.is_file():
        raise BackupFailed(
            f"{folder} is a backup of another kind of database: {dump.name} is not there; set "
            "RETORT_DATABASE_URL to a database of that kind"
        )
    _refuse_used(url)
    if _is_sqlite(url):
        target = Path(url.database or "")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dump, target)
        return
    with _connection_of(url) as connection:
        _run(
            *("pg_restore", "--no-owner", "--exit-on-error", "--single-transaction"),
            f"--dbname={connection}",
            str(dump),
        )


def _refuse_used(url: sa.URL) -> None:
    engine = database.connect(url.render_as_string(hide_password=False), pool_size=1)
    try:
        found = sa.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if found:
        raise BackupFailed(
            f"the database has {len(found)} tables already: restore into an empty one, and let "
            "RETORT_DATABASE_URL name it"
        )


@contextlib.contextmanager
def _connection_of(url: sa.URL) -> Iterator[str]:
    """Yield libpq's connection string; the password stands in a file that only we can read."""
    plain = url.set(drivername="postgresql", password=None)
    with tempfile.TemporaryDirectory(prefix="retort-backup-") as home:
        if url.password is not None:
            path = Path(home) / "password"
            path.touch(mode=0o600)
            escaped = str(url.password).replace("\\", "\\\\").replace(":", "\\:")
            path.write_text(f"*:*:*:*:{escaped}\n")
            plain = plain.update_query_dict({"passfile": str(path)})
        yield plain.render_as_string(hide_password=False)


def _run(program: str, *arguments: str) -> None:
    if shutil.which(program) is None:
        raise BackupFailed(
            f"{program} is not installed here: install PostgreSQL's client programs, of the "
            "server's version or a newer one"
        )
    ended = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BackupFailed(f"{program} failed: {ended.stderr.strip()[-2000:]}")


def _is_sqlite(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a backup, or restore one; the settings say of what and to where."""
    parser = argparse.ArgumentParser(prog="python -m models_registry.backup", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    for verb, about in (
        ("create", "write or renew a backup"),
        ("restore", "fill an empty service"),
    ):
        verbs.add_parser(verb, help=about).add_argument("folder", type=Path, help="of the backup")
    wanted = parser.parse_args(arguments)
    work = create if wanted.verb == "create" else restore
    try:
        done = work(settings.Settings(), wanted.folder)
    except (BackupFailed, errors.RegistryError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    facts = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in done.items())
    sys.stdout.write(f"{wanted.verb}: {facts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
