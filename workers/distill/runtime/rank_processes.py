"""Starts one process for each device of a job, and ends all of them together.

The engine's own process becomes their parent. It is forked from before a device is touched, so the
ranks start in milliseconds, with everything imported, in the engine's session, isolation and
process group. The first rank reports, validates and writes; the parent passes a SIGTERM on to it
alone, since a checkpoint holds the state of all. When one rank ends without a result, none goes on.
This file must not import torch.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from workers.distill import errors
from workers.distill.runtime import events, shutdown, signals

PEER_LOST = 76
"""Exit code of a rank whose exchange with another one failed; it is not the cause."""
_CAUSE_SECONDS = 30.0
"""How long the cause is waited for after a rank says that it lost another one."""
_TICK_SECONDS = 0.02
_FAILED = 1
_PR_SET_PDEATHSIG = 1


class RankProcesses:
    """The ranks of one job, as their parent sees them."""

    def __init__(self, count: int, reporter: events.Reporter, stop: signals.Stop) -> None:
        self._count = count
        self._reporter = reporter
        self._stop = stop
        self._living: dict[int, int] = {}
        """Rank by process id."""

    def run(self, work: Callable[[int], int]) -> int:
        """Call `work(rank)` in a process for each rank, and return the exit code of the job.

        `work` returns an exit code, and has reported its failure where that is 1. Every other end
        of a rank but success, and a stop on request, is reported here as `rank_lost`.
        """
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        for rank in range(self._count):
            pid = os.fork()
            if pid == 0:
                self._become_rank(rank, parent)
                shutdown.exit_process(work(rank))
            self._living[pid] = rank
        signal.signal(signal.SIGTERM, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        try:
            return self._wait()
        finally:
            self._kill()

    def _become_rank(self, rank: int, parent: int) -> None:
        self._living.clear()
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(_FAILED)  # the parent died before the signal was set
        # What is to be saved is with the first rank; the others are ended by the parent.
        if rank > 0:
            self._stop.ignore()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        for pid, rank in self._living.items():
            if rank == 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _wait(self) -> int:
        """Return the job's exit code once it is known, whether or not ranks are left."""
        lost_since: float | None = None
        for rank, code in self._ended():
            if rank is None:
                if lost_since is not None and time.monotonic() - lost_since > _CAUSE_SECONDS:
                    return self._report("the processes of the job could no longer exchange data")
            elif code == PEER_LOST:
                lost_since = lost_since or time.monotonic()
            elif rank == 0 and code in (0, signals.EXIT_CODE):
                return code
            elif code == _FAILED:
                return code  # it has said why
            elif code != 0:
                ended = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return self._report(
                    f"the process of device {rank + 1} of {self._count} {ended}, and the others "
                    "cannot go on without it"
                )
        return self._report("the processes of the job could no longer exchange data")

    def _report(self, message: str) -> int:
        failure = errors.RankLost(message)
        self._reporter.failure(
            failure.code, failure.message, retryable=failure.retryable, details=failure.details
        )
        return _FAILED

    def _ended(self) -> Iterator[tuple[int | None, int]]:
        """Yield rank and exit code of each rank that ends; (None, 0) while none has."""
        while self._living:
            waited = [os.waitpid(pid, os.WNOHANG) for pid in self._living]
            # All are forgotten before one is told of: the caller may go on to kill the rest.
            ended = [
                (self._living.pop(pid), os.waitstatus_to_exitcode(status))
                for pid, status in waited
                if pid
            ]
            yield from ended
            if not ended:
                yield None, 0
                time.sleep(_TICK_SECONDS)

    def _kill(self) -> None:
        for pid in self._living:
            os.kill(pid, signal.SIGKILL)  # a child that was not waited for keeps its id
        for pid in self._living:
            os.waitpid(pid, 0)
        self._living.clear()
