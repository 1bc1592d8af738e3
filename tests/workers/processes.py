"""Real worker processes over a real broker, and messages to them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from models_registry.persistence import broker, outbox
from models_registry.settings import Settings
from tests.workers import scenes
from workers.celery_app import app
from workers.context import Context

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Worker:
    """A running `celery worker`."""

    process: subprocess.Popen[bytes]
    log_path: Path

    def family(self) -> list[psutil.Process]:
        """Return the worker's own process and everything below it."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def log(self) -> str:
        """Return what it has written so far."""
        return self.log_path.read_text()

    def complaints(self) -> list[str]:
        """Return the lines that are worth a look, among them all that are not log lines."""
        return [line for line in self.log().splitlines() if line and not _is_calm(line)]


def environment(settings: Settings) -> dict[str, str]:
    """Return the settings as a process is told them, on top of what it needs to run at all."""
    told = {
        f"RETORT_{name.upper()}": str(value)
        for name, value in settings.model_dump(exclude_none=True).items()
    }
    # Containers run as root, and Celery says so.
    quiet = {"PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges"}
    return {**os.environ, "OMP_NUM_THREADS": "1", **quiet, **told}


@contextlib.contextmanager
def worker(settings: Settings, *options: str) -> Iterator[Worker]:
    """Start a worker as an operator does; it is killed at the end if it still runs."""
    log_path = settings.data_dir / "worker.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment(settings),
        )
    try:
        yield Worker(process, log_path)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def stop(running: Worker) -> float:
    """Ask a worker to stop, and return how many seconds that took."""
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(scenes.PATIENCE_SECONDS)
    return time.monotonic() - began


def relay(context: Context) -> int:
    """Publish what waits in the outbox, as the API and maintenance do."""
    with app.connection_for_write(context.settings.broker_url) as connection:

        def send(task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
            app.send_task(
                task,
                kwargs=payload,
                queue=queue,
                priority=broker.redis_priority(priority),
                connection=connection,
            )

        return outbox.relay(context.sessions, send)


def waiting(broker_url: str) -> dict[str, int]:
    """Return how many messages each list of the broker holds."""
    with redis.Redis.from_url(broker_url) as client:
        return {
            key.decode(): client.llen(key)
            for key in client.keys("*")
            if client.type(key) == b"list"
        }


def _is_calm(line: str) -> bool:
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        return isinstance(entry, dict) and entry.get("level") in ("debug", "info")
    # Celery's banner and farewell go to standard output as they are.
    if line.startswith("worker: Warm shutdown"):
        return True
    return line.startswith((" ", "[", "-", "*")) and "arn" not in line and "rror" not in line
