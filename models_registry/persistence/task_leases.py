"""Leases of maintenance: work that one process at a time does, for as long as it shows its life.

What runs under a lease is harmless when it runs twice; the lease saves the work, and the locks.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.persistence import database, tables

HELD_FOR = timedelta(minutes=5)


@dataclass(frozen=True)
class TaskLease:
    """The right to do one kind of maintenance."""

    sessions: database.Sessions
    name: str
    owner: str

    def prove(self, session: Session) -> None:
        """Extend the lease in the caller's transaction, which no longer counts without it.

        Raises: errors.StaleFence when another process has taken it over.
        """
        row = tables.TaskLeaseRow
        still = session.scalars(
            sa.update(row)
            .where(row.name == self.name, row.owner == self.owner)
            .values(expires_at=database.now(session) + HELD_FOR)
            .returning(row.name)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if still is None:
            raise errors.StaleFence(f"another process has taken over {self.name}")


@contextlib.contextmanager
def held(sessions: database.Sessions, name: str) -> Iterator[TaskLease | None]:
    """Yield the lease, or None where another process holds it."""
    lease = TaskLease(sessions, name, ids.new("run"))
    with sessions.begin() as session:
        is_ours = _take(session, lease)
    if not is_ours:
        yield None
        return
    try:
        yield lease
    finally:
        row = tables.TaskLeaseRow
        with sessions.begin() as session:
            session.execute(sa.delete(row).where(row.name == name, row.owner == lease.owner))


def _take(session: Session, lease: TaskLease) -> bool:
    row = tables.TaskLeaseRow
    now = database.now(session)
    values = {"owner": lease.owner, "expires_at": now + HELD_FOR}
    taken = session.scalars(
        database.insert(session, row)
        .values(name=lease.name, **values)
        .on_conflict_do_update(index_elements=[row.name], set_=values, where=row.expires_at < now)
        .returning(row.name)
    ).one_or_none()
    return taken is not None
