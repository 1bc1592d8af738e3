"""Starts engines: as forks of a warm server, or each in a fresh interpreter.

The server (`engine_server.py`) is one process for each process of a worker that starts engines. It
is started when the first engine is foreseen, with an engine's own scrubbed environment, so that it
never holds a credential. Where it cannot be used, an engine starts in a fresh interpreter, and the
reason is told.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from workers.engine_server import ForkRequest
from workers.engine_server_client import ForkFailed, ServerClient
from workers.isolation import Isolation

log = structlog.get_logger()

PRELOAD = (
    # Every optimizer and every deterministic run imports it; it takes as long as torch itself.
    "torch._dynamo",
    "workers.distill.run.run",
    "workers.distill.data.formats.catalog",
    "--",
    # What engines import late: for networks of libraries, and for reports.
    "timm",
    "workers.distill.reporting.report_folder",
    "sklearn.manifold",
)
"""What the server imports: before it forks the first engine, and when it next has nothing to do."""
# What a child may inherit; nothing else, above all no RETORT_* variable.
_INHERITED = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("VIRTUAL_ENV", "XDG_RUNTIME_DIR", "CUDA_HOME", "NVIDIA_DRIVER_CAPABILITIES"),
    "CUDA_DEVICE_ORDER",  # without it, CUDA_VISIBLE_DEVICES may mean other devices
)
# How often a thread of OpenMP looks for the others before it sleeps; libgomp's own 300,000 keep the
# thread that it waits for off a core that is shared. On two busy cores this trains 2 to 3 times as
# fast, on two quiet ones 0 to 4 % slower; a passive policy would cost 9 to 15 % there.
_SPINS = "10000"
# Read when a process first asks for a device, which no import does; other variables may take
# effect when a library is loaded, so those of the server must be those of the engine.
_READ_LATE = ("CUDA_VISIBLE_DEVICES",)
_TICK_SECONDS = 0.2


class Child(Protocol):
    """A started engine: `subprocess.Popen` or `ForkedEngine`."""

    @property
    def pid(self) -> int:
        """Return the process id, which is also the group's and the session's."""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal to the engine, unless it has ended."""


@dataclass(frozen=True)
class Started:
    """An engine, and why it is no fork of the server where that was asked for."""

    child: Child
    cold_because: str | None = None


class EngineLauncher:
    """Starts the engines of one process, which must not be forked afterwards.

    Without `is_warm`, and outside of Linux, each engine gets a fresh interpreter. Without
    `isolation`, engines may do what this process may.
    """

    def __init__(
        self,
        *,
        is_warm: bool,
        preload: Sequence[str] = PRELOAD,
        isolation: Isolation | None = None,
    ) -> None:
        self._is_warm = is_warm and sys.platform.startswith("linux")
        self._preload = preload
        self._isolation = isolation
        self._server: ServerClient | None = None
        self._lock = threading.Lock()
        if is_warm and not self._is_warm:
            log.warning("engine_server_needs_linux", platform=sys.platform)

    def warm_up(self) -> None:
        """Start the server in the background, unless there is one: its imports take seconds."""
        with self._lock:
            if self._is_warm and self._server is None:
                self._server = ServerClient(_server_environment(), self._preload)
                if self._isolation is not None:
                    self._isolation.warm_up()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Return whether `start` would not wait, after the timeout at the latest."""
        with self._lock:
            return self._server is None or self._server.wait_ready(timeout_seconds)

    def start(
        self,
        module: str,
        arguments: list[str],
        *,
        workdir: Path,
        device: str,
        shares_cache: bool,
        talks: bool = False,
        cards: str | None = None,
        stdout: int,
        stderr: int,
    ) -> Started:
        """Start `python -m MODULE ARGUMENTS...` in a session of its own.

        Isolated, it may write `workdir` alone, and with `shares_cache` what jobs have compiled;
        with `talks` the processes that it starts may talk to each other. `cards` are the graphics
        cards that it sees, as `CUDA_VISIBLE_DEVICES` names them; None: those of this process.
        Raises: OSError where no process can be started, or isolated.
        """
        environment = scrubbed_environment(device, cards=cards)
        plan = None
        if self._isolation is not None:
            plan = self._isolation.plan(workdir, shares_cache=shares_cache, talks=talks)
            environment |= self._isolation.environment(plan)
        encoded = None if plan is None else plan.encode()
        cold_because = None
        if self._is_warm:
            request = ForkRequest(module, arguments, environment, str(Path.cwd()), encoded)
            try:
                return Started(self._fork(request, stdout, stderr))
            except ForkFailed as error:
                cold_because = str(error)
                log.warning("engine_started_cold", module=module, because=cold_because)
        wrapper = ["workers.parent_death"]
        if encoded is not None:
            wrapper = ["workers.isolated_process", encoded]
        child = subprocess.Popen(
            [sys.executable, "-m", *wrapper, str(os.getpid()), module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
        return Started(child, cold_because)

    def close(self) -> None:
        """End the server, and every engine that it has forked; the next start makes another."""
        with self._lock:
            self._drop()

    def _fork(self, request: ForkRequest, stdout: int, stderr: int) -> Child:
        """Have an engine forked. Raises: ForkFailed."""
        self.warm_up()
        while not self.wait_ready(_TICK_SECONDS):
            pass
        with self._lock:
            server = self._server
            if server is None:
                raise ForkFailed("it was closed meanwhile")
            if server.environment != _server_environment():
                raise ForkFailed("the environment of the worker is no longer the server's")
            try:
                if server.failure is not None:
                    raise ForkFailed(server.failure)
                return server.fork(request, stdout, stderr)
            finally:
                if server.failure is not None:  # the next engine may have a new one
                    self._drop()

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def scrubbed_environment(device: str, *, cards: str | None = None) -> dict[str, str]:
    """Return the environment of a child process, without credentials; it sees these `cards`."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    if cards is not None:
        kept["CUDA_VISIBLE_DEVICES"] = cards
    if device == "cpu":
        kept["CUDA_VISIBLE_DEVICES"] = ""  # this worker offers no GPU, even where there is one
    if "OMP_WAIT_POLICY" not in kept:
        kept.setdefault("GOMP_SPINCOUNT", _SPINS)
    return {**kept, "PYTHONUNBUFFERED": "1"}


def share_cores(slots: int) -> None:
    """Let the engines of all slots together have as many threads as there are cores.

    The same whether others run or not, since the bytes of a student depend on it. Whoever has set
    OMP_NUM_THREADS has decided it.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // slots)))


def card_names(count: int) -> list[str]:
    """Return the names by which an engine is told of each of `count` cards that torch has found.

    Where CUDA_VISIBLE_DEVICES is set, torch counts its entries in their order.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return [str(number) for number in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


def _server_environment() -> dict[str, str]:
    """Return what the engines of all devices have in common."""
    kept = scrubbed_environment("auto")
    return {name: value for name, value in kept.items() if name not in _READ_LATE}
