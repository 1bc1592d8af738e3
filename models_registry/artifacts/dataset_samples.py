"""Sample sheets: a few small pictures of each class of a data set, to look at.

A sheet is made by a worker when somebody first asks for it, kept for weeks, and asked for again
after that. A request whose worker is lost expires in minutes, as does a failure.
"""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.access import quotas
from models_registry.artifacts import datasets
from models_registry.persistence import database, outbox, tables

TASK, QUEUE = "datasets.sample", "inspect"
QUEUED, RUNNING, READY, FAILED = "queued", "running", "ready", "failed"
SETTLED = (READY, FAILED)
KEPT_FOR = timedelta(days=30)
"""Of a sheet that was made; the next request makes it anew."""
MADE_WITHIN = timedelta(minutes=30)
"""Of a request that a worker has begun with: it may have much to fetch."""
TRIED_FOR = timedelta(minutes=5)
"""Of a request without an answer, and of a failure."""


def request(
    session: Session, *, project_id: str, version: tables.DatasetVersionRow
) -> tables.DatasetSamplesRow:
    """Return the sheet of a version, or have a worker make it.

    Raises: errors.Conflict for a version that is not ready.
    """
    if version.state != "ready":
        raise errors.Conflict(
            f"{datasets.reference_of(version)} is {version.state}: only a version that is ready "
            "has pictures to show",
            code="version_not_ready",
        )
    kept = find(session, version.id)
    if kept is not None:
        return kept
    # Of requests at the same time, the second finds the first.
    quotas.hold(session, project_id)
    kept = find(session, version.id)
    if kept is not None:
        return kept
    row, now = tables.DatasetSamplesRow, database.now(session)
    session.execute(sa.delete(row).where(row.version_id == version.id))
    made = row(version_id=version.id, state=QUEUED, created_at=now, expires_at=now + TRIED_FOR)
    session.add(made)
    session.flush()
    # Before the inspections that wait in the same queue: somebody is looking.
    outbox.add(session, task=TASK, queue=QUEUE, payload={"version_id": version.id}, priority=9)
    session.flush()
    return made


def find(session: Session, version_id: str) -> tables.DatasetSamplesRow | None:
    """Return the sheet of a version as it is now, or None without one that is still valid."""
    row = tables.DatasetSamplesRow
    query = sa.select(row).where(
        row.version_id == version_id, row.expires_at > database.now(session)
    )
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def claim(session: Session, version_id: str) -> tables.DatasetVersionRow | None:
    """Return the version whose sheet waits for a worker, once; None where none waits."""
    row, now = tables.DatasetSamplesRow, database.now(session)
    claimed = session.scalars(
        sa.update(row)
        .where(row.version_id == version_id, row.state == QUEUED, row.expires_at > now)
        .values(state=RUNNING, expires_at=now + MADE_WITHIN)
        .returning(row.version_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if claimed is None else session.get_one(tables.DatasetVersionRow, claimed)


# Any: JSON.
def finish(
    session: Session,
    version_id: str,
    *,
    sheet: dict[str, Any] | None = None,
    failure: dict[str, Any] | None = None,
) -> None:
    """Record the sheet, or why there is none."""
    row = session.get(
        tables.DatasetSamplesRow, version_id, populate_existing=True, with_for_update=True
    )
    if row is None:
        return  # its version was deleted
    row.state = READY if failure is None else FAILED
    row.sheet, row.failure = sheet, failure
    row.expires_at = database.now(session) + (KEPT_FOR if failure is None else TRIED_FOR)
    session.flush()


def sweep(session: Session) -> int:
    """Delete what has expired; return how many."""
    row = tables.DatasetSamplesRow
    expired = sa.delete(row).where(row.expires_at <= database.now(session))
    found = session.scalars(
        expired.returning(row.version_id).execution_options(synchronize_session=False)
    )
    return len(found.all())
