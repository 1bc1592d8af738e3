"""Periodic work on jobs: end expired leases, enforce deadlines, publish lost messages again.

Every function here may run in several processes at the same time: each move is conditional, and a
move that another process has made is not repeated.
"""

import math
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry.jobs import lifecycle, transitions
from models_registry.jobs.lifecycle import Event, Reason, State
from models_registry.persistence import database, tables

log = structlog.get_logger()

BATCH = 100
LONGEST_SILENCE = timedelta(minutes=15)


def reap(
    session: Session, *, polling_since: datetime, lease_seconds: float, kill_grace_seconds: float
) -> int:
    """End the leases of workers without heartbeat, and return how many were ended.

    `polling_since` is since when the caller has polled without a gap. A lease may expire during an
    outage without any fault of its worker, so every worker first gets a full lease's time. A job
    that is being cancelled also waits for the kill grace, so that its device is really free.
    """
    now = database.now(session)
    if now < polling_since + timedelta(seconds=lease_seconds):
        return 0
    row = tables.JobRow
    killed = row.lease_expires_at < now - timedelta(seconds=kill_grace_seconds)
    expired = sa.select(row).where(
        row.state.in_(lifecycle.HELD),
        row.lease_expires_at < now,
        sa.or_(row.state != State.CANCELLING, killed),
    )
    # Locked, so that no worker renews its lease between this query and its end; a row that is
    # locked by another transaction is in use.
    locked = expired.order_by(row.lease_expires_at).limit(BATCH)
    silent = session.scalars(locked.with_for_update(skip_locked=True, key_share=True)).all()
    return sum(_end_lease(session, job) for job in silent)


def _end_lease(session: Session, job: tables.JobRow) -> int:
    message = f"Attempt {job.attempt} was lost: its worker sent no heartbeat."
    moved = transitions.move(
        session, job, Event.LEASE_EXPIRED, because=Reason.ATTEMPT_LOST, message=message
    )
    if job.state == State.FAILED and job.failure is None:
        job.failure = {
            "code": "worker_lost",
            "message": message,
            "retryable": True,
            "attempt": job.attempt,
            "log_tail": [],
        }
        session.flush()
    return int(moved.happened)


def enforce_deadlines(session: Session) -> int:
    """End jobs that ran, or waited, longer than their spec allows; return how many."""
    now = database.now(session)
    row = tables.JobRow
    ended = 0
    running = sa.select(row, tables.AttemptRow.started_at).join(
        tables.AttemptRow,
        sa.and_(
            tables.AttemptRow.job_id == row.id,
            tables.AttemptRow.number == row.attempt,
        ),
    )
    held = running.where(
        row.state.in_((State.STARTING, State.RUNNING, State.PAUSING)),
        row.max_runtime_seconds.is_not(None),
    )
    for job, since in session.execute(held).all():
        active = job.active_seconds + (now - since).total_seconds()
        if active > (job.max_runtime_seconds or math.inf):
            ended += _expire(
                session, job, Reason.DEADLINE, f"max_runtime_seconds is {job.max_runtime_seconds:g}"
            )
    waiting = sa.select(row).where(
        row.state.in_((State.VALIDATING, State.QUEUED)), row.queue_deadline_seconds.is_not(None)
    )
    for job in session.scalars(waiting).all():
        waited = (now - (job.queued_at or job.created_at)).total_seconds()
        if waited > (job.queue_deadline_seconds or math.inf):
            ended += _expire(
                session,
                job,
                Reason.QUEUE_DEADLINE,
                f"queue_deadline_seconds is {job.queue_deadline_seconds:g}",
            )
    return ended


def _expire(session: Session, job: tables.JobRow, because: Reason, message: str) -> int:
    row = tables.JobRow
    unmoved = sa.select(row.id).where(row.id == job.id, row.last_sequence == job.last_sequence)
    if session.scalars(unmoved.with_for_update(skip_locked=True, key_share=True)).first() is None:
        return 0  # another transaction moves it: the next sweep tries again
    sentence = f"The job has exceeded its time limit: {message}."
    failure = {
        "code": "deadline",
        "message": sentence,
        "retryable": False,
        "attempt": job.attempt,
        "log_tail": [],
    }
    values = {"failure": failure, "cancel_target": State.FAILED}
    moved = transitions.move(
        session, job, Event.DEADLINE, because=because, message=sentence, values=values
    )
    return int(moved.happened)


def republish(session: Session, *, after_seconds: float) -> int:
    """Publish unclaimed queued jobs again, and return how many.

    This alone makes the loss of every message in the broker harmless. It is also what announces
    a job whose back-off has passed. The pauses grow with the time a job has waited, so that a long
    queue does not fill the broker with messages while all workers are busy.
    """
    now = database.now(session)
    row = tables.JobRow
    early = now - timedelta(seconds=after_seconds)
    silent = sa.or_(
        row.announced_at.is_(None),
        sa.and_(row.announce_again_at.is_(None), row.announced_at < early),
        row.announce_again_at < now,
    )
    due = sa.select(row).where(row.state == State.QUEUED, row.not_before <= now, silent)
    batch = due.order_by(row.claim_order_at, row.id).limit(BATCH)
    unclaimed = session.scalars(batch.with_for_update(skip_locked=True)).all()
    for job in unclaimed:
        waited = now - (job.queued_at or now)
        pause = min(max(waited, timedelta(seconds=after_seconds)), LONGEST_SILENCE)
        transitions.announce(session, job, now)
        job.announce_again_at = now + pause
    session.flush()
    return len(unclaimed)
