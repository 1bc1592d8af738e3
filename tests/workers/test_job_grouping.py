"""Which jobs of a study may share an engine, and which run alone."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from models_registry.jobs import leases, workers
from models_registry.jobs.lifecycle import Reason
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories
from workers import job_grouping

Row = tables.JobRow


@pytest.fixture
def study(sessions: database.Sessions, teacher: tables.ModelVersionRow) -> tables.StudyRow:
    """A baseline and two variants of KD, with two seeds each."""
    with sessions.begin() as session:
        return factories.study(session, project_id=teacher.project_id)


def find(session: Session, job: tables.JobRow, *, limit: int = 6) -> list[str]:
    return job_grouping.find(session, factories.claimed(session, job), limit=limit)


class TestFind:
    def test_takes_what_sees_the_same_batches(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            jobs = factories.members(session, study)
            assert find(session, jobs[0]) == [jobs[1].id, jobs[2].id]
            assert find(session, jobs[4]) == [jobs[3].id, jobs[5].id]

    def test_takes_no_more_than_the_limit_and_this_workers_share(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            jobs = factories.members(session, study)
            assert find(session, jobs[0], limit=2) == [jobs[1].id]
            for number, queues in enumerate((["any", "cpu"], ["any", "cuda"], ["inspect"])):
                workers.announce(
                    session,
                    worker_id=f"wrk_{number}",
                    name="w",
                    queues=queues,
                    devices=[],
                    memory_bytes=1,
                    versions={},
                )
            assert find(session, jobs[3]) == [jobs[4].id]

    def test_leaves_their_share_to_the_other_slots_of_one_worker(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            jobs = factories.members(session, study)
            workers.announce(
                session,
                worker_id="wrk_1",
                name="w",
                queues=["any", "cpu"],
                devices=[],
                memory_bytes=1,
                versions={},
                slots=2,
                total_devices=2,
            )
            assert find(session, jobs[3]) == [jobs[4].id]

    def test_leaves_a_job_without_a_study_alone(
        self, sessions: database.Sessions, study: tables.StudyRow, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            factories.job(session, project_id=project.id)
            job = factories.job(session, project_id=project.id)
            assert find(session, job) == []

    def test_leaves_jobs_of_limited_time_alone(
        self, sessions: database.Sessions, study: tables.StudyRow, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            limited = factories.study(
                session, project_id=project.id, resources={"max_runtime_seconds": 60}
            )
            assert find(session, factories.members(session, limited)[0]) == []

    @pytest.mark.parametrize(
        "disturb",
        [
            lambda s, job: factories.claimed(s, job),
            lambda s, job: setattr(job, "not_before", database.now(s) + timedelta(minutes=1)),
            lambda s, job: factories.lost(s, with_attempt(s, job)),
            lambda s, job: fail(s, job),
        ],
        ids=["held", "not due", "lost before", "failed before"],
    )
    def test_passes_over_a_job_that_is(
        self,
        sessions: database.Sessions,
        study: tables.StudyRow,
        disturb: Callable[[Session, tables.JobRow], object],
    ) -> None:
        with sessions.begin() as session:
            jobs = factories.members(session, study)
            disturb(session, jobs[1])
            session.flush()
            assert find(session, jobs[0]) == [jobs[2].id]

    def test_after_a_failure_finds_nobody(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            jobs = factories.members(session, study)
            fail(session, jobs[0])
            assert find(session, jobs[0]) == []

    def test_after_the_end_of_a_shared_engine_finds_nobody(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            jobs = factories.members(session, study)
            for job in jobs[:3]:
                lease = factories.claimed(session, job)
                reason = Reason.SHARED_ENGINE_FAILED
                leases.release(session, lease, because=reason, message="m", log_tail=[])
            assert find(session, jobs[0]) == []

    def test_takes_what_was_handed_back_at_the_same_step(
        self, sessions: database.Sessions, storage: Storage, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            jobs = factories.members(session, study)
            for job, step in ((jobs[0], 20), (jobs[1], 20), (jobs[2], 10)):
                lease = factories.running(session, job)
                for reached in (10, step):
                    kept = factories.stored(session, storage, b"%d" % reached, path=f"{reached}")
                    leases.checkpoint(session, lease, kept, step=reached, epoch=1, phase="student")
                leases.release(session, lease, log_tail=[])
            assert find(session, jobs[0]) == [jobs[1].id]


def with_attempt(session: Session, job: tables.JobRow) -> tables.JobRow:
    factories.running(session, job)
    return job


def fail(session: Session, job: tables.JobRow) -> None:
    """Let an attempt at a job fail, and its back-off pass."""
    lease = factories.running(session, job)
    leases.fail(session, lease, code="c", message="m", retryable=True, log_tail=[])
    job.not_before = job.created_at
    session.flush()


class TestGroup:
    def test_names_its_members_by_job(self) -> None:
        made = job_grouping.group_of({"job_1": {"version": 1}})
        assert made == {"version": 1, "members": [{"key": "job_1", "recipe": {"version": 1}}]}
