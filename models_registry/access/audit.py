"""The audit log: who did what to keys, names, deletions and rules, when, and with which key.

Entries are written in the transaction that does the work, so there is none without the other. They
are never changed or deleted: no function here does, and the database refuses it (migration 0014).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import ids
from models_registry.access.callers import Caller
from models_registry.persistence import database, paging, tables

# Actors that are no callers.
COMMAND_LINE = "command line"
MAINTENANCE = "maintenance"
_SUBJECT_LENGTH = 300


@dataclass(frozen=True, kw_only=True)
class AuditFilters:
    """Filters of the log; an empty field does not restrict."""

    action: str | None = None
    """A whole action such as `key.created`, or what is before the dot."""
    subject: str | None = None
    key_id: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


# Any: facts are JSON, other for each action.
def record(session: Session, caller: Caller, action: str, subject: str, **facts: Any) -> None:
    """Add an entry on what a caller has done; `subject` is the id or reference of the thing."""
    _add(
        session,
        project_id=caller.project_id,
        action=action,
        subject=subject,
        actor=caller.name,
        key_id=caller.key_id if caller.is_key else None,
        request_id=caller.request_id,
        facts=facts,
    )


# Any: as above.
def record_own(
    session: Session, *, project_id: str, actor: str, action: str, subject: str, **facts: Any
) -> None:
    """Add an entry on what was done without a request, by the service or its operator."""
    _add(
        session,
        project_id=project_id,
        action=action,
        subject=subject,
        actor=actor,
        facts=facts,
    )


def page(
    session: Session, *, project_id: str, filters: AuditFilters, wanted: paging.PageRequest
) -> paging.Page[tables.AuditRow]:
    """Return a page of a project's log, newest first."""
    row = tables.AuditRow
    statement = sa.select(row).where(row.project_id == project_id)
    if filters.action is not None:
        one_kind = row.action.startswith(f"{filters.action}.", autoescape=True)
        statement = statement.where(sa.or_(row.action == filters.action, one_kind))
    for column, value in (
        (row.subject, filters.subject),
        (row.key_id, filters.key_id),
        (row.actor, filters.actor),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if filters.since is not None:
        statement = statement.where(row.at >= filters.since)
    if filters.until is not None:
        statement = statement.where(row.at < filters.until)
    return paging.take(session, statement, by=(row.at, row.id), wanted=wanted)


# Any: the columns of the row.
def _add(session: Session, *, subject: str, **columns: Any) -> None:
    session.add(
        tables.AuditRow(
            id=ids.new("aud"),
            at=database.now(session),
            subject=subject[:_SUBJECT_LENGTH],
            **columns,
        )
    )
    session.flush()
