"""A worker announces itself, is seen while it lives, and says when it leaves.

Runs in the worker's main process. What devices there are is asked of a child process, because
this one must never import torch.
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
from typing import Any  # of what the child process answers in JSON

import psutil
import sqlalchemy.exc
import structlog

from models_registry.jobs import workers
from models_registry.persistence import database
from models_registry.settings import Settings
from workers import engine_process

log = structlog.get_logger()

# Shared with the forked supervisor, which polls it: SIGTERM reaches only the main process.
shutting_down = multiprocessing.get_context("fork").Event()

_DESCRIBE_SECONDS = 120
_TICK_SECONDS = 0.2
_leaving = threading.Event()
_thread: threading.Thread | None = None


def start(settings: Settings, *, worker_id: str, queues: list[str]) -> None:
    """Announce this worker, and keep saying that it lives, from a thread."""
    global _thread
    _thread = threading.Thread(
        target=_run, args=(settings, worker_id, queues), name="worker-registration", daemon=True
    )
    _thread.start()


def stop() -> None:
    """Say that this worker leaves."""
    _leaving.set()
    if _thread is not None:
        _thread.join(timeout=10)


def _run(settings: Settings, worker_id: str, queues: list[str]) -> None:
    engine = database.connect(settings.database_url, pool_size=1)
    sessions = database.sessions(engine)
    _write(sessions, worker_id, queues=queues, described={"devices": [], "versions": {}})
    described = _describe(settings.worker_device)
    is_announced = _write(sessions, worker_id, queues=queues, described=described)
    while not _leaving.wait(settings.heartbeat_seconds):
        if is_announced:
            _write(sessions, worker_id)
        else:
            is_announced = _write(sessions, worker_id, queues=queues, described=described)
    _write(sessions, worker_id, leaving=True)
    engine.dispose()


def _write(
    sessions: database.Sessions,
    worker_id: str,
    *,
    queues: list[str] | None = None,
    described: Mapping[str, Any] | None = None,
    leaving: bool = False,
) -> bool:
    """Write one of three things, and return whether the database took it."""
    try:
        with sessions.begin() as session:
            if described is not None:
                workers.announce(
                    session,
                    worker_id=worker_id,
                    name=f"{socket.gethostname()}:{os.getpid()}",
                    queues=queues or [],
                    devices=described["devices"],
                    memory_bytes=psutil.virtual_memory().total,
                    versions=described["versions"],
                )
            elif leaving:
                workers.stopped(session, worker_id=worker_id)
            else:
                workers.seen(session, worker_id=worker_id)
    except sqlalchemy.exc.SQLAlchemyError as error:
        log.warning("registration_not_written", worker_id=worker_id, error=str(error))
        return False
    return True


def _describe(device: str) -> dict[str, Any]:
    """Ask a child process for devices and versions; an unhelpful one leaves them empty."""
    command = [
        sys.executable,
        "-m",
        "workers.parent_death",
        str(os.getpid()),
        "workers.distill.runtime.describe",
    ]
    environment = engine_process.scrubbed_environment(device)
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    answer, complaints = _answer_of(child)
    try:
        described: dict[str, Any] = json.loads(answer)
    except ValueError:
        if not _leaving.is_set():
            log.warning("devices_unknown", code=child.returncode, complaints=complaints[-500:])
        return {"devices": [], "versions": {}}
    return described


def _answer_of(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what the child has said when it ends, is too slow, or this worker leaves."""
    deadline = time.monotonic() + _DESCRIBE_SECONDS
    while time.monotonic() < deadline and not _leaving.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=_TICK_SECONDS)
    child.kill()
    return child.communicate()
