"""The engine's only output: one JSON object per line on a private copy of standard output.

After `open_stream` the process's own standard output points at standard error, so prints of a
library cannot break the stream. Metrics are collected and sent at most a second apart.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from workers.distill.runtime.narration import Narrator

METRICS_SECONDS = 1.0
PROGRESS_SECONDS = 0.5


class Reporter:
    """Writes report lines to a descriptor; those of one member of a group carry its key."""

    def __init__(
        self, descriptor: int, member: str | None = None, narrator: Narrator | None = None
    ) -> None:
        self.warnings: list[dict[str, str]] = []
        """Those reported so far; the result repeats them."""
        self._descriptor = descriptor
        self._narrator = narrator
        self._member = {} if member is None else {"member": member}
        self._points: list[dict[str, Any]] = []
        self._points_since = 0.0
        self._progress_at = -math.inf

    def of_member(self, key: str) -> "Reporter":
        """Return a reporter for one member of a group, with metrics and pauses of its own."""
        return Reporter(self._descriptor, key, self._narrator)

    def started(self, **facts: Any) -> None:
        """Report the device, and the step from which the work starts."""
        self._write("started", facts)

    def phase(self, name: str, *, network: str | None = None) -> None:
        """Report that `build`, `train`, `evaluate` or `report` begins, of which network.

        It is for traces: `at` is the time in seconds since the epoch.
        """
        of = {} if network is None else {"network": network}
        self._write("phase", {"name": name, "at": round(time.time(), 6), **of})

    def progress(self, **facts: Any) -> None:
        """Report progress, at most every half second."""
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self._write("progress", facts)
        if self._points and now - self._points_since >= METRICS_SECONDS:
            self.flush()

    def metric(self, key: str, value: float, *, step: int, epoch: int) -> None:
        """Add one point of one curve; it is sent with the next batch."""
        if not self._points:
            self._points_since = time.monotonic()
        self._points.append({"key": key, "step": step, "epoch": epoch, "value": value})
        if time.monotonic() - self._points_since >= METRICS_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the points collected so far."""
        if self._points:
            points, self._points = self._points, []
            self._write("metrics", {"points": points})

    def checkpoint(self, **facts: Any) -> None:
        """Report a usable checkpoint, after the metrics up to it."""
        self.flush()
        self._write("checkpoint", facts)

    def warning(self, code: str, message: str) -> None:
        """Report an anomaly that is not fatal."""
        self.warnings.append({"code": code, "message": message})
        self._write("warning", {"code": code, "message": message})

    def result(self, **facts: Any) -> None:
        """Report the result; the last line of a run that succeeded."""
        self.flush()
        self._write("result", facts)

    def failure(self, code: str, message: str, **facts: Any) -> None:
        """Report the failure; the last line of a run that failed."""
        self.flush()
        self._write("failure", {"code": code, "message": message, **facts})

    def answer(self, kind: str, **facts: Any) -> None:
        """Answer an order of whoever has started this process; see `run.client_process`."""
        self._write(kind, facts)

    def _write(self, kind: str, facts: Mapping[str, Any]) -> None:
        content = portable({"type": kind, **self._member, **facts})
        line = json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
        rest = line.encode(errors="replace")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        if self._narrator is not None:
            self._narrator.tell(kind, {**self._member, **facts})


class FailureReporter(Reporter):
    """Reports failures alone: of a process that is one of several of a job, not the first."""

    def __init__(self, reporter: Reporter) -> None:
        """Write to the stream of `reporter`."""
        super().__init__(reporter._descriptor, narrator=reporter._narrator)

    def _write(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind == "failure":
            super()._write(kind, facts)


def open_stream(*, narrates: bool = False) -> Reporter:
    """Take standard output for reports, and send all other prints to standard error.

    With `narrates`, the reports stand there as well, in lines for people.
    """
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return Reporter(descriptor, narrator=Narrator(2) if narrates else None)


def portable(value: Any) -> Any:
    """Return the value with non-finite numbers as the words NaN, Infinity and -Infinity."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return value
