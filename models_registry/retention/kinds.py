"""What retention deletes, kind by kind, and which jobs are due: the one place that says so.

Nothing here belongs to a job that goes on, or to a study of which any job goes on: those are never
due. What a deleted job has left is due at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, aliased

from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import State
from models_registry.persistence import tables
from models_registry.retention.policies import RetentionPolicy

# Of one point: a key's share of the index, step, attempt, epoch, value and time.
POINT_BYTES = 64


@dataclass(frozen=True)
class RetentionKind:
    """One kind of what jobs leave behind."""

    name: str
    field: str
    """The field of the policy that says for how many days it is kept."""
    # Any: the row of this kind, which has `job_id`.
    row: type[Any]
    size: Callable[[], sa.ColumnElement[int] | InstrumentedAttribute[int]]
    """The bytes of one entry."""
    states: frozenset[State]
    """States in which a job may be due."""
    about: str
    """What it is, for people."""

    def days(self, policy: RetentionPolicy) -> int | None:
        """Return for how long it is kept; None for good."""
        days: int | None = getattr(policy, self.field)
        return days

    def due(
        self, *, project_id: str, policy: RetentionPolicy, now: datetime
    ) -> sa.ColumnElement[bool]:
        """Return the condition that a job's entries of this kind may be deleted."""
        job, member = tables.JobRow, aliased(tables.JobRow)
        study_goes_on = sa.exists().where(
            member.study_id == job.study_id, member.state.not_in(lifecycle.FINAL)
        )
        days = self.days(policy)
        is_old = sa.false() if days is None else job.finished_at < now - timedelta(days=days)
        return sa.and_(
            job.project_id == project_id,
            job.state.in_(self.states),
            sa.or_(is_old, job.deleted_at.is_not(None)),
            sa.or_(job.study_id.is_(None), ~study_goes_on),
        )

    def has_entries(self) -> sa.ColumnElement[bool]:
        """Return the condition that a job has entries of this kind."""
        return sa.exists().where(self.row.job_id == tables.JobRow.id)


KINDS = (
    RetentionKind(
        "failed_attempts",
        "failed_attempts_days",
        tables.CheckpointRow,
        lambda: tables.CheckpointRow.size_bytes,
        frozenset({State.FAILED, State.CANCELLED}),
        "checkpoints of jobs that failed or were cancelled",
    ),
    RetentionKind(
        "logs",
        "logs_days",
        tables.LogSliceRow,
        lambda: tables.LogSliceRow.end - tables.LogSliceRow.start,
        lifecycle.FINAL,
        "log lines but the last of each attempt",
    ),
    RetentionKind(
        "metrics",
        "metrics_days",
        tables.MetricRow,
        lambda: sa.literal(POINT_BYTES),
        lifecycle.FINAL,
        "points of metrics; scores stay in the result",
    ),
    RetentionKind(
        "events",
        "events_days",
        tables.EventRow,
        lambda: sa.func.length(sa.cast(tables.EventRow.data, sa.Text)),
        lifecycle.FINAL,
        "events",
    ),
)
BY_NAME = {kind.name: kind for kind in KINDS}
CHECKPOINTS = "checkpoints"
