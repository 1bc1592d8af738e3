"""The one door: `move` is the only code that writes a job's state.

Each move is one conditional UPDATE with its event (and, where the job is to be announced, its
outbox row) in the caller's transaction; a move that lost a race reads the job again and answers by
what it then finds. What a worker does while it holds a job is in `leases.py`; what time does, in
`sweeps.py`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.jobs import dependencies, fair_share, lifecycle
from models_registry.jobs.lifecycle import Answer, Event, Reason, State
from models_registry.persistence import database, outbox, tables
from models_registry.webhooks import deliveries

log = structlog.get_logger()

RUN_TASK = "jobs.run"
BACKOFF_SECONDS = 2.0
BACKOFF_LIMIT_SECONDS = 300.0
DEPENDENTS_AT_ONCE = 50
"""How many waiting jobs one transaction moves; SQLite's one writer is held meanwhile."""


@dataclass(frozen=True)
class Moved:
    """What a move did: `answer` is the new state, or why the state stayed."""

    job: tables.JobRow
    answer: State | Answer

    @property
    def happened(self) -> bool:
        """Return whether the state changed."""
        return isinstance(self.answer, State)


def move(
    session: Session,
    job: tables.JobRow,
    event: Event,
    *,
    because: Reason | None = None,
    message: str | None = None,
    fence: int | None = None,
    values: dict[str, Any] | None = None,
) -> Moved:
    """Apply `event` to `job` by the table of `lifecycle.py`.

    `fence` proves that a worker still holds the job. `values` are further columns to write with
    the state. The row is read again first, so the answer is about the present.

    Raises: errors.StaleFence when a worker is out of date; errors.IllegalMove when a user's
    event does not fit the state.
    """
    for _ in range(10):  # a lost race is looked at again; ten in a row do not happen
        session.refresh(job)
        if fence is not None and fence != job.fence:
            raise errors.StaleFence(f"{job.id}: fence {fence} is out of date, now {job.fence}")
        situation = lifecycle.Situation(
            attempts_left=job.attempt - job.releases < job.max_attempts,
            target=State(job.cancel_target or State.CANCELLED),
        )
        answer = lifecycle.answer(State(job.state), event, situation)
        if not isinstance(answer, State):
            return _stay(job, event, answer)
        if lifecycle.TABLE[State(job.state)][event] is Answer.TARGET or event is Event.STOPPED:
            # What the user (or the deadline) asked for is now so: its reason stays.
            because = Reason(job.state_reason) if job.state_reason else because
            message = job.state_message
        elif event in (Event.FAIL_RETRYABLE, Event.LEASE_EXPIRED) and answer is State.FAILED:
            because = Reason.ATTEMPTS_EXHAUSTED
        if _write(session, job, answer, event, because, message, values or {}):
            return Moved(job, answer)
    raise errors.Conflict(f"{job.id} changes too quickly for {event}; try again")


def queue_new(job: tables.JobRow, *, message: str | None, at: datetime) -> tables.EventRow:
    """Queue a job that is not stored yet, as `move` with `valid`, and return the event.

    Nobody else sees it, so no condition is needed. The caller stores both, and the messages of
    `messages_of_new`.
    """
    old = State(job.state)
    if lifecycle.answer(old, Event.VALID, lifecycle.Situation()) is not State.QUEUED:
        raise errors.Conflict(f"{job.id} is {old}, where {Event.VALID} cannot happen")
    for column, value in _consequences(job, State.QUEUED, Event.VALID, at).items():
        setattr(job, column, value)
    job.state, job.state_reason, job.state_message = State.QUEUED, None, message
    job.announced_at = at
    facts = {"from": old, "to": State.QUEUED, "attempt": job.attempt}
    if message:
        facts["message"] = message
    return new_event(job, State.QUEUED, facts, at)


def messages_of_new(jobs: Sequence[tables.JobRow], now: datetime) -> list[tables.OutboxRow]:
    """Return the messages that tell workers of new jobs; the caller stores them with the jobs."""
    return [tables.OutboxRow(**_message(job), created_at=now) for job in jobs]


def new_event(
    job: tables.JobRow, kind: str, facts: dict[str, Any], at: datetime
) -> tables.EventRow:
    """Return the next event of a job that is not stored yet; the caller stores both."""
    job.last_sequence += 1
    return tables.EventRow(
        job_id=job.id, sequence=job.last_sequence, type=f"job.{kind}", at=at, data=facts
    )


def _stay(job: tables.JobRow, event: Event, answer: Answer) -> Moved:
    if answer is Answer.STALE:
        raise errors.StaleFence(f"{job.id} is {job.state}: the worker's {event} comes too late")
    if answer is Answer.CONFLICT:
        raise illegal(job, event)
    if answer is Answer.NEVER:
        raise errors.Conflict(f"{job.id} is {job.state}, where {event} cannot happen")
    return Moved(job, answer)


def illegal(job: tables.JobRow, verb: str) -> errors.IllegalMove:
    """Return the error that a job cannot `verb` now, with what it allows instead."""
    state = State(job.state)
    verbs = lifecycle.allowed(state)
    if verbs:
        way_out = f"allowed now: {', '.join(verbs)}"
    elif lifecycle.is_final(state):
        way_out = "nothing changes it any more"
    else:
        way_out = "it will soon have ended"
    return errors.IllegalMove(
        f"A job that is {state} cannot {verb}; {way_out}.", state=state, allowed=verbs
    )


def _write(
    session: Session,
    job: tables.JobRow,
    state: State,
    event: Event,
    because: Reason | None,
    message: str | None,
    values: dict[str, Any],
) -> bool:
    """Write one move if the job is still as it was read; return whether it was."""
    now = database.now(session)
    old = State(job.state)
    row = tables.JobRow
    written = session.execute(
        sa.update(row)
        .where(row.id == job.id, row.state == old, row.fence == job.fence)
        .values(
            state=state,
            state_reason=because,
            state_message=message,
            last_sequence=row.last_sequence + 1,
            **_consequences(job, state, event, now),
            **values,
        )
        .execution_options(synchronize_session=False)
    )
    if written.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE gives a CursorResult
        return False
    if old in lifecycle.HELD and state not in lifecycle.HELD:
        _end_attempt(session, job, now, outcome=because or state, message=message)
        waiting = fair_share.first_behind_limit(session, project_id=job.project_id)
        if waiting is not None:
            announce(session, waiting, now)
    session.refresh(job)
    facts = {"from": old, "to": state, "attempt": job.attempt}
    if because:
        facts["reason"] = because
    if message:
        facts["message"] = message
    event_row = tables.EventRow(
        job_id=job.id, sequence=job.last_sequence, type=f"job.{state}", at=now, data=facts
    )
    session.add(event_row)
    if state is State.QUEUED and job.not_before <= now:
        announce(session, job, now)
    session.flush()
    deliveries.record(session, [deliveries.Occurrence.of(job, event_row)])
    log.info("job_moved", job_id=job.id, from_state=old, to_state=state, reason=because)
    if state in (State.FAILED, State.CANCELLED):
        fail_dependents(session, job)
    return True


def fail_dependents(session: Session, job: tables.JobRow) -> None:
    """Fail the jobs that wait for one that has failed or was cancelled, and those that wait for it.

    At most `DEPENDENTS_AT_ONCE`: the others are left to the next sweep.
    """
    ended = "failed" if job.state == State.FAILED else "was cancelled"
    waiting = dependencies.waiting_for(job.id).limit(DEPENDENTS_AT_ONCE)
    for dependent in session.scalars(waiting.with_for_update(key_share=True)).all():
        message = (
            f"{job.id}, whose student this job waited for, {ended}: retry that job, and submit "
            "this one with the new one's id."
        )
        failure = {
            "code": "dependency_failed",
            "message": message,
            "retryable": False,
            "attempt": 0,
            "log_tail": [],
        }
        move(
            session,
            dependent,
            Event.INVALID,
            because=Reason.DEPENDENCY_FAILED,
            message=message,
            values={"failure": failure},
        )


def _consequences(job: tables.JobRow, state: State, event: Event, now: datetime) -> dict[str, Any]:
    """Return the columns that follow from entering `state`."""
    columns: dict[str, Any] = {}
    if state is State.QUEUED:
        columns |= {"queued_at": now, "not_before": now, "announced_at": None}
        columns["announce_again_at"] = None
        if event in (Event.FAIL_RETRYABLE, Event.LEASE_EXPIRED):
            columns["not_before"] = now + backoff(job.attempt - job.releases)
    if event is Event.RELEASED or (job.state, state) == (State.PAUSING, State.PAUSED):
        # Handed back, or cut short by a pause: neither uses up one of the job's attempts.
        columns["releases"] = job.releases + 1
    if state is State.RUNNING and job.started_at is None:
        columns["started_at"] = now
    if state not in lifecycle.HELD:
        columns |= {"lease_owner": None, "lease_expires_at": None, "estimated_end_at": None}
    if event is Event.LEASE_EXPIRED:
        columns["fence"] = job.fence + 1  # the old holder is locked out from this moment on
    if lifecycle.is_final(state):
        columns["finished_at"] = now
    if state is State.SUCCEEDED:
        columns["progress"] = 1.0
    return columns


def _end_attempt(
    session: Session, job: tables.JobRow, now: datetime, *, outcome: str, message: str | None
) -> None:
    attempt = session.get(tables.AttemptRow, (job.id, job.attempt))
    if attempt is None or attempt.ended_at is not None:
        return
    attempt.ended_at, attempt.outcome, attempt.message = now, outcome, message
    seconds = (now - attempt.started_at).total_seconds()
    session.execute(
        sa.update(tables.JobRow)
        .where(tables.JobRow.id == job.id)
        .values(active_seconds=tables.JobRow.active_seconds + seconds)
        .execution_options(synchronize_session=False)
    )


def backoff(attempt: int) -> timedelta:
    """Return how long to wait once `attempt` attempts have counted: doubling, with jitter."""
    longest = min(BACKOFF_SECONDS * 2 ** max(attempt - 1, 0), BACKOFF_LIMIT_SECONDS)
    return timedelta(seconds=longest * random.uniform(0.5, 1.0))


def announce(session: Session, job: tables.JobRow, now: datetime) -> None:
    """Write the message that tells workers of a queued job."""
    job.announced_at = now
    outbox.add(session, **_message(job))


def _message(job: tables.JobRow) -> dict[str, Any]:
    return {
        "task": RUN_TASK,
        "queue": job.queue,
        "payload": {"job_id": job.id, "dispatch_seq": job.last_sequence},
        "priority": job.priority,
        "traceparent": job.traceparent,
    }


def add_event(session: Session, job_id: str, kind: str, facts: dict[str, Any]) -> int:
    """Append an event that changes no state, and return its sequence number."""
    row = tables.JobRow
    sequence = session.scalars(
        sa.update(row)
        .where(row.id == job_id)
        .values(last_sequence=row.last_sequence + 1)
        .returning(row.last_sequence)
        .execution_options(synchronize_session=False)
    ).one()
    event = tables.EventRow(
        job_id=job_id,
        sequence=sequence,
        type=f"job.{kind}",
        at=database.now(session),
        data=facts,
    )
    session.add(event)
    session.flush()
    occurred = deliveries.Occurrence.of(session.get_one(row, job_id), event)
    deliveries.record(session, [occurred])
    return sequence
