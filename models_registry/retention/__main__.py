"""What retention would delete, of all projects: `python -m models_registry.retention --dry-run`.

Without `--dry-run` it marks and sweeps at once, as maintenance does every hour.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa

from models_registry import errors
from models_registry.persistence import database, storage, tables, task_leases
from models_registry.retention import blobs, erasures, sweep
from models_registry.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what could be deleted, or delete it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m models_registry.retention")
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, and say what would")
    wanted = parser.parse_args(arguments)
    settings = Settings()
    engine = database.connect(settings.database_url, pool_size=2)
    sessions, store = database.sessions(engine), storage.from_settings(settings)
    grace = timedelta(seconds=settings.retention_grace_seconds)
    try:
        lines = (_previewed if wanted.dry_run else _swept)(sessions, store, grace)
    except errors.RegistryError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    finally:
        engine.dispose()
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _previewed(sessions: database.Sessions, store: storage.Storage, grace: timedelta) -> list[str]:
    lines = ["project  kind  jobs  entries  bytes  ready-bytes"]
    with sessions() as session:
        for project in session.scalars(sa.select(tables.ProjectRow).order_by(tables.ProjectRow.id)):
            lines += [
                f"{project.name}  {kind.kind}  {kind.jobs}  {kind.entries}  {kind.size_bytes}  "
                f"{kind.ready_bytes}"
                for kind in sweep.preview(session, project_id=project.id, grace=grace)
                if kind.entries
            ]
        waiting = erasures.waiting(session)
    found = blobs.preview(sessions, store, grace=grace)
    return [
        *lines,
        f"blobs that nothing needs: {found.blobs} of {found.size_bytes} bytes; "
        f"{found.ready_blobs} of {found.ready_bytes} go at the next sweep",
        f"stored bytes without a row: {found.orphans} of {found.orphan_bytes} bytes",
        f"erased blobs still in the store: {waiting}",
    ]


def _swept(sessions: database.Sessions, store: storage.Storage, grace: timedelta) -> list[str]:
    with task_leases.held(sessions, "collect") as lease:
        if lease is None:
            raise errors.Conflict("another process sweeps just now: try again in a few minutes")
        done = sweep.sweep(lease, grace=grace)
        erased = erasures.finish(sessions, store, grace=grace)
        swept = blobs.sweep(sessions, store, grace=grace)
    lines = [
        f"{kind}: {one.entries} of {one.size_bytes} bytes, {one.jobs} jobs"
        for kind, one in done.items()
    ]
    return [*lines, f"erased blobs: {erased}", f"blobs: {swept}"]


if __name__ == "__main__":
    sys.exit(main())
