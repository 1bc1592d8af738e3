"""Whose turn it is: a queue of real rows and real claims, without worker processes."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.access import keys
from models_registry.jobs import fair_share, leases, lifecycle
from models_registry.jobs.leases import Lease
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import broker, database, tables
from models_registry.persistence.storage import Storage
from tests import factories, racing
from tests.databases import POSTGRES_ONLY, SQLITE_ONLY

Job = tables.JobRow
Submit = Callable[..., str]


@pytest.fixture
def submit(sessions: database.Sessions, storage: Storage) -> Submit:
    """Queue one more job of a project that is named; the first is made as users do, others copied.

    A copy takes a tenth of the time.
    """
    originals: dict[str, dict[str, Any]] = {}

    def run(
        name: str,
        *,
        priority: int = 0,
        queue: str = "any",
        devices: int = 1,
        at: datetime | None = None,
    ) -> str:
        with sessions.begin() as session:
            if name not in originals:
                project = keys.create_project(session, name=name)
                factories.teacher(session, storage, project_id=project.id)
                row = factories.job(session, project_id=project.id)
                originals[name] = {
                    column.key: getattr(row, column.key) for column in Job.__table__.columns
                }
                session.execute(sa.delete(tables.EventRow).where(tables.EventRow.job_id == row.id))
                session.delete(row)
            submitted = at or database.now(session)
            number = session.scalars(sa.select(sa.func.count()).select_from(Job)).one()
            place = fair_share.claim_order_at(submitted, priority=priority)
            changes = {
                "queue": queue,
                "devices": devices,
                "priority": priority,
                "claim_order_at": place,
            }
            job_id = f"job_{name}{number}"
            session.add(Job(**{**originals[name], **changes, "id": job_id}))
            return job_id

    return run


def take(session: Session, worker: str = "wrk_1", **rules: Any) -> Lease | None:
    """Claim what is next for a worker that takes every queue."""
    rules = {"queues": broker.JOB_QUEUES, **rules}
    chosen = fair_share.next_job(session, **rules)
    limit = rules.get("running_limit")
    if chosen is None:
        return None
    return leases.claim(
        session, job_id=chosen, worker_id=worker, lease_seconds=60, running_limit=limit
    )


def end(session: Session, lease: Lease) -> None:
    leases.fail(session, lease, code="c", message="m", retryable=False, log_tail=[])


def served(sessions: database.Sessions, count: int) -> str:
    """Return the first letters of the projects that one worker serves, one job after another."""
    order = ""
    for _ in range(count):
        with sessions.begin() as session:
            lease = take(session)
            if lease is None:
                return order
            order += lease.job_id.removeprefix("job_")[0]
            end(session, lease)
    return order


def many(submit: Submit, name: str, count: int) -> list[str]:
    return [submit(name) for _ in range(count)]


def held(session: Session) -> dict[str, int]:
    query = sa.select(tables.ProjectRow.name, sa.func.count()).join(
        Job, Job.project_id == tables.ProjectRow.id
    )
    running = query.where(Job.state.in_(lifecycle.HELD)).group_by(tables.ProjectRow.name)
    return {name: count for name, count in session.execute(running)}  # noqa: C416 - rows to pairs


def limit(session: Session, name: str, **limits: Any) -> None:
    session.execute(
        sa.update(tables.ProjectRow).where(tables.ProjectRow.name == name).values(**limits)
    )


class TestBetweenProjects:
    def test_one_worker_goes_round(self, sessions: database.Sessions, submit: Submit) -> None:
        many(submit, "a", 5)
        many(submit, "b", 2)
        many(submit, "c", 1)
        assert sorted(served(sessions, 3)) == ["a", "b", "c"]
        assert sorted(served(sessions, 2)) == ["a", "b"]
        assert served(sessions, 9) == "aaa"

    @SQLITE_ONLY
    def test_idleness_saves_nothing_up(self, sessions: database.Sessions, submit: Submit) -> None:
        many(submit, "a", 8)
        assert served(sessions, 4) == "aaaa"
        many(submit, "b", 4)
        order = served(sessions, 8)
        assert order in ("babababa", "abababab")

    def test_several_workers_are_shared(self, sessions: database.Sessions, submit: Submit) -> None:
        many(submit, "a", 8)
        with sessions.begin() as session:
            first = [take(session) for _ in range(3)]
            assert held(session) == {"a": 3}
        many(submit, "b", 4)
        # Long jobs of one project: whatever becomes free goes to the other, until they are equal.
        with sessions.begin() as session:
            for _ in range(3):
                take(session)
            assert held(session) == {"a": 3, "b": 3}
            assert first[0] is not None
            end(session, first[0])
            take(session)
            assert held(session) == {"a": 3, "b": 3}

    @SQLITE_ONLY
    def test_weights_count_for_one_worker_and_for_several(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        many(submit, "a", 12)
        many(submit, "b", 12)
        with sessions.begin() as session:
            limit(session, "a", share_weight=2.0)
        assert sorted(served(sessions, 9)) == sorted("aaaaaabbb")
        with sessions.begin() as session:
            for _ in range(6):
                take(session)
            assert held(session) == {"a": 4, "b": 2}

    @SQLITE_ONLY
    def test_priorities_do_not_count(self, sessions: database.Sessions, submit: Submit) -> None:
        for _ in range(4):
            submit("a", priority=9)
        many(submit, "b", 4)
        assert sorted(served(sessions, 4)) == ["a", "a", "b", "b"]


class TestInAProject:
    def test_higher_priorities_go_first_and_then_age_decides(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        patient, later = submit("a"), submit("a")
        urgent = submit("a", priority=3)
        for expected in (urgent, patient, later):
            with sessions.begin() as session:
                lease = take(session)
                assert lease is not None
                assert lease.job_id == expected
                end(session, lease)

    @SQLITE_ONLY
    def test_no_stream_of_urgent_jobs_starves_a_patient_one(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        with sessions() as session:
            clock = database.now(session) - timedelta(days=1)
        patient = submit("a", at=clock)
        waits, step = 0, timedelta(minutes=45)
        while True:
            # Each job takes 45 minutes, and before it ends two more urgent ones have come.
            submit("a", priority=9, at=clock)
            submit("a", priority=9, at=clock)
            with sessions.begin() as session:
                lease = take(session)
                assert lease is not None
                if lease.job_id == patient:
                    break
                end(session, lease)
            clock += step
            waits += 1
            assert waits < 100
        # Those that came up to 9 levels later went first; the queue of them only grows.
        assert waits == pytest.approx(2 * 9 * fair_share.AGING / step, abs=2)


class TestWhatIsPassedOver:
    @SQLITE_ONLY
    def test_is_what_this_worker_does_not_take(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        gpu, cpu = submit("a", queue="cuda"), submit("a", queue="cpu")
        with sessions.begin() as session:
            queues = ("any", "cpu")
            assert fair_share.next_job(session, queues=queues) == cpu
            assert fair_share.next_job(session, queues=queues, skipped=[cpu]) is None
            assert fair_share.next_job(session, queues=["cuda"]) == gpu

    @SQLITE_ONLY
    def test_is_what_needs_more_devices_than_this_worker_offers(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        large, small = submit("a", devices=2), submit("a")
        with sessions.begin() as session:
            assert fair_share.next_job(session, queues=["any"]) == small
            assert fair_share.next_job(session, queues=["any"], devices=2) == large
            # Told of the large one, a worker of one device says why it leaves it.
            assert leases.choose(session, announced=large, queues=["any"]).job_id == small
            job = session.get_one(Job, large)
            assert job.state_reason == Reason.TOO_FEW_DEVICES
            assert "needs 2 devices" in str(job.state_message)
            chosen = leases.choose(session, announced=large, queues=["any"], devices=2)
            assert (chosen.job_id, chosen.devices) == (large, 2)

    @SQLITE_ONLY
    def test_is_for_a_while_what_needs_more_devices_than_are_free(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        large, small = submit("a", devices=2), submit("a")

        def choose_of(free: int) -> leases.NextJob:
            return leases.choose(
                session, announced=small, queues=["any"], devices=2, free_devices=free
            )

        with sessions.begin() as session:
            assert choose_of(2) == leases.NextJob(large, 2)
            assert choose_of(1) == leases.NextJob(small, 1, awaits_devices=True)
            job = session.get_one(Job, large)
            assert (job.state, job.state_reason) == (State.QUEUED, Reason.TOO_FEW_DEVICES)
            kept_from = f"From {job.claim_order_at + fair_share.PASSING:%Y-%m-%d %H:%M} UTC on"
            assert kept_from in str(job.state_message)
            # With no device free, the announced job gets a new message: others may take it.
            before = len(messages(session))
            assert choose_of(0) == leases.NextJob(None, awaits_devices=True)
            assert messages(session)[before:] == [small]
            again = leases.choose(
                session, announced=None, queues=["any"], devices=2, free_devices=0
            )
            assert again == leases.NextJob(None, awaits_devices=True)
            assert len(messages(session)) == before + 1

    @SQLITE_ONLY
    def test_is_then_what_needs_fewer_devices_until_the_large_job_has_its_own(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        with sessions() as session:
            long_ago = database.now(session) - fair_share.PASSING
        large, small = submit("a", devices=2, at=long_ago), submit("a")
        with sessions.begin() as session:

            def choose_of(free: int) -> leases.NextJob:
                return leases.choose(
                    session, announced=None, queues=["any"], devices=2, free_devices=free
                )

            assert choose_of(1) == leases.NextJob(None, awaits_devices=True)
            job = session.get_one(Job, large)
            job.state_reason = Reason.NO_ROOM
            session.flush()
            assert choose_of(1) == leases.NextJob(small, 1, awaits_devices=True)
            assert job.state_reason == Reason.NO_ROOM
            job.state_reason = None
            session.flush()
            assert choose_of(2) == leases.NextJob(large, 2)
            # It is not this worker's to wait for: it never offers two.
            other = leases.choose(session, announced=None, queues=["any"])
            assert other == leases.NextJob(small, 1)

    def test_is_what_rests_after_a_failure(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        first, second = many(submit, "a", 2)
        with sessions.begin() as session:
            row = session.get_one(Job, first)
            row.not_before = database.now(session) + timedelta(seconds=30)
            session.flush()
            assert fair_share.next_job(session, queues=["any"]) == second

    def test_is_a_project_that_runs_as_many_as_it_may(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        many(submit, "a", 3)
        many(submit, "b", 3)
        with sessions.begin() as session:
            limit(session, "a", limit_jobs_running=1)
            leased = [take(session, running_limit=2) for _ in range(5)]
            assert held(session) == {"a": 1, "b": 2}
            assert leased.count(None) == 2

    @POSTGRES_ONLY
    def test_holds_for_claims_at_the_same_moment(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        job_ids = many(submit, "a", 4)
        with sessions.begin() as session:
            limit(session, "a", limit_jobs_running=2)

        def claiming(job_id: str) -> Callable[[], Lease | None]:
            def run() -> Lease | None:
                with sessions.begin() as session:
                    return leases.claim(session, job_id=job_id, worker_id="w", lease_seconds=60)

            return run

        claimed = racing.together([claiming(job_id) for job_id in job_ids])
        assert sum(lease is not None for lease in claimed) == 2


class TestChoose:
    def test_gives_the_announced_job_a_new_message_if_another_is_next(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        first, second, third = many(submit, "a", 3)
        with sessions.begin() as session:
            assert choose(session, first) == first
            assert messages(session) == []
            # A message becomes no two where the turn before found no room for its job.
            assert choose(session, third, skipped=[first]) == second
            assert messages(session) == []
            assert choose(session, second) == first
            assert messages(session) == [second]
            # Not for a job that is no longer queued, or for which this worker has no room.
            assert choose(session, "job_none") == first
            assert choose(session, second, skipped=[second]) == first
            assert messages(session) == [second]

    @SQLITE_ONLY
    def test_says_what_a_job_waits_for_and_announces_it_when_that_has_ended(
        self, sessions: database.Sessions, submit: Submit
    ) -> None:
        first, second = many(submit, "a", 2)
        with sessions.begin() as session:
            limit(session, "a", limit_jobs_running=1)
            lease = factories.claimed(session, session.get_one(Job, first))
            assert choose(session, second) is None
            assert choose(session, second) is None
            row = session.get_one(Job, second)
            assert (row.state, row.state_reason) == (State.QUEUED, Reason.RUNNING_QUOTA)
            assert "jobs_running is 1" in (row.state_message or "")
            told = session.scalars(
                sa.select(tables.EventRow.type).where(tables.EventRow.job_id == second)
            )
            assert list(told) == ["job.waiting"]
            assert messages(session) == []
            end(session, lease)
            assert messages(session) == [second]
            assert choose(session, second) == second


def choose(session: Session, announced: str, skipped: Iterable[str] = ()) -> str | None:
    chosen = leases.choose(session, announced=announced, queues=["any"], skipped=list(skipped))
    return chosen.job_id


def messages(session: Session) -> list[str]:
    """Return the jobs of the copies' messages, in order."""
    payloads = session.scalars(
        sa.select(tables.OutboxRow.payload)
        .where(tables.OutboxRow.task == "jobs.run")
        .order_by(tables.OutboxRow.id)
    )
    return [payload["job_id"] for payload in payloads][1:]  # the first is of the original
