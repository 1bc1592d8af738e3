"""Reads of jobs: lists, latest metrics, series, events. Nothing here writes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from models_registry import errors
from models_registry.artifacts import models
from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, paging, tables

MAX_EVENTS = 500
DEFAULT_POINTS = 500
MAX_POINTS = 5000
POINTS_PER_BUCKET = 3  # smallest, largest and last


Statement = TypeVar("Statement", bound=sa.Select[Any])


@dataclass(frozen=True, kw_only=True)
class ListFilters:
    """Filters of every list of jobs or studies; an empty field does not restrict."""

    name: str | None = None
    labels: Mapping[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class JobFilters(ListFilters):
    """Filters of a list of jobs; an empty field does not restrict."""

    states: Sequence[State] = ()
    method: str | None = None
    study_id: str | None = None


@dataclass(frozen=True)
class SeriesPoint:
    """One value of one series."""

    step: int
    epoch: int | None
    value: float
    at: datetime


@dataclass(frozen=True)
class JobSnapshot:
    """The fields of a job that streams poll."""

    state: State
    last_sequence: int
    attempt: int
    progress: float
    estimated_end_at: datetime | None
    deleted: bool


def page(
    session: Session, *, project_id: str, filters: JobFilters, wanted: paging.PageRequest
) -> paging.Page[tables.JobRow]:
    """Return a page of the project's jobs, newest first; deleted ones are left out."""
    statement = chosen(session, project_id=project_id, filters=filters)
    row = tables.JobRow
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def chosen(session: Session, *, project_id: str, filters: JobFilters) -> sa.Select[tables.JobRow]:
    """Return the query for the project's jobs that pass the filters and are not deleted."""
    row = tables.JobRow
    statement = sa.select(row).where(row.project_id == project_id, row.deleted_at.is_(None))
    if filters.states:
        # Written into the statement: PostgreSQL plans a prepared one for a state of average
        # frequency, and would walk through all jobs of a project for a state that few are in.
        states: sa.BindParameter[Any] = sa.bindparam(
            "states", filters.states, expanding=True, literal_execute=True
        )
        statement = statement.where(row.state.in_(states))
    if filters.method is not None:
        statement = statement.where(row.method == filters.method)
    if filters.study_id is not None:
        statement = statement.where(row.study_id == filters.study_id)
    return restrict(session, statement, row, filters)


def restrict(
    session: Session,
    statement: Statement,
    row: type[tables.JobRow] | type[tables.StudyRow],
    filters: ListFilters,
) -> Statement:
    """Return `statement` with the filters that lists of jobs and of studies share."""
    if filters.name is not None:
        statement = statement.where(row.name == filters.name)
    if filters.created_after is not None:
        statement = statement.where(row.created_at > filters.created_after)
    if filters.created_before is not None:
        statement = statement.where(row.created_at < filters.created_before)
    for key, value in (filters.labels or {}).items():
        statement = statement.where(_label(session, row.labels, key) == value)
    return statement


def _label(
    session: Session, labels: InstrumentedAttribute[dict[str, Any]], key: str
) -> sa.ColumnElement[str]:
    """Return one label of a row as a column; NULL where the row has no label of this key."""
    # A label's key may hold dots, quotes and brackets: each database is given it as a value.
    if session.get_bind().dialect.name == "postgresql":
        return sa.func.jsonb_extract_path_text(labels, key)
    entry = sa.func.json_each(labels).table_valued("key", "value", joins_implicitly=True)
    return sa.select(entry.c.value).where(entry.c.key == key).scalar_subquery()


def latest_metrics_of(
    session: Session, jobs: Sequence[tables.JobRow]
) -> dict[str, dict[str, float]]:
    """Return the last value of every series of these jobs: none where nobody has claimed any."""
    begun = [job.id for job in jobs if job.attempt]
    return {job.id: {} for job in jobs} | latest_metrics(session, job_ids=begun)


def latest_metrics(session: Session, *, job_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the last value of every series of these jobs, in one query.

    It walks the primary key from series to series, so its cost does not grow with the number of
    points: of a series, only the newest point is read.
    """
    if not job_ids:
        return {}
    row = tables.MetricRow
    first = sa.select(sa.func.min(row.key)).where(row.job_id == tables.JobRow.id)
    seed = sa.select(tables.JobRow.id.label("job_id"), first.scalar_subquery().label("key")).where(
        tables.JobRow.id.in_(job_ids)
    )
    series = seed.cte("series", recursive=True)
    following = (
        sa.select(sa.func.min(row.key))
        .where(row.job_id == series.c.job_id, row.key > series.c.key)
        .correlate(series)
    )
    series = series.union_all(
        sa.select(series.c.job_id, following.scalar_subquery()).where(series.c.key.is_not(None))
    )
    last = (
        sa.select(row.value)
        .where(row.job_id == series.c.job_id, row.key == series.c.key)
        .order_by(row.step.desc(), row.attempt.desc())
        .limit(1)
        .correlate(series)
    )
    latest = sa.select(series.c.job_id, series.c.key, last.scalar_subquery()).where(
        series.c.key.is_not(None)
    )
    metrics: dict[str, dict[str, float]] = {job_id: {} for job_id in job_ids}
    for job_id, key, value in session.execute(latest):
        metrics[job_id][key] = value
    return metrics


def series(
    session: Session,
    *,
    job_id: str,
    keys: Sequence[str] = (),
    from_step: int = 0,
    max_points: int = DEFAULT_POINTS,
) -> dict[str, list[SeriesPoint]]:
    """Return the points of a job by key, downsampled to at most `max_points` for each.

    Where several attempts report the same step, the newest attempt's value counts.
    """
    row = tables.MetricRow
    query = (
        sa.select(row.key, row.step, row.epoch, row.value, row.at)
        .where(row.job_id == job_id, row.step >= from_step)
        .order_by(row.key, row.step, row.attempt)
    )
    if keys:
        query = query.where(row.key.in_(keys))
    by_step: dict[str, dict[int, SeriesPoint]] = {}
    for key, step, epoch, value, at in session.execute(query):
        by_step.setdefault(key, {})[step] = SeriesPoint(step, epoch, value, at)
    return {key: downsample(list(points.values()), max_points) for key, points in by_step.items()}


def downsample(points: Sequence[SeriesPoint], max_points: int) -> list[SeriesPoint]:
    """Return at most `max_points` points in their order.

    Of each bucket the smallest, the largest and the last stay, so that a spike survives and the
    curve keeps its last value. NaN counts as the largest value, so that it is always kept.
    """
    if len(points) <= max_points:
        return list(points)
    if max_points < POINTS_PER_BUCKET:
        return list(points[-max_points:])
    buckets = max_points // POINTS_PER_BUCKET
    kept: list[SeriesPoint] = []
    for bucket in range(buckets):
        start, end = bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets
        places = range(start, end)
        chosen = {
            min(places, key=lambda place: _order(points[place].value)),
            max(places, key=lambda place: _order(points[place].value)),
            end - 1,
        }
        kept += [points[place] for place in sorted(chosen)]
    return kept


def _order(value: float) -> tuple[bool, float]:
    return (math.isnan(value), 0.0 if math.isnan(value) else value)


def events(
    session: Session, *, job_id: str, after: int, limit: int = MAX_EVENTS
) -> list[tables.EventRow]:
    """Return a job's events after a sequence number, oldest first."""
    row = tables.EventRow
    query = sa.select(row).where(row.job_id == job_id, row.sequence > after)
    return list(session.scalars(query.order_by(row.sequence).limit(limit)))


def attempts(session: Session, *, job_id: str) -> list[tables.AttemptRow]:
    """Return a job's attempts, oldest first."""
    row = tables.AttemptRow
    return list(session.scalars(sa.select(row).where(row.job_id == job_id).order_by(row.number)))


def checkpoints(
    session: Session, *, job_id: str, wanted: paging.PageRequest
) -> paging.Page[tables.CheckpointRow]:
    """Return a page of a job's checkpoints, newest first."""
    row = tables.CheckpointRow
    statement = sa.select(row).where(row.job_id == job_id)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def snapshots(session: Session, *, job_ids: Iterable[str]) -> dict[str, JobSnapshot]:
    """Return the current snapshots of these jobs, in one query."""
    row = tables.JobRow
    columns = (
        *(row.id, row.state, row.last_sequence, row.attempt, row.progress),
        *(row.estimated_end_at, row.deleted_at),
    )
    rows = session.execute(sa.select(*columns).where(row.id.in_(list(job_ids))))
    return {
        job_id: JobSnapshot(State(state), sequence, attempt, progress, end_at, deleted is not None)
        for job_id, state, sequence, attempt, progress, end_at, deleted in rows
    }


def count_states(session: Session) -> dict[tuple[str, str | None], int]:
    """Return the number of jobs by state and reason."""
    row = tables.JobRow
    query = (
        sa.select(row.state, row.state_reason, sa.func.count())
        .where(row.deleted_at.is_(None))
        .group_by(row.state, row.state_reason)
    )
    return {(state, reason): count for state, reason, count in session.execute(query)}


def count_outcomes(session: Session) -> dict[str, int]:
    """Return the number of attempts that have ended, by outcome."""
    row = tables.AttemptRow
    query = (
        sa.select(row.outcome, sa.func.count())
        .where(row.outcome.is_not(None))
        .group_by(row.outcome)
    )
    return {str(outcome): count for outcome, count in session.execute(query)}


def queue_ages(session: Session) -> dict[str, float]:
    """Return for each queue how long its oldest claimable job has waited, in seconds."""
    row = tables.JobRow
    now = database.now(session)
    query = (
        sa.select(row.queue, sa.func.min(row.queued_at))
        .where(row.state == lifecycle.State.QUEUED, row.not_before <= now)
        .group_by(row.queue)
    )
    return {
        queue: (now - since).total_seconds()
        for queue, since in session.execute(query)
        if since is not None
    }


def count_attempts(session: Session) -> dict[int, int]:
    """Return how many jobs have ended after how many attempts that counted."""
    row = tables.JobRow
    counted = row.attempt - row.releases
    query = sa.select(counted, sa.func.count()).where(row.state.in_(lifecycle.FINAL))
    return {tries: int(count) for tries, count in session.execute(query.group_by(counted))}


def student_file(session: Session, *, job: tables.JobRow) -> models.File:
    """Return the weights of the student that a job has made.

    Raises: errors.Conflict while there is none; errors.Gone when the version was deleted.
    """
    version = student_version(session, job=job, needed_for="student")
    return models.file(session, version, path=models.WEIGHTS)


def student_version(
    session: Session, *, job: tables.JobRow, needed_for: Literal["student", "report"]
) -> tables.ModelVersionRow:
    """Return the version of the student that a job has made.

    Raises: errors.Conflict while there is none; errors.Gone when the version was deleted.
    """
    if job.student_version_id is None:
        raise errors.Conflict(
            f"job {job.id} is {job.state} and has no {needed_for}: only jobs that succeeded have "
            "one",
            code=f"{needed_for}_not_ready",
        )
    version = session.get_one(tables.ModelVersionRow, job.student_version_id)
    if version.deleted_at is not None:
        raise errors.Gone(f"the student of job {job.id} was deleted from the registry")
    return version
