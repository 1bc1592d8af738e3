"""Deliveries of events to webhook endpoints: written with the event, sent until answered.

A delivery is a row of the transaction that writes its event, so neither is there without the
other. A worker claims it, sends it and records the answer, each in a transaction of its own; a
worker that is killed in between leaves a claim that expires, and the delivery is sent again with
the same id. So each is delivered at least once, and in no particular order.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.persistence import database, outbox, paging, tables
from models_registry.webhooks import event_types

log = structlog.get_logger()

QUEUE = "webhooks"
TASK = "webhooks.deliver"
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
STATES = (PENDING, DELIVERED, FAILED)
# A slow receiver must not keep all senders from the others.
MOST_AT_A_TIME = 2
BATCH = 100
KEPT_FOR = timedelta(days=30)
FORGOTTEN_AT_ONCE = 5_000
"""Deliveries that one transaction deletes at most."""
LONGEST_RETRY_AFTER = timedelta(days=1)
_BUSY_SECONDS = 2.0
_JITTER = 0.2
_GONE = 410


@dataclass(frozen=True)
class Outgoing:
    """One attempt of a delivery: what is sent where, signed with which secrets."""

    delivery_id: str
    endpoint_id: str
    attempt: int
    url: str
    secrets: tuple[str, ...]
    message_id: str
    body: bytes
    at: datetime


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended: the response, or why there was none."""

    status: int | None
    error: str | None  # None for a success
    excerpt: str | None = None  # of the response's body
    retry_after_seconds: float | None = None


@dataclass(frozen=True)
class Policy:
    """How long is waited before each attempt, and after how long an endpoint is disabled."""

    delays_seconds: tuple[float, ...]
    disable_after_seconds: float


# -- written with the event --------------------------------------------------------------------


@dataclass(frozen=True)
class Occurrence:
    """An event of a job, and the state that it left the job in."""

    job: tables.JobRow
    event: tables.EventRow
    state: str
    state_reason: str | None

    @classmethod
    def of(cls, job: tables.JobRow, event: tables.EventRow) -> Self:
        """Return an event with the state that its job has just now."""
        return cls(job, event, job.state, job.state_reason)


def record(session: Session, occurred: Sequence[Occurrence]) -> None:
    """Write the deliveries of events of one project's jobs, in the caller's transaction."""
    if not occurred:
        return
    endpoints = _subscribed(session, project_id=occurred[0].job.project_id)
    if endpoints:
        _write(session, endpoints, [_of_job(one) for one in occurred])


@dataclass(frozen=True)
class _Message:
    id: str
    type: str
    payload: dict[str, Any]


def _of_job(occurrence: Occurrence) -> _Message:
    """Return the thin payload of a job's event: a receiver fetches the rest."""
    job, event = occurrence.job, occurrence.event
    facts = {
        "project_id": job.project_id,
        "job_id": job.id,
        "study_id": job.study_id,
        "sequence": event.sequence,
        "state": occurrence.state,
        "state_reason": occurrence.state_reason,
        "attempt": job.attempt,
    }
    # Derived from the event, so that it is the same for whoever is told, however often.
    message_id = f"msg_{job.id.removeprefix('job_')}_{event.sequence}"
    return _Message(message_id, event.type, _payload(event.type, event.at, facts))


def _payload(kind: str, at: datetime, facts: dict[str, Any]) -> dict[str, Any]:
    moment = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return {"type": kind, "timestamp": moment, "data": facts}


def _subscribed(session: Session, *, project_id: str) -> Sequence[tables.WebhookEndpointRow]:
    return session.scalars(_SUBSCRIBED, {"project_id": project_id}).all()


_SUBSCRIBED = (
    sa.select(tables.WebhookEndpointRow)
    .where(
        tables.WebhookEndpointRow.project_id == sa.bindparam("project_id"),
        tables.WebhookEndpointRow.enabled,
    )
    # Held, so that none is deleted before its deliveries are there.
    .with_for_update(read=True, key_share=True)
)


def _write(
    session: Session,
    endpoints: Sequence[tables.WebhookEndpointRow],
    messages: Sequence[_Message],
) -> None:
    now = database.now(session)
    rows = [
        {
            "id": ids.new("whd"),
            "endpoint_id": endpoint.id,
            "message_id": message.id,
            "type": message.type,
            "payload": message.payload,
            "state": PENDING,
            "attempts": 0,
            "failures": 0,
            "next_attempt_at": now,
            "announced_at": now,
            "created_at": now,
        }
        for message in messages
        for endpoint in endpoints
        if endpoint.events is None or message.type in endpoint.events
    ]
    if rows:
        session.execute(sa.insert(tables.WebhookDeliveryRow), rows)
        outbox.add_many(session, [_announcement(row["id"]) for row in rows], now=now)


def _announcement(delivery_id: Any) -> dict[str, Any]:
    payload = {"delivery_id": delivery_id}
    return {"task": TASK, "queue": QUEUE, "payload": payload, "priority": 0}


# -- what a sender does ------------------------------------------------------------------------


def claim(session: Session, *, delivery_id: str, lease_seconds: float) -> Outgoing | None:
    """Claim a delivery that is due, or return None; the attempt counts from now on."""
    row = tables.WebhookDeliveryRow
    delivery = session.get(row, delivery_id, with_for_update=True, populate_existing=True)
    now = database.now(session)
    if delivery is None or delivery.state != PENDING or delivery.next_attempt_at > now:
        return None
    if delivery.claim_expires_at is not None and delivery.claim_expires_at > now:
        return None
    endpoint = session.get_one(
        tables.WebhookEndpointRow, delivery.endpoint_id, populate_existing=True
    )
    if not endpoint.enabled:
        return None  # sent when it is enabled again
    in_flight = sa.select(sa.func.count()).where(
        row.endpoint_id == endpoint.id, row.state == PENDING, row.claim_expires_at > now
    )
    if session.scalars(in_flight).one() >= MOST_AT_A_TIME:
        delivery.next_attempt_at = now + timedelta(seconds=_BUSY_SECONDS)
        delivery.announced_at = None
        return None
    delivery.attempts += 1
    delivery.claim_expires_at = now + timedelta(seconds=lease_seconds)
    session.add(
        tables.WebhookAttemptRow(delivery_id=delivery.id, number=delivery.attempts, started_at=now)
    )
    session.flush()
    return Outgoing(
        delivery_id=delivery.id,
        endpoint_id=endpoint.id,
        attempt=delivery.attempts,
        url=endpoint.url,
        secrets=_secrets_in_force(endpoint, now),
        message_id=delivery.message_id,
        # In one order: PostgreSQL keeps none, and a repeated body should be the same bytes.
        body=json.dumps(delivery.payload, sort_keys=True, separators=(",", ":")).encode(),
        at=now,
    )


def _secrets_in_force(endpoint: tables.WebhookEndpointRow, now: datetime) -> tuple[str, ...]:
    expires = endpoint.former_secret_expires_at
    if endpoint.former_secret is not None and expires is not None and expires > now:
        return endpoint.secret, endpoint.former_secret
    return (endpoint.secret,)


def finish(session: Session, sent: Outgoing, outcome: Outcome, policy: Policy) -> None:
    """Record how an attempt ended, and what follows: success, another attempt, or failure.

    A delivery that another sender has claimed since is left to that one.
    """
    row = tables.WebhookDeliveryRow
    delivery = session.get(row, sent.delivery_id, with_for_update=True, populate_existing=True)
    if delivery is None:
        return  # its endpoint was deleted
    now = database.now(session)
    attempt = session.get_one(tables.WebhookAttemptRow, (delivery.id, sent.attempt))
    attempt.ended_at, attempt.status = now, outcome.status
    attempt.error, attempt.excerpt = outcome.error, outcome.excerpt
    if delivery.attempts != sent.attempt or delivery.state != PENDING:
        session.flush()
        return
    delivery.claim_expires_at = None
    endpoint = session.get_one(
        tables.WebhookEndpointRow,
        sent.endpoint_id,
        with_for_update={"key_share": True},  # jobs that are told of meanwhile do not wait for it
        populate_existing=True,
    )
    if outcome.error is None:
        delivery.state, delivery.ended_at = DELIVERED, now
        endpoint.failing_since, endpoint.last_delivered_at = None, now
        session.flush()
        return
    log.warning(
        "webhook_failed",
        delivery_id=delivery.id,
        endpoint_id=endpoint.id,
        attempt=sent.attempt,
        status=outcome.status,
        error=outcome.error,
    )
    _plan_next(delivery, outcome, policy, now)
    endpoint.failing_since = endpoint.failing_since or now
    session.flush()
    _disable_if_hopeless(session, endpoint, outcome, policy, now)


def _plan_next(
    delivery: tables.WebhookDeliveryRow, outcome: Outcome, policy: Policy, now: datetime
) -> None:
    delivery.failures += 1
    if outcome.status == _GONE or delivery.failures >= len(policy.delays_seconds):
        delivery.state, delivery.ended_at = FAILED, now
        return
    seconds = policy.delays_seconds[delivery.failures] * random.uniform(1.0, 1.0 + _JITTER)
    asked = timedelta(seconds=outcome.retry_after_seconds or 0.0)
    wait = max(timedelta(seconds=seconds), min(asked, LONGEST_RETRY_AFTER))
    delivery.next_attempt_at = now + wait
    delivery.announced_at = None


def _disable_if_hopeless(
    session: Session,
    endpoint: tables.WebhookEndpointRow,
    outcome: Outcome,
    policy: Policy,
    now: datetime,
) -> None:
    if not endpoint.enabled or endpoint.failing_since is None:
        return
    if outcome.status == _GONE:
        message = "It answered 410 Gone, by which a receiver asks not to be told any more."
        disable(session, endpoint, reason="gone", message=message)
    elif now - endpoint.failing_since >= timedelta(seconds=policy.disable_after_seconds):
        since = endpoint.failing_since.astimezone(UTC).isoformat(timespec="seconds")
        message = f"Every delivery since {since} has failed; the last said: {outcome.error}"
        disable(session, endpoint, reason="failing", message=message)


def disable(
    session: Session, endpoint: tables.WebhookEndpointRow, *, reason: str, message: str
) -> None:
    """Disable an endpoint, and tell the project's other endpoints."""
    now = database.now(session)
    endpoint.enabled, endpoint.disabled_at = False, now
    endpoint.disabled_reason, endpoint.disabled_message = reason, message
    endpoint.updated_at = now
    session.flush()
    log.warning("webhook_endpoint_disabled", endpoint_id=endpoint.id, reason=reason)
    facts = {
        "project_id": endpoint.project_id,
        "webhook_endpoint_id": endpoint.id,
        "reason": reason,
        "message": message,
    }
    kind = event_types.ENDPOINT_DISABLED
    told = _Message(ids.new("msg"), kind, _payload(kind, now, facts))
    _write(session, _subscribed(session, project_id=endpoint.project_id), [told])


# -- what time does ----------------------------------------------------------------------------


def republish(session: Session, *, after_seconds: float) -> int:
    """Announce deliveries that are due and that nobody sends, and return how many."""
    row, endpoint = tables.WebhookDeliveryRow, tables.WebhookEndpointRow
    now = database.now(session)
    early = now - timedelta(seconds=after_seconds)
    due = (
        sa.select(row)
        .join(endpoint, endpoint.id == row.endpoint_id)
        .where(
            row.state == PENDING,
            row.next_attempt_at <= now,
            endpoint.enabled,
            sa.or_(row.claim_expires_at.is_(None), row.claim_expires_at < now),
            sa.or_(row.announced_at.is_(None), row.announced_at < early),
        )
        .order_by(row.next_attempt_at)
        .limit(BATCH)
        .with_for_update(of=row, skip_locked=True)
    )
    waiting = session.scalars(due).all()
    for delivery in waiting:
        delivery.announced_at = now
    session.flush()
    outbox.add_many(session, [_announcement(delivery.id) for delivery in waiting], now=now)
    return len(waiting)


def forget(session: Session) -> int:
    """Delete some deliveries that were made long ago, with their attempts; return how many."""
    row = tables.WebhookDeliveryRow
    old = (
        sa.select(row.id)
        .where(row.created_at < database.now(session) - KEPT_FOR)
        .order_by(row.created_at)
        .limit(FORGOTTEN_AT_ONCE)
    )
    return len(session.scalars(sa.delete(row).where(row.id.in_(old)).returning(row.id)).all())


def count_states(session: Session) -> dict[str, int]:
    """Return how many deliveries are in each state."""
    row = tables.WebhookDeliveryRow
    counted = dict.fromkeys(STATES, 0)
    for state, count in session.execute(sa.select(row.state, sa.func.count()).group_by(row.state)):
        counted[state] = count
    return counted


def lag_seconds(session: Session) -> float:
    """Return for how long the oldest delivery that could be sent now has been due; 0 for none."""
    row, endpoint = tables.WebhookDeliveryRow, tables.WebhookEndpointRow
    oldest = session.scalars(
        sa.select(sa.func.min(row.next_attempt_at))
        .join(endpoint, endpoint.id == row.endpoint_id)
        .where(row.state == PENDING, endpoint.enabled)
    ).one()
    if oldest is None:
        return 0.0
    return max(0.0, (database.now(session) - oldest).total_seconds())


# -- what a user does --------------------------------------------------------------------------


def page(
    session: Session,
    *,
    endpoint_id: str,
    wanted: paging.PageRequest,
    state: str | None = None,
) -> paging.Page[tables.WebhookDeliveryRow]:
    """Return a page of an endpoint's deliveries, newest first."""
    row = tables.WebhookDeliveryRow
    query = sa.select(row).where(row.endpoint_id == endpoint_id)
    if state is not None:
        query = query.where(row.state == state)
    return paging.take(session, query, by=(row.created_at, row.id), wanted=wanted)


def get(session: Session, *, endpoint_id: str, delivery_id: str) -> tables.WebhookDeliveryRow:
    """Return a delivery of an endpoint.

    Raises: errors.NotFound.
    """
    found = session.get(tables.WebhookDeliveryRow, delivery_id)
    if found is None or found.endpoint_id != endpoint_id:
        raise errors.NotFound(f"There is no delivery {delivery_id[:60]!r} to {endpoint_id!r}.")
    return found


def attempts(
    session: Session, *, delivery_ids: Sequence[str]
) -> dict[str, list[tables.WebhookAttemptRow]]:
    """Return the attempts of deliveries, oldest first."""
    row = tables.WebhookAttemptRow
    found: dict[str, list[tables.WebhookAttemptRow]] = {name: [] for name in delivery_ids}
    query = sa.select(row).where(row.delivery_id.in_(delivery_ids)).order_by(row.number)
    for attempt in session.scalars(query):
        found[attempt.delivery_id].append(attempt)
    return found


def redeliver(
    session: Session, endpoint: tables.WebhookEndpointRow, *, delivery_id: str
) -> tables.WebhookDeliveryRow:
    """Send a delivery again now, under the same id and with the whole schedule before it.

    Raises: errors.NotFound; errors.Conflict for a disabled endpoint, or while it is being sent.
    """
    if not endpoint.enabled:
        raise errors.Conflict(
            f"{endpoint.id} is disabled: PATCH it with enabled: true, then send again",
            code="endpoint_disabled",
        )
    get(session, endpoint_id=endpoint.id, delivery_id=delivery_id)
    delivery = session.get_one(
        tables.WebhookDeliveryRow, delivery_id, with_for_update=True, populate_existing=True
    )
    now = database.now(session)
    if delivery.claim_expires_at is not None and delivery.claim_expires_at > now:
        raise errors.Conflict(
            f"{delivery_id} is being sent just now: look at it again, then decide",
            code="delivery_in_progress",
        )
    delivery.state, delivery.ended_at = PENDING, None
    delivery.failures = 0
    delivery.next_attempt_at = delivery.announced_at = now
    session.flush()
    outbox.add_many(session, [_announcement(delivery.id)], now=now)
    return delivery
