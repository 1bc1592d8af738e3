"""Whole running services: as in production, and as `retort up` starts them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from retort.client import Client
from tests import services, waiting

# Patience in seconds is what these tests would otherwise consist of.
QUICK = {
    "RETORT_LEASE_SECONDS": "6",
    "RETORT_HEARTBEAT_SECONDS": "1",
    "RETORT_POLL_SECONDS": "0.3",
    "RETORT_SWEEP_SECONDS": "1",
    "RETORT_REPUBLISH_AFTER_SECONDS": "4",
    "OMP_NUM_THREADS": "1",
}
PATIENCE_SECONDS = 600.0
"""Longer than any job of a journey takes, where ten processes share two cores."""


# What does not depend on how the service is put together is tried on one stack.
ON_PRODUCTION = pytest.mark.parametrize("stack", ["production"], indirect=True)
ON_EMBEDDED = pytest.mark.parametrize("stack", ["embedded"], indirect=True)


@dataclass
class Stack:
    """A running service, and the means to hurt it."""

    url: str
    api_key: str
    environment: dict[str, str]
    folder: Path
    restarts_workers: bool
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def sources(self) -> Path:
        """Return the folder that data sets may refer to, where the service is embedded."""
        return self.folder / "sources"

    def client(self) -> Client:
        """Return a client of the service."""
        return Client(self.url, self.api_key)

    def run(
        self, *arguments: str, timeout: float = PATIENCE_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line against the service, as a user would."""
        command = [sys.executable, "-m", "retort", *arguments]
        environment = {
            **os.environ,
            "RETORT_URL": self.url,
            "RETORT_API_KEY": self.api_key,
            "XDG_CONFIG_HOME": str(self.folder),
        }
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def worker_processes(self) -> list[psutil.Process]:
        """Return the main process of the jobs worker, with all its descendants."""
        mine = [psutil.Process(process.pid) for process in self.processes.values()]
        everyone = [child for one in mine for child in [one, *one.children(recursive=True)]]
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                if "any,cpu" in process.cmdline() and "workers" in process.cmdline():
                    return [process, *process.children(recursive=True)]
        raise LookupError("no worker for jobs is running")

    def kill_worker_and_engine(self) -> None:
        """Send SIGKILL to the worker, its supervisor and its engine, all at once."""
        for process in self.worker_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if not self.restarts_workers:
            self.processes["worker"].wait()
            self.start_worker()

    def start_worker(self) -> None:
        """Start the worker for jobs, as whatever supervises it in production would."""
        self.start("worker", "-m", "workers", "--queues", "any,cpu", "--hostname", "worker@%h")

    def start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment, stdout=log, stderr=log
            )

    def stop(self) -> None:
        """Stop everything in order."""
        for process in reversed(list(self.processes.values())):
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


@contextlib.contextmanager
def production(folder: Path) -> Iterator[Stack]:
    """PostgreSQL, Redis over TCP, S3 over HTTP, uvicorn, and Celery workers, each on its own."""
    with contextlib.ExitStack() as stack:
        for name in ("postgres", "redis"):
            (folder / name).mkdir()
        s3 = stack.enter_context(services.s3_server())
        server = stack.enter_context(services.postgres(folder / "postgres"))
        port = services.free_port()
        environment = {
            **os.environ,
            **QUICK,
            **{f"RETORT_{name.upper()}": value for name, value in s3.items()},
            "RETORT_DATABASE_URL": stack.enter_context(services.database(server)),
            "RETORT_BROKER_URL": stack.enter_context(services.redis_server(folder / "redis")),
            "RETORT_DATA_DIR": str(folder / "worker"),
            "RETORT_CURSOR_SECRET": "a secret of the journeys, long enough",
        }
        alembic = [sys.executable, "-m", "alembic", "-c", "migrations/alembic.ini"]
        subprocess.run([*alembic, "upgrade", "head"], env=environment, check=True)
        make_key = [
            sys.executable,
            "-m",
            "models_registry.access.keys",
            "create",
            "--role",
            "admin",
        ]
        made = subprocess.run(make_key, env=environment, check=True, capture_output=True, text=True)
        running = Stack(f"http://127.0.0.1:{port}", made.stdout.strip(), environment, folder, False)
        stack.callback(running.stop)
        api = ["-m", "api.server", "--port", str(port)]
        running.start("api", *api, "--timeout-graceful-shutdown", "5")
        running.start("maintenance", "-m", "workers", "--queues", "maintenance", "--beat")
        running.start("inspector", "-m", "workers", "--queues", "inspect")
        running.start_worker()
        _wait_until_ready(running)
        yield running


@contextlib.contextmanager
def embedded(folder: Path) -> Iterator[Stack]:
    """`retort up`, started as a user starts it."""
    port = services.free_port()
    data_dir = folder / "retort-data"
    environment = {**os.environ, **QUICK, "XDG_CONFIG_HOME": str(folder)}
    running = Stack(f"http://127.0.0.1:{port}", "", environment, folder, True)
    environment["RETORT_SOURCES"] = running.sources.as_uri()
    command = ["-m", "retort", "up", "--data-dir", str(data_dir), "--port", str(port)]
    running.start("up", *command, "--device", "cpu")
    children: list[psutil.Process] = []
    try:
        _wait_until_ready(running)
        running.api_key = json.loads((data_dir / "client.json").read_text())["api_key"]
        yield running
        children = psutil.Process(running.processes["up"].pid).children(recursive=True)
    finally:
        running.stop()
    # Engine servers too: only a service that has run jobs has them.
    _, left = psutil.wait_procs(children, timeout=waiting.PATIENCE_SECONDS)
    if left:
        raise RuntimeError(f"`retort up` has ended and left {left}")


def _wait_until_ready(stack: Stack) -> None:
    def is_ready() -> bool:
        for name, process in stack.processes.items():
            if process.poll() is not None:
                log = (stack.folder / f"{name}.log").read_text()[-2000:]
                raise RuntimeError(f"{name} ended with exit code {process.returncode}:\n{log}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{stack.url}/readyz", timeout=5).status_code == httpx.codes.OK
        return False

    waiting.until(is_ready, "the service is ready", pause_seconds=0.2)
