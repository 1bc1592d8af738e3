"""Registers a worker in the database, and records its heartbeats, its faults and its shutdown.

Runs in the worker's main process. A child process lists the devices, because this one must never
import torch. While the machine cannot run jobs, this process takes no messages of jobs from the
broker, says why, and tries the machine again.
"""

import contextlib
import functools
import json
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol  # Any: what the child process prints as JSON

import psutil
import sqlalchemy.exc
import structlog

from models_registry.jobs import workers
from models_registry.persistence import broker, database
from models_registry.settings import Settings
from workers import engine_launcher, gpu_utilisation, machine_health
from workers.device_pool import DevicePool
from workers.erased_inputs import ErasedInputs
from workers.forked_state import ForkedFlag
from workers.isolation import Isolation
from workers.machine_health import MachineFault, MachineHealth, Suspension

log = structlog.get_logger()

# Shared with the forked supervisor, which waits for it: SIGTERM reaches only the main process.
shutting_down = ForkedFlag()
# Shared in the same way: the supervisor meets what is wrong with the machine.
health = MachineHealth()
# And the devices that this process finds.
device_pool = DevicePool()

_DESCRIBE_SECONDS = 120
_REVIEW_SECONDS = 1.0
_MAINTENANCE = "maintenance"  # needs no room for inputs, and no device
_TICK_SECONDS = 0.2
_stopping = threading.Event()
_thread: threading.Thread | None = None


class Consumer(Protocol):
    """Celery's consumer, as far as it is used here."""

    def call_soon(self, work: Callable[[str], object], name: str, /) -> object:
        """Call `work(name)` in the consumer's own thread."""

    def add_task_queue(self, name: str, /) -> object:
        """Take messages of a queue."""

    def cancel_task_queue(self, name: str, /) -> object:
        """Take no more messages of a queue."""


class Beat(Protocol):
    """The process that says when maintenance is due."""

    def is_alive(self) -> bool:
        """Return whether it runs."""


def start(
    settings: Settings,
    *,
    worker_id: str,
    queues: list[str],
    slots: int = 1,
    consumer: Consumer | None = None,
    beat: Beat | None = None,
) -> None:
    """Register this worker, and send heartbeats from a thread.

    `slots` is how many processes run jobs.
    `consumer` takes the messages of these queues, and takes none while the machine is suspended.
    A worker whose `beat` has ended shuts down: nobody would start that alone again, and without it
    there is no maintenance.
    """
    global _thread
    _thread = threading.Thread(
        target=_run,
        args=(settings, worker_id, queues, slots, consumer, beat),
        name="worker-registration",
        daemon=True,
    )
    _thread.start()


def stop() -> None:
    """Record that this worker has stopped."""
    _stopping.set()
    if _thread is not None:
        _thread.join(timeout=10)


def _run(
    settings: Settings,
    worker_id: str,
    queues: list[str],
    slots: int,
    consumer: Consumer | None,
    beat: Beat | None,
) -> None:
    engine = database.connect(settings.database_url, pool_size=1)
    sessions = database.sessions(engine)
    # It takes seconds to load torch, in which the machine may already be found unfit.
    described: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    describing = threading.Thread(
        target=lambda: described.put(_description(settings, queues, slots)),
        name="worker-description",
        daemon=True,
    )
    describing.start()
    description: dict[str, Any] = {
        "devices": [],
        "versions": {},
        "isolation": None,
        "offered_devices": 1,
        "slots": slots,
        "total_devices": 1,
    }
    # Every project sees it, and the names of machines are the operator's.
    name = settings.worker_name or f"worker-{worker_id[-6:]}"
    host = socket.gethostname()
    log.info("worker_named", worker_id=worker_id, name=name, host=host, process_id=os.getpid())
    is_announced = _write(sessions, worker_id, queues=queues, description=description, name=name)
    intake = _Intake(consumer, [name for name in queues if name != _MAINTENANCE])
    written_at = time.monotonic()
    known: Suspension | None = None
    erased = ErasedInputs(settings)
    while not _stopping.wait(min(settings.heartbeat_seconds, _REVIEW_SECONDS)):
        if beat is not None and not beat.is_alive():
            log.error("beat_ended", worker_id=worker_id)
            beat = None
            os.kill(os.getpid(), signal.SIGTERM)
        health.review(functools.partial(_check, settings))
        suspension = health.suspension
        intake.set_open(suspension is None)
        with contextlib.suppress(queue.Empty):
            description = described.get_nowait()
            is_announced = False
            device_pool.offer(description["total_devices"], cards=description["cards"])
        is_due = time.monotonic() - written_at >= settings.heartbeat_seconds
        if is_announced and suspension == known and not is_due:
            continue
        if not is_announced:
            is_announced = _write(
                sessions, worker_id, queues=queues, description=description, name=name
            )
        if is_announced and _write(sessions, worker_id):
            known = suspension
            erased.drop(sessions)
        written_at = time.monotonic()
    describing.join()
    _write(sessions, worker_id, stopping=True)
    engine.dispose()


class _Intake:
    """Whether messages of jobs and inspections are taken from the broker."""

    def __init__(self, consumer: Consumer | None, queues: list[str]) -> None:
        self._consumer = consumer
        self._queues = queues
        self._is_open = True

    def set_open(self, is_open: bool) -> None:
        """Open or close the intake, where that changes anything."""
        if is_open == self._is_open or self._consumer is None:
            return
        self._is_open = is_open
        change = self._consumer.add_task_queue if is_open else self._consumer.cancel_task_queue
        for name in self._queues:
            self._consumer.call_soon(change, name)


def _check(settings: Settings, code: str) -> MachineFault | None:
    """Return what is wrong with this machine now; `code` is what was wrong."""
    if code == machine_health.NO_DEVICE:
        kinds = {device["kind"] for device in _describe(settings.worker_device)["devices"]}
        if "cuda" not in kinds:
            return MachineFault(code, "The worker's graphics card does not answer.")
    return machine_health.check(settings)


# Any: the columns of the fault as JSON.
def _fault() -> dict[str, Any] | None:
    suspension = health.suspension
    if suspension is None:
        return None
    return {
        "code": suspension.code,
        "message": suspension.message,
        "since": datetime.fromtimestamp(suspension.since, UTC).isoformat(),
        "retry_at": datetime.fromtimestamp(suspension.retry_at, UTC).isoformat(),
    }


def _write(
    sessions: database.Sessions,
    worker_id: str,
    *,
    queues: list[str] | None = None,
    description: Mapping[str, Any] | None = None,
    name: str = "",
    stopping: bool = False,
) -> bool:
    """Write registration, heartbeat or shutdown, and return whether that succeeded."""
    is_heartbeat = description is None and not stopping
    utilisation = gpu_utilisation.read() if is_heartbeat else None
    try:
        with sessions.begin() as session:
            if description is not None:
                workers.announce(
                    session,
                    worker_id=worker_id,
                    name=name,
                    queues=queues or [],
                    devices=description["devices"],
                    memory_bytes=psutil.virtual_memory().total,
                    versions=description["versions"],
                    isolation=description["isolation"],
                    offered_devices=description["offered_devices"],
                    slots=description["slots"],
                    total_devices=description["total_devices"],
                )
            elif stopping:
                workers.stopped(session, worker_id=worker_id)
            else:
                workers.seen(
                    session, worker_id=worker_id, fault=_fault(), gpu_utilisation=utilisation
                )
    except sqlalchemy.exc.SQLAlchemyError as error:
        log.warning("registration_not_written", worker_id=worker_id, error=str(error))
        return False
    return True


def _description(settings: Settings, queues: list[str], slots: int = 1) -> dict[str, Any]:
    """Return devices, versions, isolation, and how jobs share the devices.

    Only workers for jobs list devices: to load torch for it takes seconds and memory.
    """
    found: dict[str, Any] = {"devices": [], "versions": {"python": platform.python_version()}}
    if set(queues) & set(broker.JOB_QUEUES):
        found = _describe(settings.worker_device)
    return {
        **found,
        "isolation": _isolation(settings),
        "offered_devices": _offered_devices(settings, found["devices"]),
        **_shared_devices(settings, found["devices"], slots),
    }


# Any: slots, total_devices and cards.
def _shared_devices(
    settings: Settings, devices: Sequence[Mapping[str, Any]], slots: int
) -> dict[str, Any]:
    """Return how many slots can be used, the devices they share, and names of those to be pinned.

    On processors each slot has a device at least. Where the devices are not known, there is one:
    two jobs might get the same card.
    """
    cards = sum(device["kind"] == "cuda" for device in devices)
    if cards:
        total = min(settings.worker_devices or cards, cards)
    else:
        total = settings.worker_devices or (slots if devices else 1)
    if slots > total:
        log.warning("slots_without_device", slots=slots, devices=total)
    return {
        "slots": min(slots, total),
        "total_devices": total,
        # One slot leaves its engine what the worker sees.
        "cards": engine_launcher.card_names(total) if cards and slots > 1 else [],
    }


def _offered_devices(settings: Settings, devices: Sequence[Mapping[str, Any]]) -> int:
    """Return how many devices a job may use here, as the settings say, or as there are cards."""
    cards = sum(device["kind"] == "cuda" for device in devices)
    wanted = settings.worker_devices or max(cards, 1)
    if cards and wanted > cards:
        log.warning("devices_missing", wanted=wanted, found=cards)
        wanted = cards
    if wanted == 1 or _stopping.is_set():
        return 1
    try:
        why_not = Isolation.of(settings).why_alone()
    except OSError as error:
        why_not = str(error)
    if why_not is not None:
        log.warning("jobs_have_one_device", devices=wanted, because=why_not)
        return 1
    return wanted


def _describe(device: str) -> dict[str, Any]:
    """Return devices and versions as a child process lists them; empty if it fails."""
    command = [
        sys.executable,
        "-m",
        "workers.parent_death",
        str(os.getpid()),
        "workers.distill.runtime.describe",
    ]
    environment = engine_launcher.scrubbed_environment(device)
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    output, error_output = _output_of(child)
    try:
        description: dict[str, Any] = json.loads(output)
    except ValueError:
        if not _stopping.is_set():
            log.warning("devices_unknown", code=child.returncode, error_output=error_output[-500:])
        return {"devices": [], "versions": {}}
    return description


def _isolation(settings: Settings) -> dict[str, Any] | None:
    """Return how engines are isolated on this machine; None where that could not be found out."""
    if _stopping.is_set():
        return None
    try:
        status = Isolation.of(settings).status()
    except OSError as error:
        log.error("isolation_unknown", error=str(error))
        return None
    for measure, found in status.items():
        tell = log.info if found["is_active"] else log.warning
        tell("isolation", measure=measure, **found)
    return status


def _output_of(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Return stdout and stderr once the child ends, is too slow, or this worker stops."""
    deadline = time.monotonic() + _DESCRIBE_SECONDS
    while time.monotonic() < deadline and not _stopping.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=_TICK_SECONDS)
    child.kill()
    return child.communicate()
