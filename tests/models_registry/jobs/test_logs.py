"""Logs as verbs: what is kept of an attempt's log, and what a reader gets of it."""

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.jobs import actions, leases, logs
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories


@pytest.fixture
def lease(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> leases.Lease:
    """An attempt that runs."""
    with sessions.begin() as session:
        factories.teacher(session, storage, project_id=project.id)
        return factories.running(session, factories.job(session, project_id=project.id))


def sliced(*texts: str, start: int = 0) -> list[logs.Slice]:
    slices = []
    for text in texts:
        slices.append(logs.Slice(start, start + len(text), text))
        start += len(text)
    return slices


def lines_of(session: Session, lease: leases.Lease) -> list[str]:
    [tail] = logs.tails(session, job_id=lease.job_id)
    return tail.lines


def test_are_read_while_the_attempt_runs(sessions: database.Sessions, lease: leases.Lease) -> None:
    first, second = sliced("step 1\nstep 2\n", "step 3\n")
    with sessions.begin() as session:
        logs.keep(session, lease, [first])
        logs.keep(session, lease, [first, second])  # repeated, as after a lost answer
    with sessions() as session:
        [tail] = logs.tails(session, job_id=lease.job_id)
        assert (tail.lines, tail.is_cut) == (["step 1", "step 2", "step 3"], False)
        assert (tail.attempt.ended_at, tail.end) == (None, second.end)
        [cut] = logs.tails(session, job_id=lease.job_id, attempt=1, lines=1)
        assert (cut.lines, cut.is_cut) == (["step 3"], True)
        behind = logs.Position(1, first.end)
        [rest] = logs.after(session, job_id=lease.job_id, position=behind)
        assert rest.text == "step 3\n"
        assert logs.after(session, job_id=lease.job_id, position=logs.Position(1, tail.end)) == []


def test_of_a_lost_worker_stay_and_it_adds_no_more(
    sessions: database.Sessions, lease: leases.Lease
) -> None:
    with sessions.begin() as session:
        logs.keep(session, lease, sliced("step 1\n"))
        job = session.get_one(tables.JobRow, lease.job_id)
        factories.lost(session, job)
    with sessions.begin() as session, pytest.raises(errors.StaleFence):
        logs.keep(session, lease, sliced("too late\n", start=7))
    with sessions.begin() as session:
        again = factories.running(session, session.get_one(tables.JobRow, lease.job_id))
        logs.keep(session, again, sliced("resumed\n"))
    with sessions() as session:
        tails = logs.tails(session, job_id=lease.job_id)
        assert [(t.attempt.number, t.lines) for t in tails] == [(1, ["step 1"]), (2, ["resumed"])]
        rows = logs.after(session, job_id=lease.job_id, position=logs.Position())
        assert [row.text for row in rows] == ["step 1\n", "resumed\n"]


def test_drop_the_oldest_beyond_a_bound(sessions: database.Sessions, lease: leases.Lease) -> None:
    line = "x" * (logs.SLICE_BYTES - 1) + "\n"
    count = logs.KEPT_BYTES // logs.SLICE_BYTES
    with sessions.begin() as session:
        logs.keep(session, lease, sliced("first\n", *[line] * count))
        assert session.scalars(sa.select(sa.func.count(tables.LogSliceRow.start))).one() == count
        [tail] = logs.tails(session, job_id=lease.job_id)
        assert tail.is_cut
        assert "first" not in tail.lines


def test_go_with_their_job(
    sessions: database.Sessions, lease: leases.Lease, project: tables.ProjectRow
) -> None:
    with sessions.begin() as session:
        logs.keep(session, lease, sliced("step 1\n"))
        leases.fail(session, lease, code="c", message="m", retryable=False, log_tail=[])
        actions.delete(session, project_id=project.id, job_id=lease.job_id)
        assert session.scalars(sa.select(tables.LogSliceRow)).all() == []
