"""Reads of jobs: latest values in one query, series downsampled without losing extremes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import event

from models_registry.jobs import queries
from models_registry.jobs.queries import SeriesPoint
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories

AT = datetime(2026, 1, 1, tzinfo=UTC)


def points_of(values: list[float]) -> list[SeriesPoint]:
    """Return one point per value."""
    return [SeriesPoint(step, None, value, AT) for step, value in enumerate(values)]


@pytest.fixture
def job_ids(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> list[str]:
    """Three jobs."""
    with sessions.begin() as session:
        factories.teacher(session, storage, project_id=project.id)
        return [factories.job(session, project_id=project.id).id for _ in range(3)]


def add(
    sessions: database.Sessions, job_id: str, key: str, step: int, attempt: int, value: float
) -> None:
    """Store one point."""
    with sessions.begin() as session:
        session.add(
            tables.MetricRow(job_id=job_id, key=key, step=step, attempt=attempt, value=value, at=AT)
        )


@contextmanager
def counted(engine: sa.Engine) -> Iterator[list[str]]:
    """Collect the statements that are sent to the database."""
    statements: list[str] = []

    def note(_c: object, _r: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


class TestLatestMetrics:
    def test_are_of_the_last_step_and_there_of_the_newest_attempt(
        self, sessions: database.Sessions, job_ids: list[str]
    ) -> None:
        first, second, third = job_ids
        for step, attempt, value in [(1, 1, 9.0), (2, 1, 8.0), (2, 2, 7.0), (1, 2, 6.0)]:
            add(sessions, first, "loss/total", step, attempt, value)
        add(sessions, first, "a", 5, 1, math.inf)
        add(sessions, first, "z", 5, 1, -1.5)
        add(sessions, second, "loss/total", 1, 1, 3.0)
        with sessions() as session:
            latest = queries.latest_metrics(session, job_ids=job_ids)
        assert latest == {
            first: {"loss/total": 7.0, "a": math.inf, "z": -1.5},
            second: {"loss/total": 3.0},
            third: {},
        }

    def test_take_one_query_for_a_whole_page(
        self, sessions: database.Sessions, engine: sa.Engine, job_ids: list[str]
    ) -> None:
        for job_id in job_ids:
            add(sessions, job_id, "loss/total", 1, 1, 1.0)
        with sessions() as session, counted(engine) as statements:
            queries.latest_metrics(session, job_ids=job_ids)
        assert len([text for text in statements if "job_metrics" in text]) == 1

    def test_of_no_jobs_are_none(self, sessions: database.Sessions) -> None:
        with sessions() as session:
            assert queries.latest_metrics(session, job_ids=[]) == {}


class TestThin:
    def test_keeps_a_short_series_as_it_is(self) -> None:
        points = points_of([1.0, 2.0, 3.0])
        assert queries.downsample(points, 3) == points

    def test_keeps_spikes_and_the_end(self) -> None:
        values = [1.0] * 1000
        values[333], values[666], values[-1] = 50.0, -50.0, 2.0
        kept = queries.downsample(points_of(values), 30)
        assert {50.0, -50.0} <= {point.value for point in kept}
        assert kept[-1].step == 999

    def test_keeps_the_moment_when_the_loss_became_nan(self) -> None:
        values = [1.0] * 500 + [math.nan] + [1.0] * 499
        kept = queries.downsample(points_of(values), 30)
        assert any(math.isnan(point.value) for point in kept)

    @hypothesis_settings(max_examples=200, derandomize=True, deadline=None)
    @given(
        values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=120),
        max_points=st.integers(1, 60),
    )
    def test_never_returns_more_nor_changes_the_order(
        self, values: list[float], max_points: int
    ) -> None:
        points = points_of(values)
        kept = queries.downsample(points, max_points)
        steps = [point.step for point in kept]
        assert len(kept) <= max_points
        assert steps == sorted(set(steps))
        assert all(points[step] is point for step, point in zip(steps, kept, strict=True))
        if points:
            assert kept[-1] is points[-1]
        finite = [value for value in values if not math.isnan(value)]
        if len(finite) == len(values) and values and max_points >= 3:
            assert min(values) == min(point.value for point in kept)
            assert max(values) == max(point.value for point in kept)


class TestQueueAges:
    def test_tell_how_long_the_oldest_claimable_job_waits(
        self, sessions: database.Sessions, job_ids: list[str]
    ) -> None:
        with sessions() as session:
            ages = queries.queue_ages(session)
            states = queries.count_states(session)
        assert set(ages) == {"any"}
        assert 0 <= ages["any"] < 60
        assert states[("queued", None)] == 3
