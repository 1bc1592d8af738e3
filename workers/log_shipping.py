"""Ships the engine's log to the database while it is written, so that it can be followed.

At most once a second, whole lines only, and in slices. Of an engine that writes faster than that,
the newest lines count: what would be dropped at once is not sent.
"""

import time
from pathlib import Path

from models_registry.jobs import logs
from workers import child_files
from workers.attempt import Attempt

_SHIP_SECONDS = 1.0


class LogShipping:
    """What of one engine's log each of its jobs has got."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends: dict[str, int] = {}
        self._shipped_at: dict[str, float] = {}

    def ship(self, attempt: Attempt, *, force: bool = False) -> None:
        """Ship what is new; with `force` now, and the line that has no end yet as well.

        Raises: errors.StaleFence when the lease is lost.
        """
        lease, now = attempt.lease, time.monotonic()
        last = self._shipped_at.get(lease.job_id)
        if not force and last is not None and now - last < _SHIP_SECONDS:
            return
        self._shipped_at[lease.job_id] = now
        slices = read(self._path, self._ends.get(lease.job_id, 0), to_the_end=force)
        if slices:
            attempt.persist(lambda session: logs.keep(session, lease, slices))
            self._ends[lease.job_id] = slices[-1].end


def read(path: Path, start: int, *, to_the_end: bool) -> list[logs.Slice]:
    """Return the new lines of a log; with `to_the_end` also a last one without its end."""
    with child_files.open_below(path.parent, path.name) as file:
        size_bytes = file.seek(0, 2)
        first = max(start, size_bytes - logs.KEPT_BYTES)
        file.seek(first)
        content = file.read(size_bytes - first)
    if first > start:  # somewhere in a line
        first += content.find(b"\n") + 1
        content = content[content.find(b"\n") + 1 :]
    slices = []
    while content:
        length = _length(content, to_the_end=to_the_end)
        if not length:
            break
        piece, content = content[:length], content[length:]
        # PostgreSQL's text holds no NUL.
        text = piece.decode(errors="replace").replace("\x00", "")
        slices.append(logs.Slice(first, first + length, text))
        first += length
    return slices


def _length(content: bytes, *, to_the_end: bool) -> int:
    """Return the length of the next slice: up to the end of a line, if one is near enough."""
    lines = content.rfind(b"\n", 0, logs.SLICE_BYTES) + 1
    if lines or (len(content) < logs.SLICE_BYTES and not to_the_end):
        return lines
    return min(len(content), logs.SLICE_BYTES)
