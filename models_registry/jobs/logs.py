"""Logs of attempts: a worker ships them in slices while the engine runs, and the newest are kept.

What was shipped stays when the worker is killed. An attempt also has a `log_tail`, its last lines,
which outlives the slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.jobs import leases
from models_registry.persistence import database, tables

KEPT_BYTES = 2**20  # of one attempt
SLICE_BYTES = 2**16
MAX_ATTEMPTS = 20
DEFAULT_LINES, MAX_LINES = 200, 10_000
_BATCH = 16


@dataclass(frozen=True)
class Slice:
    """Some lines, from byte `start` of the engine's log up to, not including, `end`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, order=True)
class Position:
    """How far a reader has come: an attempt, and the byte of its log after the last one read."""

    attempt: int = 0
    end: int = 0


@dataclass(frozen=True)
class LogTail:
    """The last lines of an attempt's log; `is_cut` tells that there were more before."""

    attempt: tables.AttemptRow
    lines: list[str]
    end: int
    is_cut: bool


def keep(session: Session, lease: leases.Lease, slices: Sequence[Slice]) -> None:
    """Store slices, which may come twice, and drop the oldest beyond `KEPT_BYTES`.

    Raises: errors.StaleFence when the job is no longer held.
    """
    leases.prove(session, lease)
    row = tables.LogSliceRow
    now = database.now(session)
    here = {"job_id": lease.job_id, "attempt": lease.attempt}
    session.execute(
        database.insert(session, row).on_conflict_do_nothing(),
        [{**here, "at": now, "start": s.start, "end": s.end, "text": s.text} for s in slices],
    )
    newest = max(one.end for one in slices)
    session.execute(
        sa.delete(row).where(
            row.job_id == lease.job_id,
            row.attempt == lease.attempt,
            row.end <= newest - KEPT_BYTES,
        )
    )


def tails(
    session: Session, *, job_id: str, attempt: int | None = None, lines: int = DEFAULT_LINES
) -> list[LogTail]:
    """Return the last lines of each attempt, or of one, oldest attempt first."""
    row = tables.AttemptRow
    chosen = sa.select(row).where(row.job_id == job_id)
    if attempt is not None:
        chosen = chosen.where(row.number == attempt)
    newest = session.scalars(chosen.order_by(row.number.desc()).limit(MAX_ATTEMPTS)).all()
    found = _newest_slices(
        session,
        job_id=job_id,
        attempts=[one.number for one in newest],
        # Of many attempts less of each, so that the answer stays small.
        most_bytes=KEPT_BYTES if attempt is not None else KEPT_BYTES // 4,
    )
    return [_tail(one, found.get(one.number, []), lines) for one in reversed(newest)]


def after(session: Session, *, job_id: str, position: Position) -> list[tables.LogSliceRow]:
    """Return some of the slices behind a position, oldest first."""
    row = tables.LogSliceRow
    behind = sa.or_(
        row.attempt > position.attempt,
        sa.and_(row.attempt == position.attempt, row.start >= position.end),
    )
    query = sa.select(row).where(row.job_id == job_id, behind)
    return list(session.scalars(query.order_by(row.attempt, row.start).limit(_BATCH)))


def _newest_slices(
    session: Session, *, job_id: str, attempts: Sequence[int], most_bytes: int
) -> dict[int, list[tables.LogSliceRow]]:
    row = tables.LogSliceRow
    newest = (
        sa.select(row.attempt, sa.func.max(row.end).label("newest"))
        .where(row.job_id == job_id, row.attempt.in_(attempts))
        .group_by(row.attempt)
        .subquery()
    )
    query = (
        sa.select(row)
        .join(newest, newest.c.attempt == row.attempt)
        .where(row.job_id == job_id, row.end > newest.c.newest - most_bytes)
        .order_by(row.attempt, row.start)
    )
    found: dict[int, list[tables.LogSliceRow]] = {}
    for one in session.scalars(query):
        found.setdefault(one.attempt, []).append(one)
    return found


def _tail(attempt: tables.AttemptRow, slices: list[tables.LogSliceRow], lines: int) -> LogTail:
    if not slices:  # before the first slice, or after they were forgotten
        kept = list(attempt.log_tail or [])
        return LogTail(attempt, kept[-lines:], end=0, is_cut=len(kept) > lines)
    every = "".join(one.text for one in slices).splitlines()
    is_cut = len(every) > lines or slices[0].start > 0
    return LogTail(attempt, every[-lines:], end=slices[-1].end, is_cut=is_cut)
