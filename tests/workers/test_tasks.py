"""Messages to real worker processes: done, refused, handed back."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from models_registry.jobs import workers
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import tables
from models_registry.settings import Settings
from tests import services
from tests.databases import SQLITE_ONLY
from tests.workers import conftest, processes, scenes
from workers import liveness, machine_health
from workers.context import Context

JOBS = ("-Q", "any,cpu")

pytestmark = pytest.mark.slow


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with services.redis_server(folder) as url:
        yield url


@pytest.fixture
def settings(database_url: str, tmp_path: Path, broker_url: str) -> Settings:
    return conftest.quick_settings(database_url, tmp_path, broker_url)


@pytest.fixture
def project(context: Context) -> str:
    return scenes.project(context)


def announced(context: Context) -> list[tables.WorkerRow]:
    with context.readers.begin() as session:
        return session.query(tables.WorkerRow).all()


def is_described(context: Context) -> bool:
    return any(row.versions for row in announced(context))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestWorker:
    def test_announces_itself_does_a_job_hands_the_next_back_and_leaves(
        self, context: Context, project: str
    ) -> None:
        with processes.worker(context.settings, *JOBS) as worker:
            scenes.wait_until(lambda: is_described(context), "the worker is announced")
            (row,) = announced(context)
            assert row.queues == ["any", "cpu"]
            assert row.devices[-1]["kind"] == "cpu"
            assert 1 <= row.devices[-1]["cores"] <= (os.cpu_count() or 1)
            assert row.versions.keys() >= {"python", "torch"}
            assert row.memory_bytes > 0
            assert row.name == f"worker-{row.id[-6:]}"
            assert liveness.fault(context.settings) is None
            job_id = scenes.submit(context, project)
            assert scenes.job(context, job_id).state_message is None  # somebody will take it
            assert processes.relay(context) == 1
            scenes.wait_until(scenes.has_state(context, job_id, State.SUCCEEDED), "the job is done")
            (attempt,) = scenes.attempts(context, job_id)
            assert attempt.worker_id == row.id
            begun = scenes.submit(context, project, training=scenes.ENDLESS)
            processes.relay(context)
            scenes.wait_until(scenes.has_state(context, begun, State.RUNNING), "the job runs")
            untouched = scenes.submit(context, project)
            processes.relay(context)
            waiting = processes.waiting(context.settings.broker_url)
            assert list(waiting.values()) == [1]
            assert processes.stop(worker) < 20
            assert worker.process.returncode == 0
            # Which measures of isolation a machine allows is told at every start.
            told = [line for line in worker.complaints() if '"event": "isolation"' not in line]
            assert told == []
            assert f'"job_id": "{job_id}"' in worker.log()
        job = scenes.job(context, begun)
        assert (job.state, job.state_reason) == (State.QUEUED, Reason.WORKER_SHUTDOWN)
        assert job.releases == 1
        assert scenes.job(context, untouched).attempt == 0
        assert processes.waiting(context.settings.broker_url) == waiting
        assert "no worker" in (liveness.fault(context.settings) or "")
        (row,) = announced(context)
        assert row.stopped_at is not None
        with context.readers.begin() as session:
            assert workers.anyone_takes(session, queue="any") is False


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestKilledWorker:
    def test_takes_pool_engine_and_clock_along(self, context: Context, project: str) -> None:
        with processes.worker(context.settings, "-Q", "any,maintenance", "-B") as worker:
            job_id = scenes.submit(context, project, training=scenes.ENDLESS)
            processes.relay(context)
            scenes.wait_until(scenes.has_state(context, job_id, State.STARTING), "it starts")
            scenes.wait_until(lambda: scenes.engines(), "the engine runs")
            family = worker.family()
            assert len(family) >= 5  # itself, its supervisor, engine server, engine, clock
            try:
                os.kill(worker.process.pid, signal.SIGKILL)
                worker.process.wait()
                scenes.wait_until(
                    lambda: all(scenes.has_ended(process.pid) for process in family), "all are gone"
                )
            finally:
                for process in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


@SQLITE_ONLY
class TestWorkerWhoseSupervisorWasKilled:
    def test_leaves_when_told(self, context: Context, project: str) -> None:
        with processes.worker(context.settings, "-Q", "maintenance", "-B") as worker:
            scenes.submit(context, project)
            scenes.wait_until(lambda: "sweep_done" in worker.log(), "a supervisor has done a task")
            # It waits for the shutdown in a thread; beat has none.
            max(worker.family()[1:], key=psutil.Process.num_threads).kill()
            scenes.wait_until(lambda: "SIGKILL" in worker.log(), "its end is noticed")
            assert processes.stop(worker) < 20
            assert worker.process.returncode == 0


@SQLITE_ONLY
class TestSuspendedWorker:
    def test_leaves_messages_to_others(self, context: Context, project: str) -> None:
        """Its disk has less room than its settings ask for: real for any user."""
        free = machine_health.free_bytes(context.settings.data_dir)
        settings = context.settings.model_copy(update={"worker_min_free_bytes": 2 * free})
        with processes.worker(settings, *JOBS):
            job_id = scenes.submit(context, project)
            processes.relay(context)

            def is_suspended() -> bool:
                return any(row.fault is not None for row in announced(context))

            scenes.wait_until(is_suspended, "it is suspended")
            assert scenes.job(context, job_id).state_reason == Reason.NO_ROOM
            scenes.submit(context, project)
            processes.relay(context)
            time.sleep(1.5)  # longer than a consumer waits for the next message
            assert list(processes.waiting(context.settings.broker_url).values()) == [1]
