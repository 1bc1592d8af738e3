"""An engine as a child process: start it, read its reports, stop it, wait until it has ended.

The child gets its own process group, a scrubbed environment (no database, no broker, no
credentials: its files are given to it), and dies with this process. How it is started, in a fork
of a warm server or in a fresh interpreter, is the launcher's (`engine_launcher.py`).
"""

import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import structlog

from workers import child_files
from workers.engine_launcher import EngineLauncher
from workers.engine_server_client import ForkedEngine

log = structlog.get_logger()

CHECKPOINTED = 75  # exit code: SIGTERM was received, a checkpoint is written
# A killed process whose new parent does not wait for it stays in its group as a zombie.
_GONE_SECONDS = 5.0
_TAIL_LINES = 50
_TAIL_WIDTH = 400
_COLD = (
    "The engine was started in a fresh interpreter, which takes seconds longer, because the warm "
    "server could not fork it: {}."
)
Report = dict[str, Any]


class EngineProcess:
    """One running child; use it with `with`, which leaves no process behind."""

    def __init__(
        self,
        module: str,
        arguments: list[str],
        *,
        workdir: Path,
        launcher: EngineLauncher,
        device: str = "auto",
        shares_cache: bool = False,
        talks: bool = False,
        cards: str | None = None,
    ) -> None:
        self.log_path = workdir / "engine.log"
        self._log = self.log_path.open("ab")
        reading, writing = os.pipe()
        self._stdout = os.fdopen(reading, "rb")
        try:
            started = launcher.start(
                module,
                arguments,
                workdir=workdir,
                device=device,
                shares_cache=shares_cache,
                talks=talks,
                cards=cards,
                stdout=writing,
                stderr=self._log.fileno(),
            )
        except OSError:
            self._stdout.close()
            self._log.close()
            raise
        finally:
            os.close(writing)
        self._child = started.child
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        if started.cold_because is not None:
            message = _COLD.format(started.cold_because)
            self._reports.put({"type": "warning", "code": "engine_cold", "message": message})
        self._reader = threading.Thread(target=self._read, name="engine-reports", daemon=True)
        self._reader.start()
        self._ended = False
        self._kill_at: float | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Kill what still runs."""
        self.kill()
        self._reader.join()
        self._stdout.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """Return the child's process id, which is also its group's."""
        return self._child.pid

    def next_report(self, timeout_seconds: float) -> Report | None:
        """Return the next report, or None when none came in time or the stream has ended."""
        if self._ended:
            return None
        if self._child.poll() is not None:
            # Its children would keep the stream open, and the device in use.
            self._signal_group(signal.SIGKILL)
        try:
            report = self._reports.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        self._ended = report is None
        return report

    @property
    def has_ended(self) -> bool:
        """Return whether the report stream is finished: nothing more will come."""
        return self._ended

    def request_stop(self, *, grace_seconds: float) -> None:
        """Send SIGTERM once; `enforce_stop` kills after the grace.

        Only to the child itself, which still needs its own children to write a checkpoint.
        """
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace_seconds
            self._child.send_signal(signal.SIGTERM)

    def enforce_stop(self) -> bool:
        """Kill the group when the grace is over; return whether that was needed."""
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """End the whole process group now, and wait until it is gone."""
        self._signal_group(signal.SIGKILL)
        self._child.wait()
        deadline = time.monotonic() + _GONE_SECONDS
        while self._signal_group(0) and time.monotonic() < deadline:
            time.sleep(0.01)  # the others of the group still hold the device

    def kill_without_waiting(self) -> None:
        """Send SIGKILL to the whole group; other threads than the engine's own may call this."""
        self._signal_group(signal.SIGKILL)

    def wait(self) -> int:
        """Return the exit code; negative for a signal."""
        return self._child.wait()

    @property
    def lost_server(self) -> bool:
        """Return whether the engine has ended because the process it was forked from has."""
        return isinstance(self._child, ForkedEngine) and self._child.lost_server

    def log_tail(self) -> list[str]:
        """Return the last lines of the child's log, each cut to a readable width."""
        self._log.flush()
        with child_files.open_below(self.log_path.parent, self.log_path.name) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_LINES * _TAIL_WIDTH))
            text = file.read().decode(errors="replace").replace("\x00", "")
        return [line[:_TAIL_WIDTH] for line in text.splitlines()[-_TAIL_LINES:]]

    def _signal_group(self, number: int) -> bool:
        """Send a signal to the whole group, and return whether a process was left."""
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _read(self) -> None:
        for line in self._stdout:
            try:
                report = json.loads(line)
            except ValueError:
                report = None
            if isinstance(report, dict) and "type" in report:
                self._reports.put(child_files.storable(report) if b"\\u" in line else report)
            else:
                log.warning("engine_line_unreadable", line=line[:200].decode(errors="replace"))
        self._reports.put(None)


class EngineGuard:
    """Kills an engine from any thread, at once, and a later one as soon as it starts.

    Its own thread may wait for a database that does not answer, and cannot be relied on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: EngineProcess | None = None
        self._is_tripped = False

    @property
    def is_tripped(self) -> bool:
        """Return whether no engine may run any more."""
        return self._is_tripped

    def trip(self) -> None:
        """Kill the engine, if there is one."""
        with self._lock:
            self._is_tripped = True
            if self._engine is not None:
                self._engine.kill_without_waiting()

    @contextlib.contextmanager
    def watching(self, engine: EngineProcess) -> Iterator[None]:
        """Let `trip` kill this engine during the block."""
        with self._lock:
            self._engine = engine
            if self._is_tripped:
                engine.kill_without_waiting()
        try:
            yield
        finally:
            with self._lock:  # from here on its process id may be another's
                self._engine = None
