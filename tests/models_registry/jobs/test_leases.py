"""What a worker may do while it holds the lease, and that it can do nothing once it does not."""

import itertools
import math
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import models
from models_registry.jobs import actions, leases, transitions
from models_registry.jobs.leases import Lease, MetricSample
from models_registry.jobs.lifecycle import Event, Reason, State
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.retention.policies import RetentionPolicy
from tests import factories, racing
from tests.databases import SQLITE_ONLY


@pytest.fixture
def lease(sessions: database.Sessions, job: tables.JobRow) -> Lease:
    """The right to work on the job, whose engine runs."""
    with sessions.begin() as session:
        return factories.running(session, again(session, job))


def again(session: Session, job: tables.JobRow) -> tables.JobRow:
    """Return the job as this session sees it."""
    return session.get_one(tables.JobRow, job.id, populate_existing=True)


def claim(session: Session, job: tables.JobRow, worker: str = "wrk_1") -> Lease | None:
    return leases.claim(session, job_id=job.id, worker_id=worker, lease_seconds=60)


def attempt(session: Session, lease: Lease) -> tables.AttemptRow:
    return session.get_one(tables.AttemptRow, (lease.job_id, lease.attempt))


def finish(session: Session, lease: Lease, storage: Storage) -> State:
    file = factories.stored(session, storage, b"student")
    student = factories.new_version("digits-student", job_id=lease.job_id)
    return leases.complete(
        session, lease, result={"wall_seconds": 1}, student=student, files=[file]
    )


def fail(session: Session, lease: Lease, *, retryable: bool, code: str = "c") -> State:
    return leases.fail(
        session, lease, code=code, message="m", retryable=retryable, log_tail=["last words"]
    )


def keep(session: Session, lease: Lease, storage: Storage, step: int) -> None:
    file = factories.stored(session, storage, f"checkpoint {step}".encode())
    leases.checkpoint(session, lease, file, step=step, epoch=1, phase="student")


def report(
    session: Session, lease: Lease, *points: MetricSample, progress: float | None = None
) -> State:
    return leases.report(
        session, lease, progress=progress, estimated_end_at=None, samples=list(points)
    )


def students(session: Session) -> list[tables.ModelVersionRow]:
    row = tables.ModelVersionRow
    return list(session.scalars(sa.select(row).where(row.job_id.is_not(None))))


class TestClaim:
    def test_takes_the_job_and_moves_the_fence(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            assert claim(session, job) == Lease(job.id, attempt=1, fence=1)
            row = again(session, job)
            assert (row.state, row.lease_owner) == (State.STARTING, "wrk_1")
            assert row.lease_expires_at is not None
            left = (row.lease_expires_at - database.now(session)).total_seconds()
            assert 55 < left <= 60

    def test_finds_nothing_in_a_job_that_is_not_queued_or_not_there(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            assert leases.claim(session, job_id="job_x", worker_id="w", lease_seconds=60) is None
            assert claim(session, job)
            assert claim(session, job) is None
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert claim(session, job) is None

    def test_waits_for_the_backoff(self, sessions: database.Sessions, job: tables.JobRow) -> None:
        with sessions.begin() as session:
            row = again(session, job)
            row.not_before = database.now(session) + timedelta(seconds=30)
            assert claim(session, job) is None
            row.not_before = database.now(session) - timedelta(seconds=1)
            session.flush()
            assert claim(session, job) is not None

    def test_by_two_workers_at_once_has_one_winner(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        loser = racing.overtaken(
            sessions,
            lambda session: factories.claimed(session, again(session, job), worker_id="wrk_1"),
            lambda session: claim(session, job, "wrk_2"),
        )
        assert loser is None
        with sessions.begin() as session:
            assert again(session, job).lease_owner == "wrk_1"

    def test_by_fifty_workers_at_once_has_one_winner(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        def one(number: int) -> Callable[[], Lease | None]:
            def take() -> Lease | None:
                with sessions.begin() as session:
                    return claim(session, job, f"wrk_{number}")

            return take

        found = racing.together([one(number) for number in range(50)])
        assert [lease for lease in found if lease] == [Lease(job.id, 1, 1)]
        with sessions.begin() as session:
            row = again(session, job)
            assert found[int(str(row.lease_owner).removeprefix("wrk_"))] is not None
            assert session.scalars(sa.select(sa.func.count(tables.AttemptRow.number))).one() == 1

    def test_counts_on_from_what_it_sees_under_the_lock(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        # While the second looked, the first had the job and lost it: it is queued as before, but
        # fence and attempt have moved, and its back-off has not passed.
        def had_and_lost(session: Session) -> None:
            fail(session, factories.claimed(session, again(session, job)), retryable=True)

        assert racing.overtaken(sessions, had_and_lost, lambda s: claim(s, job)) is None

        def had_and_gave_back(session: Session) -> None:
            row = again(session, job)
            row.not_before = database.now(session)
            leases.release(session, factories.claimed(session, row), log_tail=[])

        found = racing.overtaken(sessions, had_and_gave_back, lambda s: claim(s, job))
        # SQLite's second transaction had not begun; on both it comes after two attempts.
        assert found in (None, Lease(job.id, 3, 3))

    def test_of_a_duplicate_message_is_harmless(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            assert claim(session, job, "wrk_2") is None
            finish(session, lease, storage)
        with sessions.begin() as session:
            assert claim(session, job, "wrk_2") is None
            assert again(session, job).state == State.SUCCEEDED


# Every write of a worker, by its name.
WRITES: dict[str, Callable[[Session, Lease, Storage], object]] = {
    "started": lambda s, lease, _: leases.started(s, lease, device="d", resumed_from_step=1),
    "renew": lambda s, lease, _: leases.renew(s, lease, lease_seconds=60),
    "poll": lambda s, lease, _: leases.poll(s, lease),
    "report": lambda s, lease, _: report(
        s, lease, MetricSample("loss/total", 1, 1, 1.0), progress=0.9
    ),
    "warn": lambda s, lease, _: leases.warn(s, lease, code="c", message="m"),
    "checkpoint": lambda s, lease, storage: keep(s, lease, storage, 1),
    "complete": finish,
    "fail": lambda s, lease, _: fail(s, lease, retryable=False),
    "fail_retryable": lambda s, lease, _: fail(s, lease, retryable=True),
    "stopped": lambda s, lease, _: leases.stopped(s, lease, log_tail=[]),
    "release": lambda s, lease, _: leases.release(s, lease, log_tail=[]),
}


def refuses_every_write(sessions: database.Sessions, lease: Lease, storage: Storage) -> None:
    """Assert that each write with this lease is refused and leaves no trace."""
    before = snapshot(sessions)
    for name, write in WRITES.items():
        with pytest.raises(errors.StaleFence), sessions.begin() as session:
            write(session, lease, storage)
        assert snapshot(sessions) == before, name


class TestFence:
    def test_that_is_stale_can_write_nothing(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            factories.lost(session, again(session, job))
            factories.running(session, again(session, job), worker_id="wrk_2")
        refuses_every_write(sessions, lease, storage)

    @SQLITE_ONLY
    def test_is_stale_from_the_moment_the_lease_was_ended(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            factories.lost(session, again(session, job))
        refuses_every_write(sessions, lease, storage)

    @SQLITE_ONLY
    def test_does_not_open_a_job_that_has_ended(
        self, sessions: database.Sessions, storage: Storage, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            finish(session, lease, storage)
        refuses_every_write(sessions, lease, storage)

    def test_holds_against_a_reaper_that_is_quicker(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        def late(session: Session) -> str:
            try:
                return finish(session, lease, storage)
            except errors.StaleFence:
                session.rollback()
                return "stale"

        answer = racing.overtaken(
            sessions, lambda session: factories.lost(session, again(session, job)), late
        )
        assert answer == "stale"
        with sessions.begin() as session:
            assert students(session) == []


def snapshot(sessions: database.Sessions) -> list[object]:
    """Return every row of the database."""
    with sessions.begin() as session:
        return [
            session.execute(sa.select(table)).all() for table in tables.Row.metadata.tables.values()
        ]


class TestRenew:
    def test_extends_the_lease_and_tells_what_the_user_wants(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            assert leases.renew(session, lease, lease_seconds=600) is State.RUNNING
            expires = again(session, job).lease_expires_at
            assert expires is not None
            assert expires > database.now(session) + timedelta(seconds=500)
            actions.pause(session, project_id=job.project_id, job_id=job.id)
            assert leases.renew(session, lease, lease_seconds=60) is State.PAUSING
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert leases.renew(session, lease, lease_seconds=60) is State.CANCELLING
            assert leases.poll(session, lease) is State.CANCELLING

    def test_of_a_lease_that_ran_out_unnoticed_revives_it(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            row = again(session, job)
            row.lease_expires_at = database.now(session) - timedelta(seconds=5)
            session.flush()
            assert leases.renew(session, lease, lease_seconds=60) is State.RUNNING


class TestStarted:
    def test_notes_device_and_point_of_resumption(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            lease = factories.claimed(session, again(session, job))
            leases.started(session, lease, device="cuda:0", resumed_from_step=120)
            found = attempt(session, lease)
            assert (found.device, found.resumed_from_step) == ("cuda:0", 120)
            assert again(session, job).state == State.RUNNING

    def test_keeps_the_time_of_the_first_start(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = again(session, job)
            leases.release(session, factories.running(session, row), log_tail=[])
            first = again(session, job).started_at
            factories.running(session, row)
            assert again(session, job).started_at == first is not None


class TestReport:
    def test_stores_a_batch_that_comes_twice_once(
        self, sessions: database.Sessions, lease: Lease
    ) -> None:
        points = [MetricSample("loss/total", step, 1, step / 10) for step in range(600)]
        for _ in range(2):
            with sessions.begin() as session:
                report(session, lease, *points)
        # What was stored first stays, also where the repetition says something else.
        with sessions.begin() as session:
            report(
                session,
                lease,
                MetricSample("loss/total", 3, 1, 99.0),
                MetricSample("loss/kd", 3, 1, 1.0),
            )
        row = tables.MetricRow
        with sessions.begin() as session:
            found = session.execute(sa.select(row.key, row.step, row.value)).all()
        assert len(found) == 601
        assert ("loss/total", 3, 0.3) in found

    def test_keeps_what_is_not_finite(self, sessions: database.Sessions, lease: Lease) -> None:
        values = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308]
        with sessions.begin() as session:
            report(
                session, lease, *(MetricSample("k", n, 1, value) for n, value in enumerate(values))
            )
        row = tables.MetricRow
        with sessions.begin() as session:
            found = session.scalars(sa.select(row.value).order_by(row.step)).all()
        assert math.isnan(found[0])
        assert found[1:] == values[1:]

    def test_keeps_any_key(self, sessions: database.Sessions, lease: Lease) -> None:
        keys = ['a"b', "a\\b", "a,b", "{a}", "NULL", "", " a ", "a'b", "\u00e4\u2603", '\\"']
        with sessions.begin() as session:
            report(session, lease, *(MetricSample(key, 1, None, 1.0) for key in keys))
        row = tables.MetricRow
        with sessions.begin() as session:
            found = session.execute(sa.select(row.key, row.epoch)).all()
        assert {key for key, _ in found} == set(keys)
        assert {epoch for _, epoch in found} == {None}

    def test_keeps_attempts_apart(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            report(session, lease, MetricSample("k", 1, 1, 1.0))
            factories.lost(session, again(session, job))
            second = factories.running(session, again(session, job))
            report(session, second, MetricSample("k", 1, 1, 2.0))
        row = tables.MetricRow
        with sessions.begin() as session:
            found = session.execute(sa.select(row.attempt, row.value).order_by(row.attempt))
            assert found.all() == [(1, 1.0), (2, 2.0)]

    def test_writes_progress_only_when_there_is_some(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            assert report(session, lease, progress=0.25) is State.RUNNING
            report(session, lease, MetricSample("k", 1, None, 1.0))
            assert again(session, job).progress == 0.25


class TestWarn:
    def test_adds_to_the_events_in_order(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            leases.warn(session, lease, code="resized", message="8 to 32 pixels")
        with sessions.begin() as session:
            row = again(session, job)
            last = session.get_one(tables.EventRow, (job.id, row.last_sequence))
            assert (last.type, last.data["code"]) == ("job.warning", "resized")


class TestCheckpoint:
    def test_keeps_the_newest_two(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        assert RetentionPolicy().checkpoints_last == 2
        for step in (10, 20, 30, 40):
            with sessions.begin() as session:
                keep(session, lease, storage, step)
        with sessions.begin() as session:
            assert [row.step for row in leases.checkpoints(session, job_id=job.id)] == [40, 30]

    def test_keeps_as_many_as_the_job_says(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        with sessions.begin() as session:
            wanted = {"teacher": None, "method": {"name": "ce"}, "checkpoints_last": 3}
            row = factories.job(session, project_id=project.id, **wanted)
            running = factories.running(session, row)
            assert row.spec["checkpoints_last"] == 3
        for step in (10, 20, 30, 40):
            with sessions.begin() as session:
                keep(session, running, storage, step)
        with sessions.begin() as session:
            assert [row.step for row in leases.checkpoints(session, job_id=running.job_id)] == [
                40,
                30,
                20,
            ]

    def test_of_a_later_attempt_is_newer_though_its_step_is_lower(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            keep(session, lease, storage, 100)
        with sessions.begin() as session:
            factories.lost(session, again(session, job))
            second = factories.running(session, again(session, job))
            keep(session, second, storage, 50)
        with sessions.begin() as session:
            found = leases.checkpoints(session, job_id=job.id)
            assert [(row.attempt, row.step) for row in found] == [(2, 50), (1, 100)]

    def test_survives_the_end_of_its_attempt_but_not_success(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            keep(session, lease, storage, 10)
            leases.release(session, lease, log_tail=[])
            assert len(leases.checkpoints(session, job_id=job.id)) == 1
            second = factories.running(session, again(session, job))
            finish(session, second, storage)
            assert leases.checkpoints(session, job_id=job.id) == []


class TestComplete:
    def test_registers_the_student_and_ends_the_job(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            assert finish(session, lease, storage) is State.SUCCEEDED
        with sessions.begin() as session:
            row = again(session, job)
            (student,) = students(session)
            assert (row.state, row.progress, row.lease_owner) == (State.SUCCEEDED, 1.0, None)
            assert row.finished_at is not None
            assert row.student_version_id == student.id
            assert row.result == {
                "wall_seconds": 1,
                "student": "digits-student@1",
                "digest": f"sha256:{student.sha256}",
            }
            assert (student.state, student.job_id) == ("ready", job.id)
            found = models.file(session, student, path=models.WEIGHTS)
            assert storage.exists(found.storage_key)
            ended = attempt(session, lease)
            assert (ended.outcome, ended.ended_at) == ("succeeded", row.finished_at)

    def test_twice_registers_once(
        self, sessions: database.Sessions, storage: Storage, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            finish(session, lease, storage)
        with pytest.raises(errors.StaleFence), sessions.begin() as session:
            finish(session, lease, storage)
        with sessions.begin() as session:
            assert len(students(session)) == 1

    def test_at_the_same_time_registers_once(
        self, sessions: database.Sessions, storage: Storage, lease: Lease
    ) -> None:
        def work() -> str:
            try:
                with sessions.begin() as session:
                    return finish(session, lease, storage)
            except errors.StaleFence:
                return "stale"

        assert sorted(racing.together([work] * 4)) == ["stale"] * 3 + ["succeeded"]
        with sessions.begin() as session:
            assert [row.version for row in students(session)] == [1]

    def test_while_cancelling_registers_nothing(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            keep(session, lease, storage, 10)
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert finish(session, lease, storage) is State.CANCELLED
        with sessions.begin() as session:
            row = again(session, job)
            assert (row.state, row.state_reason) == (State.CANCELLED, "cancelled_by_caller")
            assert (row.result, row.student_version_id) == (None, None)
            assert students(session) == []
            assert len(leases.checkpoints(session, job_id=job.id)) == 1

    def test_while_pausing_wins(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            actions.pause(session, project_id=job.project_id, job_id=job.id)
            assert finish(session, lease, storage) is State.SUCCEEDED
            assert len(students(session)) == 1

    def test_that_is_overtaken_by_a_cancellation_registers_nothing(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow, lease: Lease
    ) -> None:
        state = racing.overtaken(
            sessions,
            lambda session: actions.cancel(session, project_id=job.project_id, job_id=job.id),
            lambda session: finish(session, lease, storage),
        )
        assert state is State.CANCELLED
        with sessions.begin() as session:
            assert students(session) == []

    def test_that_cannot_register_leaves_the_job_running(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        nowhere = leases.OutputFile("model.safetensors", "0" * 64, 1, "k")
        broken = factories.new_version("digits-student", job_id=job.id, network=None)
        with pytest.raises(sa.exc.IntegrityError), sessions.begin() as session:
            leases.complete(session, lease, result={}, student=broken, files=[nowhere])
        with sessions.begin() as session:
            assert again(session, job).state == State.RUNNING
            assert students(session) == []


class TestReleaseUnfit:
    def test_counts_only_when_many_machines_have_failed_at_the_job(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = again(session, job)
            row.max_attempts = 1
            for number in range(1, leases.UNFIT_LIMIT):
                lease = factories.claimed(session, row)
                state = leases.release_unfit(session, lease, message="no disk", log_tail=[])
                row = again(session, job)
                assert (state, row.state_reason) == (State.QUEUED, Reason.WORKER_FAILED)
                assert row.releases == number
            lease = factories.claimed(session, row)
            assert leases.release_unfit(session, lease, message="x", log_tail=[]) == State.FAILED
            failure = again(session, job).failure
        assert failure is not None
        assert failure["code"] == "worker_failed"


class TestReturnLost:
    MESSAGE = "The database was silent."

    def test_hands_back_what_nobody_has_ended(
        self, sessions: database.Sessions, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            assert leases.return_lost(session, lease, message=self.MESSAGE)
            job = session.get_one(tables.JobRow, lease.job_id)
            assert (job.state, job.state_reason) == (State.QUEUED, Reason.DATABASE_UNREACHABLE)
            assert job.releases == 1
            assert not leases.return_lost(session, lease, message=self.MESSAGE)

    def test_uncounts_once_what_was_ended_as_lost_while_another_works(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            factories.lost(session, again(session, job))
            second = factories.running(session, again(session, job), worker_id="wrk_2")
            assert leases.return_lost(session, lease, message=self.MESSAGE)
            assert not leases.return_lost(session, lease, message=self.MESSAGE)
            assert again(session, job).releases == 1
            assert leases.poll(session, second) == State.RUNNING
            assert attempt(session, lease).outcome == Reason.DATABASE_UNREACHABLE

    def test_leaves_a_job_that_has_ended_for_good(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            again(session, job).max_attempts = 1
            session.flush()
            transitions.move(
                session, again(session, job), Event.LEASE_EXPIRED, because=Reason.ATTEMPT_LOST
            )
            assert not leases.return_lost(session, lease, message=self.MESSAGE)
            assert again(session, job).state == State.FAILED


class TestFail:
    def test_for_good_says_why(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            assert fail(session, lease, retryable=False, code="diverged") is State.FAILED
            row = again(session, job)
            assert row.state_reason == "engine_failed"
            assert row.failure == {
                "code": "diverged",
                "message": "m",
                "retryable": False,
                "attempt": 1,
                "log_tail": ["last words"],
            }
            assert attempt(session, lease).log_tail == ["last words"]

    def test_retryably_queues_again_later_and_silently(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            assert fail(session, lease, retryable=True) is State.QUEUED
            row = again(session, job)
            assert (row.state_reason, row.failure) == ("attempt_failed", None)
            assert row.queued_at is not None
            assert row.not_before > row.queued_at
            # Announced once the back-off has passed, not before.
            assert row.announced_at is None
            assert session.scalars(sa.select(sa.func.count(tables.OutboxRow.id))).one() == 1
            ended = attempt(session, lease)
            assert (ended.outcome, ended.message) == ("attempt_failed", "m")
            assert ended.log_tail == ["last words"]

    def test_retryably_fails_once_the_attempts_are_used_up(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        states = []
        with sessions.begin() as session:
            row = again(session, job)
            for number in itertools.count(1):
                row.not_before = row.created_at
                session.flush()
                lease = factories.running(session, row)
                assert lease.attempt == number
                states.append(fail(session, lease, retryable=True, code="engine_crashed"))
                if states[-1] is State.FAILED:
                    break
            session.refresh(row)
            assert states == [State.QUEUED, State.QUEUED, State.FAILED]
            assert row.state_reason == "attempts_exhausted"
            assert row.failure is not None
            assert (row.failure["code"], row.failure["attempt"]) == ("engine_crashed", 3)

    @pytest.mark.parametrize("retryable", [True, False])
    def test_while_cancelling_ends_as_cancelled(
        self,
        sessions: database.Sessions,
        job: tables.JobRow,
        lease: Lease,
        retryable: bool,
    ) -> None:
        with sessions.begin() as session:
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert fail(session, lease, retryable=retryable) is State.CANCELLED
            row = again(session, job)
            assert (row.state_reason, row.failure) == ("cancelled_by_caller", None)


class TestStopped:
    def test_while_cancelling_ends_the_job_and_says_who_wanted_it(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert leases.stopped(session, lease, log_tail=["bye"]) is State.CANCELLED
            row = again(session, job)
            assert (row.state_reason, row.lease_owner) == ("cancelled_by_caller", None)
            ended = attempt(session, lease)
            assert (ended.outcome, ended.log_tail) == ("cancelled_by_caller", ["bye"])

    def test_unasked_is_an_error_of_ours(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with pytest.raises(errors.Conflict, match="cannot happen"), sessions.begin() as session:
            leases.stopped(session, lease, log_tail=[])
        with sessions.begin() as session:
            assert again(session, job).state == State.RUNNING
            assert attempt(session, lease).log_tail is None


class TestRelease:
    def test_queues_the_job_again_at_once_and_free_of_charge(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            once = factories.job(session, project_id=project.id, max_attempts=1)
            for _ in range(3):
                lease = factories.running(session, once)
                assert leases.release(session, lease, log_tail=[]) is State.QUEUED
            session.refresh(once)
            assert (once.attempt, once.releases) == (3, 3)
            assert once.state_reason == "worker_shutdown"
            assert once.announced_at is not None
            lease = factories.running(session, once)
            assert fail(session, lease, retryable=True) is State.FAILED

    def test_while_pausing_pauses_and_counts_the_release_once(
        self, sessions: database.Sessions, job: tables.JobRow, lease: Lease
    ) -> None:
        with sessions.begin() as session:
            actions.pause(session, project_id=job.project_id, job_id=job.id)
            assert leases.release(session, lease, log_tail=[]) is State.PAUSED
            assert again(session, job).releases == 1


class TestActiveTime:
    def test_is_the_sum_of_the_attempts(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = again(session, job)
            for seconds in (100, 20):
                lease = factories.running(session, row)
                begun = attempt(session, lease)
                begun.started_at = database.now(session) - timedelta(seconds=seconds)
                session.flush()
                leases.release(session, lease, log_tail=[])
            # What passes meanwhile counts, too.
            assert 120 <= again(session, job).active_seconds < 180
