"""Whether this machine can run jobs: what is wrong with it, and when it is looked at again.

A failure of the machine is not the job's: the job is handed back uncounted, and the worker takes no
other until the machine passes `check`. One state is shared by a worker's two processes: its
supervisor meets the failure, its main process speaks of it and tries again.
"""

import contextlib
import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import structlog

from models_registry.settings import Settings
from workers.forked_state import ForkedBytes

log = structlog.get_logger()

NO_DISK = "no_disk"
DISK_FAILED = "disk_failed"
NO_MEMORY = "no_memory"
NO_PROCESS = "no_process"
NO_DEVICE = "no_device"
"""No graphics card, or one that does not answer."""

_CODES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), NO_DISK),
    **dict.fromkeys((errno.EAGAIN, errno.EMFILE, errno.ENFILE), NO_PROCESS),
    errno.ENOMEM: NO_MEMORY,
}
_LEAST_MEMORY_BYTES = 256 * 2**20  # an engine without any job needs more
_PROBE_BYTES = 64 * 2**10
_STATE_BYTES = 8192
_MESSAGE_CHARACTERS = 1000
_LONGEST_PAUSE_SECONDS = 600.0
# A machine that fails again within this time has not recovered: the pauses go on growing.
_RELAPSE_SECONDS = 600.0


@dataclass(frozen=True)
class MachineFault:
    """What is wrong with a machine: one of the codes above, and a sentence without paths."""

    code: str
    message: str


@dataclass(frozen=True)
class Suspension:
    """Why a worker takes no jobs, or took none; times in seconds since the epoch."""

    code: str
    message: str
    since: float
    retry_at: float
    tries: int
    over_since: float | None = None


class MachineHealth:
    """The suspension of one worker, in memory that its forked processes share.

    `first_pause_seconds` is the time to the first new try; each further one waits twice as long.
    `clock` tells the seconds since the epoch.
    """

    def __init__(
        self, *, first_pause_seconds: float = 5.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._first_pause = first_pause_seconds
        self._clock = clock
        self._shared = ForkedBytes(_STATE_BYTES)

    @property
    def suspension(self) -> Suspension | None:
        """Return why no job may be taken, or None."""
        last = self._read()
        return last if last is not None and last.over_since is None else None

    def suspend(self, fault: MachineFault) -> None:
        """Take no more jobs until the machine passes a check; a first fault stays."""
        now, last = self._clock(), self._read()
        if last is not None and last.over_since is None:
            return
        has_relapsed = last is not None and now - (last.over_since or now) < _RELAPSE_SECONDS
        tries = last.tries if last is not None and has_relapsed else 0
        log.error("worker_suspended", code=fault.code, reason=fault.message, tries=tries)
        message = fault.message[:_MESSAGE_CHARACTERS]
        self._write(Suspension(fault.code, message, now, now + self._pause(tries), tries))

    def review(self, check: Callable[[str], MachineFault | None]) -> None:
        """Try a suspended machine again if it is time; `check` gets the code of the fault."""
        now, last = self._clock(), self.suspension
        if last is None or now < last.retry_at:
            return
        fault = check(last.code)
        tries = last.tries + 1
        if fault is None:
            log.info("worker_resumed", code=last.code, seconds=round(now - last.since, 1))
            self._write(replace(last, tries=tries, over_since=now))
        else:
            message = fault.message[:_MESSAGE_CHARACTERS]
            retry_at = now + self._pause(tries)
            self._write(Suspension(fault.code, message, last.since, retry_at, tries))

    def _pause(self, tries: int) -> float:
        return min(self._first_pause * 2.0 ** min(tries, 30), _LONGEST_PAUSE_SECONDS)

    def _read(self) -> Suspension | None:
        content = self._shared.get()
        return Suspension(**json.loads(content)) if content else None

    def _write(self, state: Suspension) -> None:
        self._shared.put(json.dumps(asdict(state)).encode())


def of_error(error: OSError) -> MachineFault:
    """Return what an error of the operating system says of the machine."""
    code = _CODES.get(error.errno or 0, DISK_FAILED)
    return MachineFault(code, error.strerror or type(error).__name__)


def check(settings: Settings) -> MachineFault | None:
    """Return what is wrong with this machine's disk or memory, or None."""
    try:
        return _check_disk(settings) or _check_memory()
    except OSError as error:
        return of_error(error)


def _check_disk(settings: Settings) -> MachineFault | None:
    scratch, least = settings.scratch_dir, settings.worker_min_free_bytes
    scratch.mkdir(parents=True, exist_ok=True)
    free = free_bytes(scratch)
    if free < least:
        return MachineFault(
            NO_DISK,
            f"The disk of the worker has {gibibytes(free)} free, and RETORT_WORKER_MIN_FREE_BYTES "
            f"asks for {gibibytes(least)}: free some, or lower it.",
        )
    with tempfile.TemporaryFile(dir=scratch, buffering=0) as probe:
        content = b"\x5a" * _PROBE_BYTES
        probe.write(content)
        probe.seek(0)
        if probe.read() != content:
            return MachineFault(
                DISK_FAILED, "The disk of the worker returns other bytes than it was sent."
            )
    for path in settings.cache_dir.glob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
            file.read(1)
    return None


def _check_memory() -> MachineFault | None:
    free = psutil.virtual_memory().available
    if free >= _LEAST_MEMORY_BYTES:
        return None
    return MachineFault(NO_MEMORY, f"The machine has {gibibytes(free)} of memory available.")


def free_bytes(folder: Path) -> int:
    """Return how much room the file system of a folder has."""
    return shutil.disk_usage(folder).free


def gibibytes(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 2**30:.2f} GiB"
