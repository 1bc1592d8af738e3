"""The outbox: messages are written in the caller's transaction, and published after it.

A message carries ids only. A crash between commit and publication, or between publication and
its mark, costs latency or a duplicate, never a job: the worker's claim of the job decides.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import tracing
from models_registry.persistence import database, tables
from models_registry.tracing import Tracer

Send = Callable[[str, str, dict[str, Any], int], None]  # task, queue, payload, priority

BATCH = 100
CLAIM = timedelta(seconds=30)
KEEP_PUBLISHED = timedelta(hours=24)


def add(
    session: Session,
    *,
    task: str,
    queue: str,
    payload: dict[str, Any],
    priority: int = 0,
    traceparent: str | None = None,
) -> None:
    """Write a message into the caller's transaction; by default, of the current request's trace."""
    session.add(
        tables.OutboxRow(
            task=task,
            queue=queue,
            payload=payload,
            priority=priority,
            traceparent=traceparent or tracing.current(),
            created_at=database.now(session),
        )
    )


# Any: the columns of a message.
def add_many(session: Session, messages: Sequence[dict[str, Any]], *, now: datetime) -> None:
    """Write messages in one statement; each has `task`, `queue`, `payload` and what `add` takes."""
    if messages:
        rows = [{**message, "created_at": now} for message in messages]
        session.execute(sa.insert(tables.OutboxRow), rows)


def relay(
    sessions: database.Sessions,
    send: Send,
    *,
    claim: timedelta = CLAIM,
    tracer: Tracer = tracing.OFF,
) -> int:
    """Publish waiting messages, by priority and then by age, and return how many were sent.

    Messages are claimed in a short transaction before any is sent, so any number of relays may
    run at once, and none keeps a transaction open while it waits for the broker. A relay that is
    killed keeps its claim until that expires; then the next relay sends those messages.

    `claim` is how long a claim lasts by the database's clock.

    Raises: whatever `send` raises; what was not sent is free for the next relay immediately.
    """
    total = 0
    while True:
        # Half a claim is for the last send, which may begin in time and end late.
        stop_at = time.monotonic() + claim.total_seconds() / 2
        messages, expires_at = _claim(sessions, claim)
        if not messages:
            return total
        sent = _publish(
            sessions, _traced(send, tracer), messages, expires_at=expires_at, stop_at=stop_at
        )
        total += sent
        if sent == len(messages) < BATCH:
            return total  # there were no more


@dataclass(frozen=True)
class _ClaimedMessage:
    """What is published of a row, and where it stands in the order."""

    id: int
    task: str
    queue: str
    payload: dict[str, Any]
    priority: int
    traceparent: str | None
    created_at: datetime


def _claim(
    sessions: database.Sessions, claim: timedelta
) -> tuple[list[_ClaimedMessage], datetime | None]:
    """Claim the next batch, and return it with the time at which the claim expires, if any."""
    with database.one_statement(sessions) as session:
        if session.get_bind().dialect.name == "postgresql":
            found = session.execute(_CLAIM_BY_SERVER, {"claim": claim}).all()
        else:
            now = database.now(session)
            found = session.execute(_CLAIM, {"now": now, "expires_at": now + claim}).all()
    messages = [_ClaimedMessage(*columns) for *columns, _ in found]
    # No database says in which order it returns what it has changed.
    messages.sort(key=lambda message: (-message.priority, message.id))
    return messages, found[0][-1] if found else None


def _claiming(
    now: sa.ColumnElement[datetime], expires_at: sa.ColumnElement[datetime]
) -> sa.UpdateBase:
    """Return the statement that claims the next batch."""
    row = tables.OutboxRow
    free = (
        sa.select(row.id)
        .where(
            row.published_at.is_(None),
            sa.or_(row.claim_expires_at.is_(None), row.claim_expires_at < now),
        )
        .order_by(row.priority.desc(), row.id)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    columns = [getattr(row, field.name) for field in fields(_ClaimedMessage)]
    claimed = sa.update(row).where(row.id.in_(sa.select(free.c.id)))
    return (
        claimed.values(claim_expires_at=expires_at)
        .returning(*columns, row.claim_expires_at)
        .execution_options(synchronize_session=False)
    )


_CLAIM = _claiming(
    sa.bindparam("now", type_=database.UTCDateTime()),
    sa.bindparam("expires_at", type_=database.UTCDateTime()),
)
# The same for all rows of a statement, which is a transaction of its own here.
_NOW = sa.func.statement_timestamp(type_=database.UTCDateTime())
# Interval has no UTC, and `+` of a UTCDateTime would take the claim for one.
_CLAIM_BY_SERVER = _claiming(_NOW, _NOW.op("+")(sa.bindparam("claim", type_=sa.Interval())))


def _traced(send: Send, tracer: Tracer) -> Callable[[_ClaimedMessage], None]:
    """Return what sends one message, in a span of the trace that the message belongs to."""

    def send_one(message: _ClaimedMessage) -> None:
        span = tracer.begin(
            f"publish {message.task}",
            parent=message.traceparent,
            kind="producer",
            messaging__system="redis",
            messaging__operation__type="send",
            messaging__destination__name=message.queue,
            retort__outbox__seconds=(datetime.now(UTC) - message.created_at).total_seconds(),
        )
        is_sent = False
        try:
            send(message.task, message.queue, message.payload, message.priority)
            is_sent = True
        finally:
            if not is_sent:
                span.fail("not sent")
            span.end()

    return send_one


def _publish(
    sessions: database.Sessions,
    send: Callable[[_ClaimedMessage], None],
    messages: Sequence[_ClaimedMessage],
    *,
    expires_at: datetime | None,
    stop_at: float,
) -> int:
    """Send claimed messages until `stop_at`, and return how many were sent; free the others.

    At least one is sent, so that a slow database does not stop the relay.
    """
    row = tables.OutboxRow
    sent: list[int] = []
    try:
        for message in messages:
            if sent and time.monotonic() >= stop_at:
                break
            send(message)
            sent.append(message.id)
    finally:
        # What was sent is marked, even if the broker fails in between.
        _mark(sessions, sent)
        # A claim that another relay has taken over expires later, and is not touched.
        left = [message.id for message in messages[len(sent) :]]
        if left:
            with sessions.begin() as session:
                ours = sa.update(row).where(row.id.in_(left), row.claim_expires_at == expires_at)
                session.execute(ours.values(claim_expires_at=None))
    return len(sent)


def _mark(sessions: database.Sessions, sent: Sequence[int]) -> None:
    """Record that messages were published now."""
    if not sent:
        return
    with database.one_statement(sessions) as session:
        is_server = session.get_bind().dialect.name == "postgresql"
        now = {} if is_server else {"now": database.now(session)}
        session.execute(_MARK_BY_SERVER if is_server else _MARK, {"sent": sent, **now})


def _marking(now: sa.ColumnElement[datetime]) -> sa.UpdateBase:
    row = tables.OutboxRow
    sent = sa.bindparam("sent", expanding=True, type_=row.id.type)
    published = sa.update(row).where(row.id.in_(sent), row.published_at.is_(None))
    return published.values(published_at=now).execution_options(synchronize_session=False)


_MARK, _MARK_BY_SERVER = (
    _marking(now) for now in (sa.bindparam("now", type_=database.UTCDateTime()), _NOW)
)


def sweep(session: Session) -> int:
    """Delete messages that were published long ago, and return how many."""
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
