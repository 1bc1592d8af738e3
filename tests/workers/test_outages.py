"""A worker whose database, store or machine fails it: real servers and processes, odd engines."""

import contextlib
import dataclasses
import functools
import resource
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
from tests import factories, services, waiting
from tests.databases import POSTGRES_ONLY, SQLITE_ONLY
from tests.workers import conftest, odd_engine, scenes
from workers import context as contexts
from workers import machine_health, runner
from workers.context import Context
from workers.engine_launcher import EngineLauncher, Started
from workers.machine_health import MachineHealth

# A quarter of it is left when an engine is ended, also where other processes want the cores.
LEASE_SECONDS = 4.0

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


def submit(context: Context, *, content: bytes = b"weights", **changes: Any) -> str:
    """Submit a job that needs no data set; its teacher has these bytes."""
    project_id = scenes.project(context)
    with context.sessions.begin() as session:
        factories.teacher(session, context.storage, project_id=project_id, content=content)
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
        def froze() -> float:
            job_id = submit(context, max_attempts=1)
            with futures.ThreadPoolExecutor(1) as pool:
                running = pool.submit(runner.run_job, context, job_id)
                scenes.wait_until(scenes.has_state(context, job_id, State.RUNNING), "it runs")
                with services.frozen(postgres_server):
                    began = time.monotonic()
                    scenes.wait_until(lambda: not engines(), "the engine has ended")
                    took = time.monotonic() - began
                assert running.result(scenes.PATIENCE_SECONDS) is None
            job = scenes.job(context, job_id)
            assert (job.state, job.state_reason) == (State.QUEUED, Reason.DATABASE_UNREACHABLE)
            assert (job.attempt, job.releases) == (1, 1)
            return took

        waiting.takes_less_than(LEASE_SECONDS, froze)

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
                time.sleep(1)
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
        # The odd engine reports too little for a card, which does not cost the student either.
        assert [told["code"] for told in job.warnings or []] == ["card_not_written"]

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


@contextlib.contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """Let no process write a larger file, as on a full disk; an ordinary user can do that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@SQLITE_ONLY
class TestMachine:
    def test_with_a_full_disk_destroys_no_queue(self, context: Context) -> None:
        """Ten jobs of one attempt, taken by a worker that can stage none of them."""
        first = submit(context, content=bytes(8 * 2**20), max_attempts=1)
        project_id = scenes.job(context, first).project_id
        with context.sessions.begin() as session:
            wanted = factories.data_free_spec(max_attempts=1)
            job_ids = [
                first,
                *(factories.job(session, project_id=project_id, **wanted).id for _ in range(9)),
            ]
        with files_up_to(6 * 2**20):
            left = [runner.run_job(context, job_id) for job_id in job_ids]
        assert left == [State.QUEUED, *[None] * 9]  # one failure is enough to stop claiming
        suspension = context.health.suspension
        assert suspension is not None
        assert suspension.code == machine_health.NO_DISK
        job = scenes.job(context, first)
        assert (job.state_reason, job.attempt, job.releases) == (Reason.WORKER_FAILED, 1, 1)
        assert "The worker could not go on: File too large" in (job.state_message or "")
        healthy = dataclasses.replace(doing(context, "finishing"), health=MachineHealth())
        for job_id in job_ids[:2]:
            assert runner.run_job(healthy, job_id) == State.SUCCEEDED

    def test_without_room_for_the_inputs_claims_nothing_and_says_so(self, context: Context) -> None:
        job_id = submit(context)
        free = machine_health.free_bytes(context.settings.data_dir)
        told = context.settings.model_copy(update={"worker_min_free_bytes": 2 * free})
        small = dataclasses.replace(context, settings=told)
        for _ in range(2):
            assert runner.run_job(small, job_id) is None
            job = scenes.job(context, job_id)
            assert (job.state, job.attempt, job.state_reason) == (State.QUEUED, 0, Reason.NO_ROOM)
            assert "RETORT_WORKER_MIN_FREE_BYTES" in (job.state_message or "")
        assert [e.type for e in scenes.events(context, job_id)].count("job.declined") == 1
        assert small.health.suspension is not None  # no job has room there

    def test_whose_engine_says_so_is_not_the_jobs_fault(self, context: Context) -> None:
        job_id = submit(context, max_attempts=1)
        assert runner.run_job(doing(context, "without_device"), job_id) == State.QUEUED
        job = scenes.job(context, job_id)
        assert (job.state_reason, job.releases) == (Reason.WORKER_FAILED, 1)
        assert context.health.suspension is not None
        assert context.health.suspension.code == machine_health.NO_DEVICE

    def test_that_is_well_leaves_the_blame_with_the_engine(self, context: Context) -> None:
        job_id = submit(context, max_attempts=1)
        assert runner.run_job(doing(context, "falling"), job_id) == State.FAILED
        assert context.health.suspension is None
