"""A worker's main process, as far as it speaks of itself; `test_tasks.py` has whole workers."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import structlog.testing

from models_registry.jobs import workers
from models_registry.persistence import tables
from models_registry.settings import Settings
from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import machine_health, worker_registration
from workers.context import Context
from workers.machine_health import MachineFault, MachineHealth


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each process leaves once; here several do."""
    worker_registration._stopping.clear()
    yield
    worker_registration.stop()
    worker_registration._stopping.clear()


def row(context: Context) -> tables.WorkerRow | None:
    with context.readers.begin() as session:
        return session.get(tables.WorkerRow, "wrk_1")


def described(context: Context) -> tables.WorkerRow | None:
    found = row(context)
    return found if found is not None and found.versions else None


def begin(settings: Settings) -> None:
    worker_registration.start(settings, worker_id="wrk_1", queues=["any", "cpu"])


class Consumer:
    """Stands where Celery's consumer stands; `test_tasks.py` has a real one."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def call_soon(self, work: Callable[[str], object], queue: str) -> None:
        work(queue)

    def add_task_queue(self, queue: str) -> None:
        self.changes.append(("add", queue))

    def cancel_task_queue(self, queue: str) -> None:
        self.changes.append(("cancel", queue))


class Beat:
    """Stands where Celery's process stands."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def is_alive(self) -> bool:
        return self._process.poll() is None


class TestWorkerRegistration:
    def test_is_announced_before_the_devices_are_known(self, context: Context) -> None:
        begin(context.settings)
        scenes.wait_until(lambda: row(context), "the worker is announced")
        with context.readers.begin() as session:
            assert workers.anyone_takes(session, queue="cpu")
            assert not workers.anyone_takes(session, queue="cuda")
        found = row(context)
        assert found is not None
        assert found.name == "worker-wrk_1", "projects see no host names"

    @SQLITE_ONLY
    def test_loads_no_torch_for_a_worker_that_takes_no_jobs(
        self, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_registration, "_DESCRIBE_SECONDS", 0)  # no child could answer
        worker_registration.start(context.settings, worker_id="wrk_1", queues=["maintenance"])
        found = scenes.wait_until(lambda: described(context), "the worker is described")
        assert (found.devices, list(found.versions)) == ([], ["python"])

    def test_ends_at_once_although_the_devices_are_not_known_yet(self, context: Context) -> None:
        begin(context.settings.model_copy(update={"worker_name": "left rack"}))
        scenes.wait_until(lambda: row(context), "the worker is announced")
        worker_registration.stop()
        found = row(context)
        assert found is not None
        assert found.stopped_at is not None
        assert found.name == "left rack"
        assert scenes.engines("workers.distill.runtime.describe") == []
        assert "worker-registration" not in [thread.name for thread in threading.enumerate()]

    @SQLITE_ONLY
    def test_closes_its_intake_and_says_why_until_the_machine_is_well(
        self, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        later = 0.0
        health = MachineHealth(clock=lambda: time.time() + later)
        monkeypatch.setattr(worker_registration, "health", health)
        monkeypatch.setattr(worker_registration, "_REVIEW_SECONDS", 0.05)
        monkeypatch.setattr(worker_registration, "_DESCRIBE_SECONDS", 0)
        consumer = Consumer()
        worker_registration.start(
            context.settings, worker_id="wrk_1", queues=["any", "maintenance"], consumer=consumer
        )
        scenes.wait_until(lambda: row(context), "the worker is announced")
        health.suspend(MachineFault(machine_health.NO_DISK, "The disk is full."))

        def told() -> tables.WorkerRow | None:
            found = row(context)
            return found if found is not None and found.fault is not None else None

        found = scenes.wait_until(told, "the fault is told")
        assert found.fault is not None
        assert (found.fault["code"], found.fault["message"]) == ("no_disk", "The disk is full.")
        with context.readers.begin() as session:
            assert not workers.anyone_takes(session, queue="any")
        assert consumer.changes == [("cancel", "any")]
        later = 60.0  # than the pause before the next try
        scenes.wait_until(lambda: told() is None, "the machine is tried again")
        assert consumer.changes == [("cancel", "any"), ("add", "any")]

    @SQLITE_ONLY
    def test_shuts_down_when_nobody_says_any_more_that_maintenance_is_due(
        self, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_registration, "_REVIEW_SECONDS", 0.05)
        monkeypatch.setattr(worker_registration, "_DESCRIBE_SECONDS", 0)
        beat = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        told: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        try:
            worker_registration.start(
                context.settings, worker_id="wrk_1", queues=["maintenance"], beat=Beat(beat)
            )
            scenes.wait_until(lambda: row(context), "the worker is announced")
            assert not told
            beat.kill()
            scenes.wait_until(lambda: told, "the worker is told to stop")
        finally:
            signal.signal(signal.SIGTERM, before)
            beat.communicate()

    @pytest.mark.slow
    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    def test_is_announced_when_the_database_comes_back_and_seen_from_then_on(
        self, context: Context, database_url: str
    ) -> None:
        with structlog.testing.capture_logs() as logged:
            with scenes.unreachable(database_url):
                begin(context.settings)
                scenes.wait_until(
                    # Twice: as a newcomer, and with its devices.
                    lambda: (
                        [line["event"] for line in logged].count("registration_not_written") >= 2
                    ),
                    "it has tried",
                )
            found = scenes.wait_until(lambda: described(context), "the worker is announced")

        def is_seen_later() -> bool:
            later = row(context)
            return later is not None and later.last_seen_at > found.last_seen_at

        scenes.wait_until(is_seen_later, "it is seen again")

    def test_of_a_worker_whose_child_dies_is_without_devices(self) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.exit('no torch here')"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        answer, complaints = worker_registration._output_of(child)
        assert answer == ""
        assert "no torch here" in complaints

    @pytest.mark.parametrize(
        ("wanted", "cards", "offered"),
        [(None, 0, 1), (None, 4, 4), (2, 0, 2), (2, 4, 2), (8, 4, 4)],
    )
    def test_offers_a_job_its_cards_or_what_the_settings_say(
        self, context: Context, wanted: int | None, cards: int, offered: int
    ) -> None:
        changes = {"worker_devices": wanted, "engine_sockets": True}
        devices = [{"kind": "cuda"}] * cards + [{"kind": "cpu"}]
        found = worker_registration._offered_devices(
            context.settings.model_copy(update=changes), devices
        )
        assert found == offered

    @pytest.mark.parametrize(
        ("wanted", "cards", "slots", "used", "total", "names"),
        [
            (None, 0, 1, 1, 1, []),
            (None, 0, 3, 3, 3, []),
            (4, 0, 2, 2, 4, []),
            (None, 4, 1, 1, 4, []),  # its engine sees what the worker sees
            (None, 4, 2, 2, 4, ["GPU-a", "5", "6", "7"]),
            (2, 4, 2, 2, 2, ["GPU-a", "5"]),
            (None, 2, 4, 2, 2, ["GPU-a", "5"]),
        ],
    )
    def test_gives_each_slot_a_device_of_its_own(
        self,
        context: Context,
        monkeypatch: pytest.MonkeyPatch,
        wanted: int | None,
        cards: int,
        slots: int,
        used: int,
        total: int,
        names: list[str],
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 5,6,7")
        devices = [{"kind": "cuda"}] * cards + [{"kind": "cpu"}]
        settings = context.settings.model_copy(update={"worker_devices": wanted})
        found = worker_registration._shared_devices(settings, devices, slots)
        assert found == {"slots": used, "total_devices": total, "cards": names}

    def test_uses_one_slot_where_the_devices_are_not_known(self, context: Context) -> None:
        found = worker_registration._shared_devices(context.settings, [], 2)
        assert found == {"slots": 1, "total_devices": 1, "cards": []}
