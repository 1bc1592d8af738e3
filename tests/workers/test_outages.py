"""A worker whose database, store or machine fails it: real servers and processes, odd engines."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from concurrent import futures
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from models_registry.jobs import sweeps
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import database
from models_registry.settings import Settings
from tests import factories, services
from tests.databases import POSTGRES_ONLY, SQLITE_ONLY
from tests.workers import conftest, odd_engine, scenes
from workers import context as contexts
from workers import runner
from workers.context import Context
from workers.engine_launcher import EngineLauncher, Started

LEASE_SECONDS = 2.0

pytestmark = pytest.mark.slow


class OddLauncher(EngineLauncher):
    """Starts an odd engine in place of every engine: no torch, no training, the same pipe."""

    def __init__(self, way: str) -> None:
        super().__init__(is_warm=False)
        self._way = way

    # Any: what the real one takes.
    def start(self, module: str, arguments: list[str], **options: Any) -> Started:
        assert module == "workers.distill"
        return super().start(odd_engine.MODULE, [self._way, *arguments], **options)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    quick = conftest.quick_settings(database_url, tmp_path)
    return quick.model_copy(update={"lease_seconds": LEASE_SECONDS})


@pytest.fixture
def context(settings: Settings) -> Iterator[Context]:
    made = contexts.build(settings, worker_id="wrk_tests", launcher=OddLauncher("training"))
    yield made
    made.engine.dispose()


def submit(context: Context, **changes: Any) -> str:
    """Submit a job that needs no data set."""
    project_id = scenes.project(context)
    with context.sessions.begin() as session:
        factories.teacher(session, context.storage, project_id=project_id)
        wanted = factories.data_free_spec(**changes)
        return factories.job(session, project_id=project_id, **wanted).id


engines = functools.partial(scenes.engines, odd_engine.MODULE)


def reap(context: Context) -> int:
    """End expired leases, as a maintenance process does that has always run."""
    with context.sessions.begin() as session:
        return sweeps.reap(
            session,
            polling_since=database.now(session) - timedelta(hours=1),
            lease_seconds=LEASE_SECONDS,
            kill_grace_seconds=0,
        )


@POSTGRES_ONLY
class TestSilence:
    def test_of_the_line_ends_the_engine_before_the_lease(
        self, context: Context, database_url: str
    ) -> None:
        """No call of the worker returns, while another worker may claim the job."""
        job_id = submit(context, max_attempts=2)
        with services.Line(database_url) as line, futures.ThreadPoolExecutor(1) as pool:
            told = context.settings.model_copy(update={"database_url": line.url})
            afar = contexts.build(told, worker_id="wrk_afar", launcher=context.launcher)
            running = pool.submit(runner.run_job, afar, job_id)
            scenes.wait_until(scenes.has_state(context, job_id, State.RUNNING), "it runs")
            with line.silence():
                assert engines()
                scenes.wait_until(lambda: reap(context), "its lease is ended")
                assert engines() == []
                assert not running.done()
            assert running.result(scenes.PATIENCE_SECONDS) is None
            afar.engine.dispose()
        job = scenes.job(context, job_id)
        # Taken for lost, and uncounted when the worker could speak again.
        assert (job.state, job.state_reason) == (State.QUEUED, Reason.ATTEMPT_LOST)
        assert (job.attempt, job.releases) == (1, 1)
        (attempt,) = scenes.attempts(context, job_id)
        assert attempt.outcome == Reason.DATABASE_UNREACHABLE
        assert scenes.events(context, job_id)[-1].type == "job.attempt_uncounted"

    def test_of_the_server_ends_the_engine_and_costs_no_attempt(
        self, context: Context, postgres_server: str
    ) -> None:
        job_id = submit(context, max_attempts=1)
        with futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(runner.run_job, context, job_id)
            scenes.wait_until(scenes.has_state(context, job_id, State.RUNNING), "it runs")
            with services.frozen(postgres_server):
                began = time.monotonic()
                scenes.wait_until(lambda: not engines(), "the engine has ended")
                assert time.monotonic() - began < LEASE_SECONDS
            assert running.result(scenes.PATIENCE_SECONDS) is None
        job = scenes.job(context, job_id)
        assert (job.state, job.state_reason) == (State.QUEUED, Reason.DATABASE_UNREACHABLE)
        assert (job.attempt, job.releases) == (1, 1)

    def test_of_an_answer_to_a_claim_costs_no_attempt(
        self, context: Context, database_url: str
    ) -> None:
        """The database commits the claim, and its worker does not hear so."""
        job_id = submit(context, max_attempts=1)
        claim = runner._Claim(context, job_id)
        with context.sessions.begin() as session:
            assert claim(session) is not None
        with context.sessions.begin() as session:
            lease = claim(session)
        assert lease is not None
        job = scenes.job(context, job_id)
        assert (job.state, job.attempt, job.releases) == (State.STARTING, 2, 1)


def doing(context: Context, way: str) -> Context:
    """Return the same worker, whose engines do something else."""
    return dataclasses.replace(context, launcher=OddLauncher(way))


@contextlib.contextmanager
def without_store(context: Context) -> Iterator[None]:
    """Let a file stand where the store's folder was during the block: true for root, too."""
    folder = context.settings.data_dir / "storage"
    folder.rename(folder.with_name("away"))
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        folder.with_name("away").rename(folder)


def waits(context: Context, job_id: str) -> bool:
    return scenes.job(context, job_id).state_reason == Reason.WAITING_FOR_STORAGE


@SQLITE_ONLY
class TestStore:
    def test_that_is_down_is_waited_for_with_the_lease_kept(self, context: Context) -> None:
        """For the input first, and then for the finished student."""
        job_id = submit(context, max_attempts=1)
        with futures.ThreadPoolExecutor(1) as pool:
            with without_store(context):
                running = pool.submit(runner.run_job, doing(context, "waiting_for_go"), job_id)
                scenes.wait_until(lambda: waits(context, job_id), "it waits for its input")
                time.sleep(LEASE_SECONDS / 2)
                assert reap(context) == 0
            scenes.wait_until(scenes.has_state(context, job_id, State.RUNNING), "it runs")
            assert not waits(context, job_id)
            with without_store(context):
                odd_engine.go(context.settings.scratch_dir)
                scenes.wait_until(lambda: waits(context, job_id), "it waits with its student")
                assert "byte store" in (scenes.job(context, job_id).state_message or "")
            assert running.result(scenes.PATIENCE_SECONDS) == State.SUCCEEDED
        job = scenes.job(context, job_id)
        assert (job.attempt, job.state_reason) == (1, None)
        assert (job.result or {})["student"] == "digits-kd@1"

    def test_that_is_down_holds_up_no_shutdown(self, context: Context) -> None:
        job_id = submit(context, max_attempts=1)
        with futures.ThreadPoolExecutor(1) as pool, without_store(context):
            running = pool.submit(runner.run_job, context, job_id)
            scenes.wait_until(lambda: waits(context, job_id), "it waits for its input")
            context.shutting_down.set()
            assert running.result(scenes.PATIENCE_SECONDS) == State.QUEUED
        job = scenes.job(context, job_id)
        assert (job.state_reason, job.releases) == (Reason.WORKER_SHUTDOWN, 1)


@SQLITE_ONLY
class TestSupervisor:
    def test_that_fails_says_so_instead_of_falling_silent(self, context: Context) -> None:
        job_id = submit(context, max_attempts=1)
        assert runner.run_job(doing(context, "misreporting"), job_id) == State.FAILED
        failure = scenes.job(context, job_id).failure
        assert failure is not None
        assert failure["code"] == "supervisor_failed"
        assert "KeyError: 'points'" in failure["message"]
        assert any("in relay" in line for line in failure["log_tail"])
        assert engines() == []
