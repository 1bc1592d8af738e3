"""What time does: leases end, deadlines pass, lost messages are sent again."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.jobs import actions, leases, sweeps
from models_registry.jobs.leases import Lease
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from tests import factories, racing

HOUR = timedelta(hours=1)


def again(session: Session, job: tables.JobRow) -> tables.JobRow:
    """Return the job as this session sees it."""
    return session.get_one(tables.JobRow, job.id, populate_existing=True)


def expire(session: Session, job: tables.JobRow, seconds_ago: float = 30) -> None:
    """Let the lease of a job have run out some time ago."""
    row = again(session, job)
    row.lease_expires_at = database.now(session) - timedelta(seconds=seconds_ago)
    session.flush()


def reap(
    session: Session, *, polling_since: datetime | None = None, lease_seconds: float = 60
) -> int:
    return sweeps.reap(
        session,
        polling_since=polling_since or database.now(session) - HOUR,
        lease_seconds=lease_seconds,
        kill_grace_seconds=10,
    )


class TestReap:
    def test_queues_the_job_of_a_silent_worker_again(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, again(session, job))
            expire(session, job)
        with sessions.begin() as session:
            assert reap(session) == 1
            row = again(session, job)
            assert (row.state, row.state_reason) == (State.QUEUED, "attempt_lost")
            assert row.fence == lease.fence + 1
            assert (row.lease_owner, row.lease_expires_at) == (None, None)
            assert row.queued_at is not None
            assert row.not_before > row.queued_at
            attempt = session.get_one(tables.AttemptRow, (job.id, 1))
            assert attempt.outcome == "attempt_lost"
            assert attempt.ended_at is not None
            with pytest.raises(errors.StaleFence):
                leases.renew(session, lease, lease_seconds=60)

    def test_leaves_leases_that_run_alone(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            factories.running(session, again(session, job))
            assert reap(session) == 0
            assert again(session, job).state == State.RUNNING

    def test_does_nothing_twice(self, sessions: database.Sessions, job: tables.JobRow) -> None:
        with sessions.begin() as session:
            factories.running(session, again(session, job))
            expire(session, job)
        with sessions.begin() as session:
            assert (reap(session), reap(session)) == (1, 0)
            assert again(session, job).fence == 2

    def test_after_its_own_outage_first_grants_every_worker_a_full_lease(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            factories.running(session, again(session, job))
            expire(session, job, seconds_ago=3000)
        with sessions.begin() as session:
            now = database.now(session)
            assert reap(session, polling_since=now) == 0
            assert reap(session, polling_since=now - timedelta(seconds=55)) == 0
            assert again(session, job).state == State.RUNNING
            assert reap(session, polling_since=now - timedelta(seconds=61)) == 1

    def test_fails_the_job_once_its_attempts_are_used_up(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            once = factories.job(session, project_id=project.id, max_attempts=1)
            factories.running(session, once)
            expire(session, once)
            assert reap(session) == 1
            row = again(session, once)
            assert (row.state, row.state_reason) == (State.FAILED, "attempts_exhausted")
            assert row.failure is not None
            assert row.failure["code"] == "worker_lost"
            assert row.failure["attempt"] == 1
            assert row.finished_at is not None

    def test_ends_a_pause_as_paused_and_free_of_charge(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            once = factories.job(session, project_id=project.id, max_attempts=1)
            factories.running(session, once)
            actions.pause(session, project_id=project.id, job_id=once.id)
            expire(session, once)
            assert reap(session) == 1
            assert again(session, once).state == State.PAUSED
            actions.resume(session, project_id=project.id, job_id=once.id)
            factories.running(session, once)
            expire(session, once)
            assert reap(session) == 1
            assert again(session, once).state == State.FAILED

    def test_waits_for_the_kill_grace_of_a_job_that_is_cancelled(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            factories.running(session, again(session, job))
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            expire(session, job, seconds_ago=5)
            assert reap(session) == 0
            expire(session, job, seconds_ago=11)
            assert reap(session) == 1
            row = again(session, job)
            assert (row.state, row.state_reason) == (State.CANCELLED, "cancelled_by_caller")
            assert row.failure is None

    def test_does_not_end_a_lease_that_is_just_being_renewed(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, again(session, job))
            expire(session, job)
        ended = racing.overtaken(
            sessions, lambda session: leases.renew(session, lease, lease_seconds=60), reap
        )
        assert ended == 0
        with sessions.begin() as session:
            assert again(session, job).state == State.RUNNING

    def test_by_several_at_once_ends_each_lease_once(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            for _ in range(10):
                row = factories.job(session, project_id=project.id)
                factories.running(session, row)
                expire(session, row)

        def work() -> int:
            with sessions.begin() as session:
                return reap(session)

        assert sum(racing.together([work] * 4)) == 10
        with sessions.begin() as session:
            fences = session.scalars(
                sa.select(tables.JobRow.fence).where(tables.JobRow.attempt == 1)
            )
            assert fences.all() == [2] * 10

    def test_beside_workers_that_fail_ends_each_attempt_once(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        held: list[Lease] = []
        with sessions.begin() as session:
            for _ in range(8):
                row = factories.job(session, project_id=project.id)
                held.append(factories.running(session, row))
                expire(session, row)

        def fail_all() -> int:
            failed = 0
            for lease in held:
                try:
                    with sessions.begin() as session:
                        leases.fail(
                            session, lease, code="c", message="m", retryable=True, log_tail=["l"]
                        )
                    failed += 1
                except errors.StaleFence:
                    pass
            return failed

        def reap_all() -> int:
            ended = 0
            for _ in range(8):
                with sessions.begin() as session:
                    ended += reap(session)
            return ended

        assert sum(racing.together([fail_all, reap_all, reap_all])) == 8


LIMIT: dict[str, Any] = {"max_runtime_seconds": 100}


class TestDeadline:
    def begun(self, session: Session, job: tables.JobRow, seconds_ago: float) -> None:
        """Let the current attempt have begun some time ago."""
        attempt = session.get_one(tables.AttemptRow, (job.id, job.attempt))
        attempt.started_at = database.now(session) - timedelta(seconds=seconds_ago)
        session.flush()

    def test_stops_a_job_that_runs_too_long_and_fails_it(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = factories.job(session, project_id=project.id, resources=LIMIT)
            lease = factories.running(session, row)
            self.begun(session, row, 99)
            assert sweeps.enforce_deadlines(session) == 0
            self.begun(session, row, 101)
            assert sweeps.enforce_deadlines(session) == 1
            assert leases.poll(session, lease) is State.CANCELLING
            assert sweeps.enforce_deadlines(session) == 0
            # A user who cancels now does not change how it ends.
            actions.cancel(session, project_id=project.id, job_id=row.id)
            assert leases.stopped(session, lease, log_tail=[]) is State.FAILED
            session.refresh(row)
            assert row.state_reason == "deadline"
            assert row.failure is not None
            assert row.failure["code"] == "deadline"
            assert "max_runtime_seconds is 100" in row.failure["message"]

    def test_that_passes_after_a_cancellation_changes_nothing(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = factories.job(session, project_id=project.id, resources=LIMIT)
            lease = factories.running(session, row)
            self.begun(session, row, 101)
            actions.cancel(session, project_id=project.id, job_id=row.id)
            assert sweeps.enforce_deadlines(session) == 0
            assert leases.stopped(session, lease, log_tail=[]) is State.CANCELLED
            session.refresh(row)
            assert row.failure is None

    def test_counts_active_time_over_all_attempts_but_no_rest(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = factories.job(session, project_id=project.id, resources=LIMIT)
            row.created_at = database.now(session) - HOUR
            lease = factories.running(session, row)
            self.begun(session, row, 60)
            actions.pause(session, project_id=project.id, job_id=row.id)
            leases.stopped(session, lease, log_tail=[])
            assert sweeps.enforce_deadlines(session) == 0
            actions.resume(session, project_id=project.id, job_id=row.id)
            factories.running(session, row)
            assert sweeps.enforce_deadlines(session) == 0
            self.begun(session, row, 45)
            assert sweeps.enforce_deadlines(session) == 1

    def test_of_the_queue_fails_jobs_that_wait_too_long(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            resources = {"queue_deadline_seconds": 100}
            row = factories.job(session, project_id=project.id, resources=resources)
            assert sweeps.enforce_deadlines(session) == 0
            for waiting in (row, again(session, job)):  # of which one may wait for ever
                waiting.queued_at = database.now(session) - HOUR
            session.flush()
            assert sweeps.enforce_deadlines(session) == 1
            session.refresh(row)
            assert (row.state, row.state_reason) == (State.FAILED, "queue_deadline")
            assert row.failure is not None
            assert row.failure["code"] == "deadline"
            assert again(session, job).state == State.QUEUED

    @pytest.mark.parametrize(
        ("act", "state"),
        [
            (lambda session, job: factories.claimed(session, job), State.STARTING),
            (
                lambda session, job: actions.pause(
                    session, project_id=job.project_id, job_id=job.id
                ),
                State.PAUSED,
            ),
        ],
        ids=["claimed", "paused"],
    )
    def test_of_the_queue_spares_a_job_that_is_just_being(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        job: tables.JobRow,
        act: Callable[[Session, tables.JobRow], object],
        state: State,
    ) -> None:
        with sessions.begin() as session:
            resources = {"queue_deadline_seconds": 100}
            row = factories.job(session, project_id=project.id, resources=resources)
            row.queued_at = database.now(session) - HOUR
        ended = racing.overtaken(
            sessions,
            lambda session: act(session, again(session, row)),
            sweeps.enforce_deadlines,
        )
        assert ended == 0
        with sessions.begin() as session:
            assert again(session, row).state == state


class TestRepublish:
    def messages(self, session: Session, job: tables.JobRow) -> int:
        rows = session.scalars(sa.select(tables.OutboxRow.payload)).all()
        return sum(payload["job_id"] == job.id for payload in rows)

    def test_announces_again_what_nobody_has_claimed(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            assert sweeps.republish(session, after_seconds=30) == 0
            again(session, job).announced_at = database.now(session) - timedelta(seconds=31)
            session.flush()
            assert sweeps.republish(session, after_seconds=30) == 1
            assert self.messages(session, job) == 2
            assert sweeps.republish(session, after_seconds=30) == 0

    def test_is_patient_with_a_job_that_has_waited_long(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        # Busy workers have no use for a message every 30 s from each of a thousand jobs.
        with sessions.begin() as session:
            now, row = database.now(session), again(session, job)
            row.queued_at = now - timedelta(minutes=5)
            row.announced_at = now - timedelta(seconds=31)
            session.flush()
            assert sweeps.republish(session, after_seconds=30) == 1
            row = again(session, job)
            row.announced_at = now - timedelta(seconds=31)
            session.flush()
            assert sweeps.republish(session, after_seconds=30) == 0
            assert row.announce_again_at is not None
            assert timedelta(minutes=4) < row.announce_again_at - now < timedelta(minutes=6)
            row.announce_again_at = now
            session.flush()
            assert sweeps.republish(session, after_seconds=30) == 1

    def test_announces_a_job_whose_backoff_has_passed(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, again(session, job))
            leases.fail(session, lease, code="c", message="m", retryable=True, log_tail=[])
            assert sweeps.republish(session, after_seconds=30) == 0
            again(session, job).not_before = database.now(session)
            session.flush()
            assert sweeps.republish(session, after_seconds=30) == 1
            assert self.messages(session, job) == 2

    def test_says_nothing_of_jobs_that_are_held_or_have_ended(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            factories.running(session, again(session, job))
            assert sweeps.republish(session, after_seconds=0) == 0
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert sweeps.republish(session, after_seconds=0) == 0

    def test_by_several_at_once_announces_once(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            again(session, job).announced_at = None

        def work() -> int:
            with sessions.begin() as session:
                return sweeps.republish(session, after_seconds=30)

        assert sum(racing.together([work] * 4)) == 1

    def test_goes_round_all_jobs_when_there_are_more_than_a_batch(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            columns = {
                column.key: getattr(again(session, job), column.key)
                for column in sa.inspect(tables.JobRow).column_attrs
            }
            copies = [
                {**columns, "id": f"job_{number}", "announced_at": None, "priority": number % 10}
                for number in range(sweeps.BATCH + 20)
            ]
            session.execute(sa.insert(tables.JobRow), copies)
            assert sweeps.republish(session, after_seconds=30) == sweeps.BATCH
            assert sweeps.republish(session, after_seconds=30) == 20
            assert sweeps.republish(session, after_seconds=30) == 0
