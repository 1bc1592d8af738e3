"""Which devices of a worker each of its slots has, and whose turn it is to claim a job.

A slot is one process of the worker's pool, and runs one engine at a time. All slots are forked
from the process that made the pool. A device is held by a lock on a record of one file: the kernel
releases what a killed slot held, so no list can go stale.
"""

import contextlib
import fcntl
import json
import os
import struct
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from workers.forked_state import ForkedBytes

_RECORD = struct.Struct("<q")
_TURN = 0  # the record of the turn; those of the devices follow
_WAIT_SECONDS = 0.05
_OFFER_BYTES = 8192


class DevicePool:
    """The devices of one worker; it has one until `offer` says more.

    Locks belong to processes: two threads of one process do not keep each other out.
    """

    def __init__(self) -> None:
        descriptor, path = tempfile.mkstemp(prefix="retort-devices-")
        Path(path).unlink()  # so nothing is left of it
        self._file = descriptor
        # No earlier: to close a file releases all locks that this process has on it.
        weakref.finalize(self, os.close, descriptor)
        self._offer = ForkedBytes(_OFFER_BYTES)
        self._held: tuple[int, ...] = ()

    def offer(self, total: int, *, cards: Sequence[str] = ()) -> None:
        """Say how many devices there are, and by what names engines see those that are cards."""
        self._offer.put(json.dumps({"total": total, "cards": [*cards]}).encode())

    @property
    def total(self) -> int:
        """Return how many devices the slots share."""
        return self._offered()[0]

    @contextlib.contextmanager
    def turn(self, *, hopeless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Let no other slot of this worker claim a job during the block.

        Yield whether that is so: not where `hopeless` became true while another one claimed.
        """
        has_turn = self._lock(_TURN)
        while not has_turn and not hopeless():
            time.sleep(_WAIT_SECONDS)
            has_turn = self._lock(_TURN)
        try:
            yield has_turn
        finally:
            if has_turn:
                self._unlock(_TURN)

    def count_free(self) -> int:
        """Return how many devices no slot has; asked and acted on in one turn."""
        return len(self._free())

    def promised_bytes(self) -> int:
        """Return how much disk other slots still need for the inputs of jobs they have claimed."""
        free = set(self._free())
        others = [
            record
            for record in range(1, self.total + 1)
            if record not in free and record not in self._held
        ]
        return sum(self._read(record) for record in others)

    def take(self, count: int) -> tuple[int, ...]:
        """Take free devices in the turn, and return their numbers from 0 on.

        Raises: RuntimeError where fewer are free.
        """
        free = self._free()
        if len(free) < count or self._held:
            raise RuntimeError(f"{count} devices were wanted of {len(free)} that are free")
        self._held = tuple(free[:count])
        for record in self._held:
            self._lock(record)
            self._write(record, 0)
        return tuple(record - 1 for record in self._held)

    def promise(self, size_bytes: int) -> None:
        """Say how much disk the job of the devices in hand still needs for its inputs."""
        for record in self._held[:1]:
            self._write(record, size_bytes)

    def release(self) -> None:
        """Give back what this process holds."""
        for record in self._held:
            self._unlock(record)
        self._held = ()

    def cards_of(self, devices: Sequence[int]) -> str | None:
        """Return `CUDA_VISIBLE_DEVICES` for an engine; None where the devices are no cards."""
        _, cards = self._offered()
        return ",".join(cards[device] for device in devices) if cards else None

    def _offered(self) -> tuple[int, list[str]]:
        content = self._offer.get()
        if not content:
            return 1, []
        found = json.loads(content)
        return int(found["total"]), list(found["cards"])

    def _free(self) -> list[int]:
        """Return the records of devices that no slot has."""
        free = []
        for record in range(1, self.total + 1):
            if record not in self._held and self._lock(record):
                self._unlock(record)
                free.append(record)
        return free

    def _lock(self, record: int) -> bool:
        try:
            fcntl.lockf(
                self._file,
                fcntl.LOCK_EX | fcntl.LOCK_NB,
                _RECORD.size,
                record * _RECORD.size,
            )
        except (BlockingIOError, PermissionError):  # another process has it
            return False
        return True

    def _unlock(self, record: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, _RECORD.size, record * _RECORD.size)

    def _read(self, record: int) -> int:
        found = os.pread(self._file, _RECORD.size, record * _RECORD.size)
        return int(_RECORD.unpack(found)[0]) if len(found) == _RECORD.size else 0

    def _write(self, record: int, value: int) -> None:
        os.pwrite(self._file, _RECORD.pack(value), record * _RECORD.size)
