"""Forks engines from a process that has imported torch, so that an engine starts in milliseconds.

`python -m workers.engine_server DESCRIPTOR MODULE... -- MODULE...` imports the first modules, then
serves the socket DESCRIPTOR, whose other end its worker holds (`engine_server_client.py`), and
imports the other modules when it has nothing to do. Each message asks for one engine and carries
three descriptors: its standard output, its standard error, and a connection on which its process id
and, later, its exit code are sent. No device is touched and no thread is left running before a
fork; a server that cannot promise that says so and forks nothing.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # of a JSON message

from workers import isolated_process, parent_death

MESSAGE_BYTES = 128 * 1024
"""The longest message; Linux takes this much on a socket without asking for more."""
_DESCRIPTORS = 3
# Whoever has waited for the server asks at once; an import before that would make him wait again.
_IDLE_MILLISECONDS = 500
# A server ends with its worker, and never before: a signal to all processes of a terminal or a
# service is for the engines, which save their work.
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class ForkRequest:
    """What one engine is started with, as `python -m MODULE ARGUMENTS...` in `cwd` would be."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    isolation: str | None = None
    """An encoded `isolated_process.IsolationPlan`."""

    def encode(self) -> bytes:
        """Return the request as a message."""
        return json.dumps(dataclasses.asdict(self)).encode()


def process_name(module: str) -> str:
    """Return what the kernel calls an engine: the last 15 bytes of its module's name."""
    return module[-15:]


@dataclasses.dataclass
class _Child:
    """A forked engine, until its worker has taken the exit code."""

    pid: int
    pidfd: int
    connection: socket.socket
    is_running: bool = True
    is_released: bool = False
    """Whether the worker has closed its side of the connection, and waits for nothing more."""


class EngineServer:
    """The loop of the server process; single-threaded, because it forks."""

    def __init__(self, control: socket.socket, *, later: Sequence[str]) -> None:
        self._control = control
        self._later = list(later)
        self._refusal: str | None = None
        self._children: list[_Child] = []
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._inherited = {number: signal.signal(number, signal.SIG_IGN) for number in _IGNORED}

    def serve(self) -> ForkRequest | None:
        """Fork an engine for each request, until the worker has gone.

        Return in each engine, with the request that it was forked for, and in the server, with
        None.
        """
        while True:
            events = self._poll.poll(_IDLE_MILLISECONDS if self._later else None)
            if not events:
                self._import_next()
            for descriptor, _ in events:
                if descriptor != self._control.fileno():
                    self._attend(descriptor)
                    continue
                message, passed, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, _DESCRIPTORS)
                if not message:
                    for child in self._children:
                        _kill_group(child.pid)
                    return None
                request = ForkRequest(**json.loads(message))
                if self._fork(request, *passed):
                    return request

    def _import_next(self) -> None:
        """Import one of the modules that can wait; refuse to fork where that goes wrong."""
        try:
            importlib.import_module(self._later.pop(0))
            if not self._later:
                prepare_to_fork()
        # Whatever an import raises: engines that run must not be taken along.
        except Exception as error:
            traceback.print_exc()
            self._refusal = f"{type(error).__name__}: {error}"

    def _fork(self, request: ForkRequest, stdout: int, stderr: int, answers: int) -> bool:
        """Fork, and return whether this is the engine."""
        server = os.getpid()
        connection = socket.socket(fileno=answers)
        # A stop that comes before the engine has its own handlers waits until then.
        signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            if self._refusal is not None:
                raise RuntimeError(self._refusal)
            pid = os.fork()
        except (OSError, RuntimeError) as error:
            _tell(connection, error=f"no engine could be forked: {error}")
            connection.close()
        else:
            if pid == 0:
                self._become_engine(request, stdout, stderr, server)
                _isolate(request, connection, server)
                # Not before: whoever knows the id may signal the group.
                _tell(connection, pid=os.getpid())
                connection.close()
                return True
            child = _Child(pid, os.pidfd_open(pid), connection)
            self._children.append(child)
            for descriptor in (child.pidfd, child.connection.fileno()):
                self._poll.register(descriptor, select.POLLIN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
        os.close(stdout)
        os.close(stderr)
        return False

    def _become_engine(self, request: ForkRequest, stdout: int, stderr: int, server: int) -> None:
        """Make this fork what a fresh child of the worker would be: session, files, signals."""
        os.setsid()
        parent_death.die_with_parent(server)
        self._control.close()
        for child in self._children:
            os.close(child.pidfd)
            child.connection.close()
        for source, target in ((stdout, 1), (stderr, 2)):
            os.dup2(source, target)
            os.close(source)
        os.environ.clear()
        os.environ.update(request.environment)
        os.chdir(request.cwd)
        Path("/proc/self/comm").write_text(process_name(request.module))
        for number, action in self._inherited.items():
            signal.signal(number, action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)

    def _attend(self, descriptor: int) -> None:
        """Tell how an engine has ended, and reap it once its worker knows.

        Until then the process id remains its own, so that no signal can reach a stranger.
        """
        self._poll.unregister(descriptor)
        (child,) = (c for c in self._children if descriptor in (c.pidfd, c.connection.fileno()))
        if descriptor == child.pidfd:
            child.is_running = False
            _tell(child.connection, code=_exit_code(child.pid))
        else:
            child.is_released = True
            if child.is_running:
                _kill_group(child.pid)  # nobody would stop it any more
        if child.is_released and not child.is_running:
            os.waitpid(child.pid, 0)
            self._children.remove(child)
            os.close(child.pidfd)
            child.connection.close()


def _isolate(request: ForkRequest, connection: socket.socket, server: int) -> None:
    """Give up what the plan says; an engine for which that fails says why, and ends."""
    if request.isolation is None:
        return
    try:
        isolated_process.apply(isolated_process.IsolationPlan.decode(request.isolation))
    except OSError as error:
        _tell(connection, error=str(error))
        os._exit(1)
    parent_death.die_with_parent(server)  # another user's process forgets it


def _exit_code(pid: int) -> int:
    """Return the exit code of a process that has ended, negative for a signal; do not reap it."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if ended is None:  # cannot be: without WNOHANG, the call waits
        raise ChildProcessError(f"process {pid} has not ended")
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def prepare_to_fork() -> None:
    """Keep what is imported out of the garbage collections of all forks, which would copy it.

    Raises: RuntimeError where a fork would not work as a fresh process does.
    """
    gc.collect()
    gc.freeze()
    trial = os.fork()
    if trial == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    # Counted after a fork: OpenBLAS ends its threads for one, and starts them again when needed.
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise RuntimeError(f"{threads} threads run after the imports; a fork would lose them")
    opened = [str(path.readlink()) for path in _descriptors()]
    devices = [target for target in opened if target.startswith("/dev/nvidia")]
    if devices:
        raise RuntimeError(f"the imports have opened {devices[0]}; CUDA does not survive a fork")


def _descriptors() -> list[Path]:
    # Sorted, thus read to the end: the listing's own descriptor is closed by then.
    return [path for path in sorted(Path("/proc/self/fd").iterdir()) if path.is_symlink()]


def _kill_group(leader: int) -> None:
    os.kill(leader, signal.SIGKILL)  # alone, it may not lead its group yet
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _tell(connection: socket.socket, **facts: Any) -> None:
    try:
        connection.send(json.dumps(facts).encode())
    except OSError:
        return  # the worker has let go of this engine; the closed connection is seen next


def main() -> None:
    """Import, serve; become an engine in every fork."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    split = sys.argv.index("--")
    try:
        for module in sys.argv[2:split]:
            importlib.import_module(module)
        prepare_to_fork()
    except Exception as error:
        traceback.print_exc()
        _tell(control, error=f"{type(error).__name__}: {error}")
        sys.exit(1)
    server = EngineServer(control, later=sys.argv[split + 1 :])
    _tell(control, ready=True)
    request = server.serve()
    if request is None:
        os._exit(0)  # to take the interpreter apart would need seconds, for nothing
    sys.argv = [request.module, *request.arguments]
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
