"""Messages that leave with their transaction: written here, published by whoever relays first.

A message carries ids only. A crash between commit and publication, or between publication and
its mark, costs latency or a duplicate, never a job: the claim in the database decides.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.persistence import database, tables

Send = Callable[[str, str, dict[str, Any], int], None]  # task, queue, payload, priority

BATCH = 100
KEEP_PUBLISHED = timedelta(hours=24)


def add(
    session: Session, *, task: str, queue: str, payload: dict[str, Any], priority: int = 0
) -> None:
    """Write a message into the caller's transaction."""
    session.add(
        tables.OutboxRow(
            task=task,
            queue=queue,
            payload=payload,
            priority=priority,
            created_at=database.now(session),
        )
    )


def relay(sessions: database.Sessions, send: Send) -> int:
    """Publish what waits, urgent and then old first, and return how many messages went out.

    On PostgreSQL several relays share the work (`SKIP LOCKED`); on SQLite two at a time may send
    a message twice, which is harmless.

    Raises: whatever `send` raises; what was not sent stays for the next relay.
    """
    total = 0
    while sent := _relay_batch(sessions, send):
        total += sent
    return total


def _relay_batch(sessions: database.Sessions, send: Send) -> int:
    row = tables.OutboxRow
    with sessions() as session:
        waiting = session.scalars(
            sa.select(row)
            .where(row.published_at.is_(None))
            .order_by(row.priority.desc(), row.id)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        ).all()
        if session.get_bind().dialect.name == "sqlite":
            session.commit()  # its one writer must not wait for the broker
        sent: list[int] = []
        try:
            for message in waiting:
                send(message.task, message.queue, message.payload, message.priority)
                sent.append(message.id)
        finally:
            # What went out is marked, also when the broker goes away in between.
            published = sa.update(row).where(row.id.in_(sent), row.published_at.is_(None))
            session.execute(published.values(published_at=database.now(session)))
            session.commit()
    return len(sent)


def sweep(session: Session) -> int:
    """Forget messages that were published long ago, and return how many."""
    row = tables.OutboxRow
    published = row.published_at < database.now(session) - KEEP_PUBLISHED
    return len(session.scalars(sa.delete(row).where(published).returning(row.id)).all())


def lag_seconds(session: Session) -> float:
    """Return the age of the oldest message that still waits, 0 when none does."""
    row = tables.OutboxRow
    oldest = session.scalars(
        sa.select(sa.func.min(row.created_at)).where(row.published_at.is_(None))
    ).one()
    return 0.0 if oldest is None else (database.now(session) - oldest).total_seconds()
