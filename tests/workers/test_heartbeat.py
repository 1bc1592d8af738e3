import dataclasses
import threading
import time

import psycopg
import pytest
import structlog.testing

from models_registry.jobs import actions, leases
from models_registry.persistence import tables
from tests import factories
from tests.workers import scenes
from workers.context import Context
from workers.heartbeat import Heartbeat


@pytest.fixture
def project(context: Context) -> str:
    return scenes.project(context)


@pytest.fixture
def lease(context: Context, project: str) -> leases.Lease:
    job_id = scenes.submit(context, project)
    with context.sessions.begin() as session:
        return factories.claimed(session, session.get_one(tables.JobRow, job_id))


def with_clocks(context: Context, **clocks: float) -> Context:
    return dataclasses.replace(context, settings=context.settings.model_copy(update=clocks))


class TestHeartbeat:
    def test_extends_the_lease(self, context: Context, lease: leases.Lease) -> None:
        before = scenes.job(context, lease.job_id).lease_expires_at
        assert before is not None

        def is_later() -> bool:
            now = scenes.job(context, lease.job_id).lease_expires_at
            return now is not None and now > before

        with Heartbeat(context, lease) as heartbeat:
            scenes.wait_until(is_later, "the lease is extended")
            assert not heartbeat.lost
            assert not heartbeat.stop_wanted

    @pytest.mark.parametrize("verb", [actions.pause, actions.cancel])
    def test_notices_within_a_poll_what_the_user_wants(
        self, context: Context, project: str, lease: leases.Lease, verb: object
    ) -> None:
        with Heartbeat(context, lease) as heartbeat:
            with context.sessions.begin() as session:
                verb(session, project_id=project, job_id=lease.job_id)  # type: ignore[operator]  # one of two verbs
            scenes.wait_until(lambda: heartbeat.stop_wanted, "the wish is known")
            assert not heartbeat.lost

    def test_loses_the_lease_when_a_reaper_moves_the_fence(
        self, context: Context, lease: leases.Lease
    ) -> None:
        with Heartbeat(context, lease) as heartbeat:
            with context.sessions.begin() as session:
                factories.lost(session, session.get_one(tables.JobRow, lease.job_id))
            scenes.wait_until(lambda: heartbeat.lost, "the loss is known")

    def test_loses_the_lease_when_the_next_worker_holds_the_job(
        self, context: Context, lease: leases.Lease
    ) -> None:
        with context.sessions.begin() as session:
            row = session.get_one(tables.JobRow, lease.job_id)
            factories.lost(session, row)
            factories.claimed(session, row, worker_id="wrk_2")
        with Heartbeat(context, lease) as heartbeat:
            scenes.wait_until(lambda: heartbeat.lost, "the loss is known")
        assert scenes.job(context, lease.job_id).lease_owner == "wrk_2"

    def test_says_nothing_when_its_attempt_has_just_ended(
        self, context: Context, lease: leases.Lease
    ) -> None:
        """Between the last write and the end of the block a beat finds the job final."""
        with structlog.testing.capture_logs() as logged, Heartbeat(context, lease) as heartbeat:
            with context.sessions.begin() as session:
                leases.fail(
                    session, lease, code="diverged", message="x", retryable=False, log_tail=[]
                )
            scenes.wait_until(lambda: heartbeat.lost, "a beat has come")
        assert [line for line in logged if line["log_level"] == "warning"] == []

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    def test_looks_past_the_writer_of_sqlite(
        self, context: Context, project: str, lease: leases.Lease
    ) -> None:
        with context.sessions.begin() as session:
            actions.pause(session, project_id=project, job_id=lease.job_id)
        with context.sessions.begin() as session:
            session.get_one(tables.JobRow, lease.job_id)  # holds the one write lock
            with Heartbeat(with_clocks(context, heartbeat_seconds=40), lease) as heartbeat:
                scenes.wait_until(lambda: heartbeat.stop_wanted, "the wish is known")

    def test_ends_with_its_block(self, context: Context, lease: leases.Lease) -> None:
        with Heartbeat(context, lease):
            pass
        assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestOutage:
    def test_that_is_short_loses_nothing(
        self, context: Context, lease: leases.Lease, database_url: str
    ) -> None:
        with structlog.testing.capture_logs() as logged, Heartbeat(context, lease) as heartbeat:
            with scenes.unreachable(database_url):
                scenes.wait_until(lambda: "database_unreachable" in str(logged), "it is noticed")
            before = scenes.job(context, lease.job_id).lease_expires_at
            assert before is not None
            scenes.wait_until(
                lambda: scenes.job(context, lease.job_id).lease_expires_at != before,
                "the lease is extended again",
            )
            assert not heartbeat.lost

    def test_that_lasts_almost_as_long_as_the_lease_loses_it(
        self, context: Context, lease: leases.Lease, database_url: str
    ) -> None:
        hasty = with_clocks(context, lease_seconds=1, heartbeat_seconds=0.2)
        with Heartbeat(hasty, lease) as heartbeat, scenes.unreachable(database_url):
            scenes.wait_until(lambda: heartbeat.lost, "the lease is given up")
            # Since the last renewal, which was some time before the outage.
            assert time.monotonic() - heartbeat._renewed > 0.75

    def test_in_which_a_call_never_returns_loses_the_lease_too(
        self, context: Context, lease: leases.Lease, database_url: str
    ) -> None:
        hasty = with_clocks(context, lease_seconds=1, heartbeat_seconds=0.2)
        with (
            psycopg.connect(database_url.replace("+psycopg", "")) as somebody,
            Heartbeat(hasty, lease) as heartbeat,
        ):
            somebody.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            scenes.wait_until(lambda: heartbeat.lost, "the lease is given up")
            assert heartbeat._thread.is_alive()
            somebody.rollback()
