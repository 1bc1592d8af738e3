"""A worker with two slots and two devices: real processes, jobs side by side."""

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from models_registry.jobs import actions
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import broker, tables
from tests import services
from tests.workers import conftest, processes, scenes
from workers import context as contexts
from workers import maintenance
from workers.celery_app import app
from workers.context import Context

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LEASE_SECONDS = 12.0
TRAINING: dict[str, Any] = {"epochs": 24, "checkpoint_seconds": 0.2}


@dataclass
class Service:
    """A database, a broker, what maintenance does, and a worker that is started when needed."""

    context: Context
    project: str
    stack: contextlib.ExitStack
    alone: str = ""
    """The digest of the student that `TRAINING` gives, from a run alone."""
    worker: processes.Worker | None = None

    def ensure(self) -> processes.Worker:
        """Return a worker that runs, and knows its devices."""
        if self.worker is None or self.worker.process.poll() is not None:
            self.worker = self.stack.enter_context(
                processes.worker(self.context.settings, "-Q", "any,cpu")
            )
            scenes.wait_until(self._is_described, "the worker knows its devices")
        return self.worker

    def _is_described(self) -> bool:
        named = self.logged("worker_named")
        with self.context.readers() as session:
            row = session.get(tables.WorkerRow, named[0]["worker_id"]) if named else None
        return row is not None and row.total_devices == 2

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the entries of the log of the last worker that have this name."""
        lines = (self.context.settings.data_dir / "worker.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.startswith('{"')]
        return [entry for entry in entries if entry["event"] == event]

    def submit(self, **changes: Any) -> str:
        return scenes.submit(self.context, self.project, **changes)

    def wait(self, job_id: str, state: str) -> None:
        scenes.wait_until(scenes.has_state(self.context, job_id, state), f"{job_id} is {state}")

    def cancel(self, *job_ids: str) -> None:
        for job_id in job_ids:
            with self.context.sessions.begin() as session:
                actions.cancel(session, project_id=self.project, job_id=job_id)
        for job_id in job_ids:
            self.wait(job_id, State.CANCELLED)

    def digest(self, job_id: str) -> str:
        return str((scenes.job(self.context, job_id).result or {})["digest"])

    def devices(self, job_id: str) -> list[list[int]]:
        """Return the devices that each attempt at a job was given, as the worker has logged it."""
        claims = self.logged("job_claimed")
        return [entry["devices"] for entry in claims if entry["job_id"] == job_id]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("slots")
    shutil.copy(sqlite_template, folder / "retort.sqlite3")
    (folder / "redis").mkdir()
    with contextlib.ExitStack() as stack:
        broker_url = stack.enter_context(services.redis_server(folder / "redis"))
        settings = conftest.quick_settings(
            f"sqlite:///{folder}/retort.sqlite3", folder, broker_url
        ).model_copy(
            update={
                "worker_slots": 2,
                "worker_devices": 2,
                "worker_device": "cpu",
                "engine_sockets": True,  # where no namespace can be had
                "lease_seconds": LEASE_SECONDS,
            }
        )
        context = contexts.build(settings, worker_id="wrk_tests")
        stack.callback(context.engine.dispose)
        stack.enter_context(sweeping(context))
        made = Service(context, scenes.project(context), stack)
        made.ensure()
        job_id = made.submit(training=TRAINING)
        made.wait(job_id, State.SUCCEEDED)
        made.alone = made.digest(job_id)
        yield made


@contextlib.contextmanager
def sweeping(context: Context) -> Iterator[None]:
    """Do what maintenance does, in a thread."""
    done = threading.Event()

    def run() -> None:
        with app.connection_for_write(context.settings.broker_url) as connection:

            def send(task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
                urgency = broker.redis_priority(priority)
                app.send_task(
                    task, kwargs=payload, queue=queue, priority=urgency, connection=connection
                )

            while not done.wait(0.2):
                maintenance.sweep(context, send)

    with scenes.meanwhile(run):
        try:
            yield
        finally:
            done.set()


def engine_of(job_id: str) -> psutil.Process:
    """Return the engine of a job: its log is in the job's working folder."""
    for process in scenes.engines():
        with contextlib.suppress(psutil.Error):
            if any(f"/{job_id}-" in file.path for file in process.open_files()):
                return process
    raise LookupError(job_id)


def has_checkpoint(context: Context, job_id: str) -> Callable[[], bool]:
    return lambda: "job.checkpoint" in [event.type for event in scenes.events(context, job_id)]


class TestSlots:
    def test_run_jobs_side_by_side_that_do_not_disturb_each_other(self, service: Service) -> None:
        """One engine is killed, and its job cancelled; the student beside it has its own bytes."""
        service.ensure()
        hurt = service.submit(training=scenes.ENDLESS)
        service.wait(hurt, State.RUNNING)
        quiet = service.submit(training=TRAINING)
        service.wait(quiet, State.RUNNING)
        engine = engine_of(quiet)
        engine.suspend()  # it cannot end before the other is hurt
        os.kill(engine_of(hurt).pid, signal.SIGKILL)
        scenes.wait_until(
            lambda: scenes.job(service.context, hurt).attempt == 2, "the other one is tried again"
        )
        service.wait(hurt, State.RUNNING)
        service.cancel(hurt)
        engine.resume()
        service.wait(quiet, State.SUCCEEDED)
        assert service.digest(quiet) == service.alone
        assert [a.outcome for a in scenes.attempts(service.context, quiet)] == ["succeeded"]
        first, again = service.devices(hurt)
        assert (first, again) == ([0], [0])
        assert service.devices(quiet) == [[1]]

    def test_give_a_job_of_two_devices_both_when_they_are_free(self, service: Service) -> None:
        service.ensure()
        first = service.submit(training=scenes.ENDLESS)
        service.wait(first, State.RUNNING)
        wide = service.submit(resources={"devices": 2}, training={"epochs": 1, "batch_size": 64})
        scenes.wait_until(
            lambda: scenes.job(service.context, wide).state_reason == Reason.TOO_FEW_DEVICES,
            "it says what it waits for",
        )
        small = service.submit()
        service.wait(small, State.SUCCEEDED)  # it has gone before
        assert scenes.job(service.context, wide).state == State.QUEUED
        service.cancel(first)
        scenes.wait_until(
            lambda: scenes.job(service.context, wide).state != State.QUEUED, "it is claimed"
        )
        later = service.submit()
        service.wait(later, State.SUCCEEDED)
        job = scenes.job(service.context, wide)
        assert job.state == State.SUCCEEDED
        assert job.result is not None
        assert job.result["parallel"]["devices"] == 2
        assert service.devices(wide) == [[0, 1]]
        assert service.devices(small) == [[1]]
        assert service.devices(later) == [[0]]
        (claimed,) = scenes.attempts(service.context, later)
        assert job.finished_at is not None
        assert claimed.started_at >= job.finished_at

    def test_of_a_killed_worker_are_taken_up_by_the_next_and_end_with_the_same_bytes(
        self, service: Service
    ) -> None:
        worker = service.ensure()
        jobs = [service.submit(training=TRAINING) for _ in range(2)]
        running = set(jobs)

        def all_stand_still() -> bool:
            for job_id in [one for one in running if has_checkpoint(service.context, one)()]:
                engine_of(job_id).suspend()  # it cannot end before the worker is killed
                running.remove(job_id)
            return not running

        scenes.wait_until(all_stand_still, "both have a checkpoint")
        family = worker.family()
        worker.process.kill()
        worker.process.wait()
        scenes.wait_until(lambda: all(scenes.has_ended(one.pid) for one in family), "all are gone")
        assert [scenes.job(service.context, one).state for one in jobs] == [State.RUNNING] * 2
        service.ensure()
        for job_id in jobs:
            service.wait(job_id, State.SUCCEEDED)
            outcomes = [one.outcome for one in scenes.attempts(service.context, job_id)]
            assert outcomes == [Reason.ATTEMPT_LOST, "succeeded"]
            assert service.digest(job_id) == service.alone

    def test_hand_all_jobs_back_when_the_worker_is_told_to_stop(self, service: Service) -> None:
        worker = service.ensure()
        jobs = [service.submit(training=scenes.ENDLESS) for _ in range(2)]
        waiting = service.submit()
        for job_id in jobs:
            service.wait(job_id, State.RUNNING)
        processes.stop(worker)
        assert worker.process.returncode == 0
        for job_id in jobs:
            job = scenes.job(service.context, job_id)
            assert (job.state, job.state_reason) == (State.QUEUED, Reason.WORKER_SHUTDOWN)
            assert job.releases == 1
        assert scenes.job(service.context, waiting).attempt == 0
        service.cancel(*jobs, waiting)
