"""The engine server as its worker sees it: start it, have engines forked, hear how they end."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any  # of a JSON message

import structlog

from workers import engine_server
from workers.engine_server import ForkRequest

log = structlog.get_logger()

_START_SECONDS = 120.0
_FORK_SECONDS = 30.0
_END_SECONDS = 5.0
_LOGGED_BYTES = 2000


class ForkFailed(Exception):
    """The server did not fork an engine; the message says why."""


class ForkedEngine:
    """An engine that the server has forked, with the methods of `subprocess.Popen`.

    Its exit code comes over a connection. The process id stays its own until the code is taken.
    """

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.lost_server = False
        """Whether the server has died, which ends its engines as well."""
        self._connection = connection
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the engine runs."""
        if self._code is None and _is_readable(self._connection, 0):
            self._code = self._take_code()
        return self._code

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        if self._code is None:
            self._wait_for_answer()
            self._code = self._take_code()
        return self._code

    def send_signal(self, sig: int, /) -> None:
        """Send a signal to the engine, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def _wait_for_answer(self) -> None:
        """Wait for the exit code; give up a server that does not tell of an engine's end."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # reaped: the server has gone, and the connection with it
            return
        try:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            poll.poll()
        finally:
            os.close(pidfd)
        if not _is_readable(self._connection, _FORK_SECONDS):
            self._connection.shutdown(socket.SHUT_RDWR)  # read as lost

    def _take_code(self) -> int:
        """Receive the exit code, and let the server reap the process."""
        with self._connection as connection:
            answer = _receive(connection)
            if answer is None:
                self.lost_server = True
                return -signal.SIGKILL
            with contextlib.suppress(OSError):  # it is reaped, be it by a server that dies now
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_END_SECONDS)
                _receive(connection)
            return int(answer["code"])


class ServerClient:
    """One server process: it starts, is ready, and fails at most once.

    Not for several threads at a time.
    """

    def __init__(self, environment: dict[str, str], preload: Sequence[str]) -> None:
        self.environment = environment
        self.failure: str | None = None
        """Why no engine can be forked any more."""
        self._is_ready = False
        self._is_closing = False
        self._deadline = time.monotonic() + _START_SECONDS
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process writes
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the server with the thread that started it: this one lives as long.
        self._keeper = threading.Thread(
            target=self._keep, args=(theirs, preload), name="engine-server", daemon=True
        )
        self._keeper.start()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Return whether the server is ready or has failed, after the timeout at the latest."""
        if self._is_ready or self.failure is not None:
            return True
        if _is_readable(self._control, timeout_seconds):
            answer = _receive(self._control) or {"error": "it has ended during its start"}
            self._is_ready = "ready" in answer
            self.failure = self.failure or answer.get("error")
        elif time.monotonic() > self._deadline:
            self.failure = f"it was not ready after {_START_SECONDS:g} s"
        return self._is_ready or self.failure is not None

    def fork(self, request: ForkRequest, stdout: int, stderr: int) -> ForkedEngine:
        """Return a new engine of a server that is ready.

        Raises: ForkFailed; `failure` is set where the server itself is lost.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                passed = [stdout, stderr, theirs.fileno()]
                socket.send_fds(self._control, [request.encode()], passed)
            if not _is_readable(ours, _FORK_SECONDS):
                raise TimeoutError(f"no answer for {_FORK_SECONDS:g} s")
            answer = _receive(ours)
            if answer is None:
                raise ConnectionResetError("it has closed the connection")
            if "pid" not in answer:
                raise ForkFailed(answer.get("error", f"the fork has ended at once: {answer}"))
        except ForkFailed:
            ours.close()
            raise
        except OSError as error:
            ours.close()
            # One that hangs is given up, too: it holds the engine's standard output.
            self.failure = f"it has ended or hangs ({error})"
            raise ForkFailed(self.failure) from error
        return ForkedEngine(answer["pid"], ours)

    def close(self) -> None:
        """End the server, and every engine that it has forked."""
        self._is_closing = True
        self._control.close()
        self._keeper.join(_END_SECONDS)
        if self._keeper.is_alive() and self._process is not None:
            self._process.kill()
            self._keeper.join()
        self._log.close()

    def _keep(self, theirs: socket.socket, preload: Sequence[str]) -> None:
        """Start the process, and wait until it ends."""
        descriptor = theirs.fileno()
        arguments = ["workers.engine_server", str(descriptor), *preload]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "workers.parent_death", str(os.getpid()), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    env=self.environment,
                    pass_fds=[descriptor],
                    start_new_session=True,
                )
            except OSError as error:
                self.failure = f"it could not be started: {error}"
                return
        code = self._process.wait()
        if not self._is_closing:
            self._log.seek(0)
            tail = self._log.read()[-_LOGGED_BYTES:].decode(errors="replace")
            log.warning("engine_server_ended", code=code, log=tail)


def _is_readable(connection: socket.socket, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next message, or None where the other side is closed."""
    try:
        message = connection.recv(engine_server.MESSAGE_BYTES)
    except ConnectionResetError:
        return None
    content: dict[str, Any] | None = json.loads(message) if message else None
    return content
