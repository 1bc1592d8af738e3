"""Registers a worker in the database, and records its heartbeats and its shutdown.

Runs in the worker's main process. A child process lists the devices, because this one must never
import torch.
"""

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any  # of what the child process prints as JSON

import psutil
import sqlalchemy.exc
import structlog

from models_registry.jobs import workers
from models_registry.persistence import database
from models_registry.settings import Settings
from workers import engine_launcher

log = structlog.get_logger()

# Shared with the forked supervisor, which polls it: SIGTERM reaches only the main process.
shutting_down = multiprocessing.get_context("fork").Event()

_DESCRIBE_SECONDS = 120
_TICK_SECONDS = 0.2
_stopping = threading.Event()
_thread: threading.Thread | None = None


def start(settings: Settings, *, worker_id: str, queues: list[str]) -> None:
    """Register this worker, and send heartbeats from a thread."""
    global _thread
    _thread = threading.Thread(
        target=_run, args=(settings, worker_id, queues), name="worker-registration", daemon=True
    )
    _thread.start()


def stop() -> None:
    """Record that this worker has stopped."""
    _stopping.set()
    if _thread is not None:
        _thread.join(timeout=10)


def _run(settings: Settings, worker_id: str, queues: list[str]) -> None:
    engine = database.connect(settings.database_url, pool_size=1)
    sessions = database.sessions(engine)
    _write(sessions, worker_id, queues=queues, description={"devices": [], "versions": {}})
    description = _describe(settings.worker_device)
    is_announced = _write(sessions, worker_id, queues=queues, description=description)
    while not _stopping.wait(settings.heartbeat_seconds):
        if is_announced:
            _write(sessions, worker_id)
        else:
            is_announced = _write(sessions, worker_id, queues=queues, description=description)
    _write(sessions, worker_id, stopping=True)
    engine.dispose()


def _write(
    sessions: database.Sessions,
    worker_id: str,
    *,
    queues: list[str] | None = None,
    description: Mapping[str, Any] | None = None,
    stopping: bool = False,
) -> bool:
    """Write registration, heartbeat or shutdown, and return whether that succeeded."""
    try:
        with sessions.begin() as session:
            if description is not None:
                workers.announce(
                    session,
                    worker_id=worker_id,
                    name=f"{socket.gethostname()}:{os.getpid()}",
                    queues=queues or [],
                    devices=description["devices"],
                    memory_bytes=psutil.virtual_memory().total,
                    versions=description["versions"],
                )
            elif stopping:
                workers.stopped(session, worker_id=worker_id)
            else:
                workers.seen(session, worker_id=worker_id)
    except sqlalchemy.exc.SQLAlchemyError as error:
        log.warning("registration_not_written", worker_id=worker_id, error=str(error))
        return False
    return True


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


def _output_of(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Return stdout and stderr once the child ends, is too slow, or this worker stops."""
    deadline = time.monotonic() + _DESCRIBE_SECONDS
    while time.monotonic() < deadline and not _stopping.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=_TICK_SECONDS)
    child.kill()
    return child.communicate()
