"""What a worker's main process and its forked children share, whichever of them is killed.

`multiprocessing` has an event and arrays for this. Its event waits until every sleeper has woken
up, and its arrays are locked by whoever reads or writes: after one SIGKILL at the wrong moment the
others would wait for ever. Nothing here waits for another process.
"""

import mmap
import os
import select
import struct
import zlib


class ForkedFlag:
    """A flag that is set once, and is seen by all processes that were forked after it was made."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def set(self) -> None:
        """Set the flag, in all processes; may be called in a signal handler."""
        # The byte is never read, so that everybody finds it; where it has been set before, another
        # changes nothing, and a full pipe is a set flag.
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            return

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self.wait(0.0)

    def wait(self, seconds: float | None = None) -> bool:
        """Return True once it is set, or after so many seconds whether it is."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(None if seconds is None else 1000 * seconds))


class ForkedBytes:
    """Some bytes, at first none, that all processes forked later read and replace as a whole.

    There are two places. A writer fills the one with the older content, under the next number and a
    checksum: who is killed in the middle leaves the newer content as it was. Those who write at
    the same time may undo each other's change, and a reader then finds an older content.
    """

    _HEADER = struct.Struct("=QII")  # number, length, checksum of number and content

    def __init__(self, most_bytes: int) -> None:
        """Have room for so many bytes."""
        self._most = most_bytes
        self._size = self._HEADER.size + most_bytes
        self._memory = mmap.mmap(-1, 2 * self._size)

    def get(self) -> bytes:
        """Return the bytes that were written last, or none."""
        return self._newest()[1]

    def put(self, content: bytes) -> None:
        """Replace the bytes.

        Raises `ValueError` where there is no room for them.
        """
        if len(content) > self._most:
            raise ValueError(f"{len(content)} bytes, and there is room for {self._most}")
        number = self._newest()[0] + 1
        header = self._HEADER.pack(number, len(content), _checksum(number, content))
        start = (number % 2) * self._size
        self._memory[start : start + len(header) + len(content)] = header + content

    def _newest(self) -> tuple[int, bytes]:
        return max((0, b""), *(self._place(start) for start in (0, self._size)))

    def _place(self, start: int) -> tuple[int, bytes]:
        """Return number and content of a place; those of an empty one if it is half written."""
        number, length, checksum = self._HEADER.unpack_from(self._memory, start)
        begin = start + self._HEADER.size
        content = self._memory[begin : begin + min(length, self._most)]
        return (number, content) if checksum == _checksum(number, content) else (0, b"")


def _checksum(number: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(number.to_bytes(8, "little")))
