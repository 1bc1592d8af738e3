"""One attempt at one job: writes the engine's reports, and the end, to database and storage.

Every write proves the fence. An attempt ends once; later reports are ignored.
"""

import functools
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.access.quotas import QuotaLimits
from models_registry.artifacts import exports, models
from models_registry.federations import federations
from models_registry.jobs import leases
from models_registry.jobs.lifecycle import Reason, State
from workers import child_files, inputs, patience, student_files
from workers.attempt_trace import AttemptTrace
from workers.context import Context
from workers.engine_process import Report
from workers.federation_bridge import FederationBridge
from workers.heartbeat import Heartbeat
from workers.inputs import AttemptInputs

log = structlog.get_logger()
T = TypeVar("T")

_FLUSH_SECONDS = 1.0
_FORESEEABLE_SECONDS = 1e9
_STORE_AGAIN_SECONDS = 5.0
_RETURN_SECONDS = 3600.0
_SILENT = (
    "The worker stopped the engine because it could not reach the database in time (its lease is "
    "{:g} s); the attempt is not counted, and the job goes on from its newest checkpoint."
)


class Attempt:
    """The state of one attempt between claim and end."""

    folder: Path  # of its own inputs and outputs; both from `load_inputs` on
    inputs: AttemptInputs

    def __init__(
        self,
        context: Context,
        lease: leases.Lease,
        *,
        held_since: float,
        on_silence: Callable[[], None],
    ) -> None:
        self.lease = lease
        self.heartbeat = Heartbeat(context, lease, held_since=held_since, on_silence=on_silence)
        self.group_size = 1
        """How many students its engine trains, this one included."""
        self.result: Report | None = None
        self.failure: Report | None = None
        self.is_over = False
        self.state: State | None = None
        """The job's state after the attempt; None if the lease was lost."""
        self.trace = AttemptTrace(context.tracer, lease, worker_id=context.worker_id)
        self._context = context
        self._points: list[leases.MetricSample] = []
        self._progress: float | None = None
        self._remaining_seconds: float | None = None
        self._flushed_at = 0.0
        self._bridge: FederationBridge | None = None
        self._weights: leases.OutputFile | None = None
        self._completed_at: float | None = None
        self._has_told_waiting = False

    def give_up(self, because: str) -> None:
        """End without writing to the database: another worker may hold the job."""
        log.warning("attempt_lost", job_id=self.lease.job_id, because=because)
        self.trace.fail(f"given up: {because}")
        self.trace.end(None)
        self.is_over = True

    def return_lost(self) -> None:
        """Uncount an attempt that ended because the database was silent, once it answers again.

        Until then this worker could not take another job either.
        """
        if not self.is_over or self.state is not None or not self.heartbeat.silent:
            return
        message = _SILENT.format(self._context.settings.lease_seconds)
        deadline = time.monotonic() + _RETURN_SECONDS
        try:
            changed = self._context.persist(
                lambda s: leases.return_lost(s, self.lease, message=message),
                hopeless=lambda: (
                    self._context.shutting_down.is_set() or time.monotonic() > deadline
                ),
            )
        except errors.Unavailable as error:
            log.warning("attempt_not_returned", job_id=self.lease.job_id, because=str(error))
        else:
            log.info("attempt_returned", job_id=self.lease.job_id, changed=changed)

    def persist(self, write: Callable[[Session], T]) -> T:
        """Run `write` in a transaction, repeatedly while the database is unreachable.

        Raises: errors.StaleFence if the lease is lost meanwhile.
        """
        try:
            return self._context.persist(write, hopeless=lambda: self.heartbeat.lost)
        except errors.Unavailable as error:
            raise errors.StaleFence(f"{self.lease.job_id}: {error}, the lease is lost") from error

    def load_inputs(self, folder: Path) -> None:
        """Load this job's inputs from the database; its own files go into `folder`."""
        self.folder = folder
        self.inputs = self.persist(lambda s: inputs.of(s, self.lease.job_id))
        if federations.is_remote(self.inputs.recipe["method"]):
            self._bridge = FederationBridge(self._context, self.lease, folder, self.persist)

    # -- while the engine runs -----------------------------------------------------------------

    def relay(self, report: Report) -> None:
        """Process one report of the engine about this job."""
        self.trace.hear(report)
        match report["type"]:
            case "started":
                self.persist(lambda s: self._started(s, report))
            case "progress":
                self._progress = report["progress"]
                self._remaining_seconds = report.get("remaining_seconds")
            case "metrics":
                self._points += [
                    leases.MetricSample(p["key"], p["step"], p.get("epoch"), float(p["value"]))
                    for p in report["points"]
                ]
            case "checkpoint":
                self._store_checkpoint(report)
            case "warning":
                self.persist(
                    lambda s: leases.warn(
                        s, self.lease, code=report["code"], message=report["message"]
                    )
                )
            case "result":
                self.result = report
            case "failure":
                self.failure = report

    def flush(self, *, force: bool = False) -> None:
        """Write progress and metrics, at most once a second unless `force` is set."""
        now = time.monotonic()
        if not force and now - self._flushed_at < _FLUSH_SECONDS:
            return
        if not self._points and self._progress is None:
            return
        points, self._points = self._points, []
        progress, self._progress = self._progress, None
        ends_at = _from_now(self._remaining_seconds)
        self.persist(
            lambda s: leases.report(
                s, self.lease, progress=progress, estimated_end_at=ends_at, samples=points
            )
        )
        self._flushed_at = now

    def exchange(self) -> None:
        """Carry messages between the engine and remote clients, if the job has any."""
        if self._bridge is not None:
            self._bridge.poll()

    def _started(self, session: Session, report: Report) -> None:
        leases.started(
            session,
            self.lease,
            device=report["device"],
            resumed_from_step=report["resumed_from_step"],
        )

    def _store_checkpoint(self, report: Report) -> None:
        """Store a checkpoint's bytes, then its row; skip one that the engine has replaced."""
        path = report["path"]
        try:
            stored = self._put(path, path, expected=report["sha256"])
        except FileNotFoundError:
            return  # the engine has written two newer ones since
        except errors.DigestMismatch:
            # A stop at the step of the last checkpoint writes it anew; that one's report follows.
            log.info("checkpoint_overtaken", job_id=self.lease.job_id, path=path)
            return
        except errors.Unavailable as error:
            # A job must not fail because a checkpoint was not stored; the next one is tried.
            log.warning("checkpoint_not_stored", job_id=self.lease.job_id, error=str(error))
            return
        self.persist(
            lambda s: leases.checkpoint(
                s,
                self.lease,
                stored,
                step=report["step"],
                epoch=report["epoch"],
                phase=report["phase"],
            )
        )

    def _put(self, path: str, name: str, *, expected: str | None = None) -> leases.OutputFile:
        """Store a file of the working folder, by its path below it, as `name`."""
        with child_files.open_below(self.folder, path) as file:
            stored = self._context.storage.put(file, expected=expected)
        return leases.OutputFile(name, stored.sha256, stored.size_bytes, stored.key)

    # -- at the end ----------------------------------------------------------------------------

    def complete(self, tail: list[str], *, can_wait: bool = True) -> None:
        """Store the student's files, then register it and end the job in one transaction.

        While the store cannot be used, the student waits on this machine, and the lease is kept;
        without `can_wait` the attempt stays open instead, for `complete` to be called again.
        """
        if self._completed_at is None:
            self.trace.enter("register")
        result = dict(self.result or {})
        if self.group_size > 1:
            result["shared_with"] = self.group_size - 1
        origin = self.persist(lambda s: student_files.origin(s, self.lease.job_id))
        self._completed_at = time.monotonic()
        try:
            # First, and patiently: the report is not waited for.
            self._store({models.WEIGHTS: student_files.WEIGHTS}, can_wait=can_wait)
            pictures = self._store_report()
            stored = [file.path for file in pictures]
            kit = student_files.make(origin, result, self.folder, stored=stored)
            files = self._store(kit.files, can_wait=can_wait)
        except FileNotFoundError as error:
            message = f"The engine reported a student, and left no {Path(error.filename).name}."
            self.fail("store_failed", message, True, tail)
            return
        except errors.StorageDown as error:
            if self._must_stop():
                because, message = Reason.WORKER_SHUTDOWN, leases.SHUT_DOWN
                self.stop(tail, because=because, message=message)
            elif can_wait:
                self.fail("store_failed", f"The student could not be stored: {error}", True, tail)
            elif not self._has_told_waiting:
                self.tell_waiting(error)
            return
        for message in kit.warnings:
            self._warn("card_not_written", message)
        self._end(lambda s: self._register(s, kit, [*files, *pictures]))

    def _register(
        self, session: Session, kit: student_files.StudentFiles, files: list[leases.OutputFile]
    ) -> State:
        """Register the student, end the job, and ask for the exports that it names."""
        state = leases.complete(
            session, self.lease, result=kit.result, student=kit.version, files=files
        )
        if state == State.SUCCEEDED:
            service = QuotaLimits.of_service(self._context.settings)
            exports.request_of_job(session, self.lease.job_id, service=service)
        return state

    @property
    def waits_for_storage(self) -> bool:
        """Return whether `complete` should be called again: it found no store a while ago."""
        if self.is_over or self._completed_at is None:
            return False
        return time.monotonic() - self._completed_at > _STORE_AGAIN_SECONDS

    def tell_waiting(self, error: errors.StorageDown) -> None:
        """Say in the job's state that it waits for the store."""
        self._has_told_waiting = True
        message = f"Waiting for the byte store, with the lease kept: {error}"
        self.persist(lambda s: leases.wait_for_storage(s, self.lease, message=message))

    def _must_stop(self) -> bool:
        """Return whether nobody needs the student any more, or this worker leaves."""
        beat = self.heartbeat
        return beat.stop_wanted or beat.lost or self._context.shutting_down.is_set()

    def _store(self, files: Mapping[str, str], *, can_wait: bool) -> list[leases.OutputFile]:
        """Store files by their path in the registry; the weights once only."""
        stored = []
        for name, path in files.items():
            put = functools.partial(self._put, path, name)
            if name == models.WEIGHTS and self._weights is not None:
                file = self._weights
            elif can_wait:
                file = patience.while_store_is_down(
                    put, on_wait=self.tell_waiting, must_stop=self._must_stop
                )
            else:
                file = put()
            if name == models.WEIGHTS:
                self._weights = file
            stored.append(file)
        return stored

    def _warn(self, code: str, message: str) -> None:
        self.persist(lambda s: leases.warn(s, self.lease, code=code, message=message))

    def _store_report(self) -> list[leases.OutputFile]:
        """Store the report's files; one that cannot be stored does not fail the job."""
        stored: list[leases.OutputFile] = []
        try:
            for name, path in student_files.report_files(self.folder).items():
                stored.append(self._put(path, name))
        except (errors.Unavailable, OSError) as error:
            # The other files would fail in the same way.
            log.warning("report_not_stored", job_id=self.lease.job_id, error=str(error))
            self._warn(
                "report_not_stored",
                f"The report is not complete, a file could not be stored: {error}",
            )
        return stored

    def stop(self, tail: list[str], *, because: Reason, message: str) -> None:
        """End as the user requested, or queue the job again if the user requested nothing."""

        def write(session: Session) -> State:
            state = leases.poll(session, self.lease)
            if state in (State.PAUSING, State.CANCELLING):
                return leases.stopped(session, self.lease, log_tail=tail)
            return leases.release(
                session, self.lease, because=because, message=message, log_tail=tail
            )

        self._end(write)

    def hand_back(self, tail: list[str], *, because: Reason, message: str) -> None:
        """Queue the job again, without counting the attempt."""
        self._end(
            lambda s: leases.release(s, self.lease, because=because, message=message, log_tail=tail)
        )

    def hand_back_unfit(self, message: str, tail: list[str]) -> None:
        """Queue the job again because this machine failed, without counting the attempt."""
        log.warning("attempt_handed_back", job_id=self.lease.job_id, message=message)
        self.trace.fail(message)
        self._end(lambda s: leases.release_unfit(s, self.lease, message=message, log_tail=tail))

    def fail(self, code: str, message: str, retryable: bool, tail: list[str]) -> None:
        """End in failure; a retryable one is queued again while attempts are left."""
        log.warning("attempt_failed", job_id=self.lease.job_id, code=code, message=message)
        self.trace.fail(f"{code}: {message}")
        self._end(
            lambda s: leases.fail(
                s, self.lease, code=code, message=message, retryable=retryable, log_tail=tail
            )
        )

    def _end(self, write: Callable[[Session], State]) -> None:
        self.state = self.persist(write)
        self.is_over = True
        self.trace.end(self.state)


def _from_now(seconds: float | None) -> datetime | None:
    if seconds is None or seconds > _FORESEEABLE_SECONDS:
        return None
    return datetime.now(UTC) + timedelta(seconds=seconds)
