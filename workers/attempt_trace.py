"""The trace of one attempt: a span from claim to end, and in it one for each phase of the work.

The supervisor makes them all, the engine's too, since an engine has no network: the engine reports
at which time a phase began. The attempt belongs to the trace of the job's submission, and links to
it, because hours may lie between them and one submission may have many attempts.
"""

import time
from typing import Any

from models_registry.jobs.leases import Lease
from models_registry.jobs.lifecycle import State
from models_registry.tracing import Span, Tracer

# Of the whole work, so that no attempt has more than some twenty spans of epochs.
_EPOCHS_SHARE = 0.05


class AttemptTrace:
    """Spans of one attempt; with a tracer that exports nothing it does nothing."""

    def __init__(self, tracer: Tracer, lease: Lease, *, worker_id: str) -> None:
        self._tracer = tracer
        self._span = tracer.begin(
            "attempt",
            parent=lease.traceparent,
            kind="consumer",
            links=[lease.traceparent],
            retort__job__id=lease.job_id,
            retort__attempt=lease.attempt,
            retort__fence=lease.fence,
            retort__worker__id=worker_id,
        )
        self._phase: Span | None = None
        self._name = ""
        self._epochs: Span | None = None
        self._epochs_from = 0.0

    def enter(self, name: str, *, at: float | None = None, of: str | None = None) -> None:
        """End the phase before, and begin `name`, now or `at` a time in seconds since the epoch.

        `of` is whose phase it is: `student` or `baseline`.
        """
        at = time.time() if at is None else at
        self._leave(at)
        self._name = name
        self._phase = self._tracer.begin(
            name, parent=self._span.traceparent, at=at, retort__network=of
        )

    # Any: a report of the engine, as JSON.
    def hear(self, report: dict[str, Any]) -> None:
        """Take from a report of the engine what a trace shows."""
        match report["type"]:
            case "started":
                self._span.update(retort__device=report.get("device_name", report["device"]))
            case "phase":
                self.enter(report["name"], at=report["at"], of=report.get("network"))
            case "progress" if self._name == "train":
                self._train(report)

    def fail(self, message: str) -> None:
        """Mark the attempt as failed."""
        self._span.fail(message)

    def end(self, state: State | None) -> None:
        """End the attempt, after which its job is in `state`; None if its lease was lost."""
        self._leave(time.time())
        self._span.update(retort__outcome="lost" if state is None else str(state))
        self._span.end()

    def _train(self, report: dict[str, Any]) -> None:
        progress, epoch, step = report["progress"], report["epoch"], report["step"]
        if self._epochs is not None and progress - self._epochs_from < _EPOCHS_SHARE:
            self._epochs.update(retort__epoch__last=epoch, retort__step__last=step)
            return
        if self._epochs is not None:
            self._epochs.end()
        self._epochs_from = progress
        self._epochs = self._tracer.begin(
            "epochs",
            parent=None if self._phase is None else self._phase.traceparent,
            retort__epoch__first=epoch,
            retort__step__first=step,
        )

    def _leave(self, at: float) -> None:
        for span in (self._epochs, self._phase):
            if span is not None:
                span.end(at=at)
        self._epochs = self._phase = None
        self._name = ""
