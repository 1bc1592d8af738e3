"""One attempt at one job: claim, stage, run the engine, relay its reports, register the student.

The only bridge between a row and the engine. Whatever happens to this process, the database stays
true: every write proves the fence, and a job whose worker is gone is found by its lease.
"""

import enum
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.orm import Session

from models_registry import datasets, errors, jobs, leases, tables
from models_registry.lifecycle import State
from workers import engine_process, staging, student_files
from workers.context import Context
from workers.engine_process import EngineProcess, Report
from workers.heartbeat import Heartbeat
from workers.inspector import builtin_dataset

log = structlog.get_logger()
T = TypeVar("T")

_TICK_SECONDS = 0.2
_FLUSH_SECONDS = 1.0
_FORESEEABLE_SECONDS = 1e9


class _Ending(enum.Enum):
    """Why the supervision of an engine ended."""

    DONE = enum.auto()
    FAILED = enum.auto()
    STOPPED = enum.auto()
    CRASHED = enum.auto()
    LOST = enum.auto()


def run_job(context: Context, job_id: str) -> State | None:
    """Work on a job if it can be claimed; return the state it was left in, None where unclaimed."""
    settings = context.settings
    with context.sessions.begin() as session:
        lease = leases.claim(
            session,
            job_id=job_id,
            worker_id=context.worker_id,
            lease_seconds=settings.lease_seconds,
        )
    if lease is None:
        log.info("job_unclaimable", job_id=job_id)
        return None
    log.info("job_claimed", job_id=job_id, attempt=lease.attempt, fence=lease.fence)
    with Heartbeat(context, lease) as heartbeat:
        try:
            return _Attempt(context, lease, heartbeat).run()
        except errors.StaleFence as error:
            log.warning("attempt_stale", job_id=job_id, because=str(error))
            return None


class _Attempt:
    """The state of one attempt between claim and end."""

    _workdir: Path  # from `run` on

    def __init__(self, context: Context, lease: leases.Lease, heartbeat: Heartbeat) -> None:
        self._context = context
        self._lease = lease
        self._heartbeat = heartbeat
        self._points: list[leases.Point] = []
        self._progress: float | None = None
        self._remaining_seconds: float | None = None
        self._flushed_at = 0.0
        self._result: Report | None = None
        self._failure: Report | None = None

    def run(self) -> State | None:
        """Make a working folder, and carry the attempt out in it."""
        name = f"{self._lease.job_id}-{self._lease.attempt}"
        try:
            with staging.scratch(self._context.settings.scratch_dir, name) as self._workdir:
                return self._carry_out()
        except OSError as error:
            # A full disk, no free process: this machine's trouble, and perhaps not the next one's.
            return self._fail("worker_failed", f"The worker could not go on: {error}", True)

    def _carry_out(self) -> State | None:
        """Stage, supervise, and end the attempt in the database."""
        try:
            self._stage()
        except errors.StaleFence:
            raise
        except (errors.RegistryError, OSError, _BuiltinFailed) as error:
            return self._fail("staging_failed", f"An input could not be staged: {error}", True)
        if self._heartbeat.stop_wanted or self._context.shutting_down.is_set():
            return self._end_stopped([])
        arguments = [str(self._workdir / "recipe.json"), "--workdir", str(self._workdir)]
        device = self._context.settings.worker_device
        with EngineProcess(
            "workers.distill", arguments, workdir=self._workdir, device=device
        ) as engine:
            ending = self._supervise(engine)
            tail = engine.log_tail()
            code = engine.wait() if ending is not _Ending.LOST else None
        return self._end(ending, code, tail)

    # -- before ------------------------------------------------------------------------------

    def _stage(self) -> None:
        """Write the recipe and every input into the working folder."""
        inputs = self._persist(lambda s: _inputs(s, self._lease.job_id))
        for path, blob in inputs.files.items():
            self._place(blob, path)
        if inputs.builtin is not None:
            self._place_builtin(inputs.builtin)
        for path, blob in inputs.checkpoints.items():
            self._restore(blob, path)
        (self._workdir / "recipe.json").write_text(json.dumps(inputs.recipe))

    def _restore(self, blob: tables.BlobRow, path: str) -> None:
        # Not through the cache: a checkpoint is read once, by this attempt.
        try:
            staging.fetch(self._context.storage, blob, self._workdir / path)
        except (errors.NotFound, errors.DigestMismatch) as error:
            # The one before it, or the beginning, costs time; waiting for this one costs the job.
            log.warning("checkpoint_not_restored", job_id=self._lease.job_id, error=str(error))

    def _place(self, blob: tables.BlobRow, path: str) -> None:
        cache = self._context.settings.cache_dir
        staging.place(self._context.storage, blob, self._workdir / path, cache=cache)

    def _place_builtin(self, name: str) -> None:
        folder = self._workdir / "dataset"
        failure = builtin_dataset(name, folder, cache=self._context.settings.cache_dir)
        if failure is not None:
            raise _BuiltinFailed(failure)

    # -- while -------------------------------------------------------------------------------

    def _supervise(self, engine: EngineProcess) -> _Ending:
        """Relay reports until the engine has ended, or must."""
        settings = self._context.settings
        asked = False
        while not engine.has_ended:
            if self._heartbeat.lost:
                log.warning("attempt_lost", job_id=self._lease.job_id)
                engine.kill()
                return _Ending.LOST
            if not asked and (self._heartbeat.stop_wanted or self._context.shutting_down.is_set()):
                engine.ask_to_stop(grace_seconds=settings.kill_grace_seconds)
                asked = True
            engine.enforce_stop()
            report = engine.next_report(_TICK_SECONDS)
            if report is not None:
                self._relay(report)
            self._flush(force=False)
        self._flush(force=True)
        code = engine.wait()
        if code == 0 and self._result is not None:
            return _Ending.DONE
        if self._failure is not None:
            return _Ending.FAILED
        if asked:
            return _Ending.STOPPED
        return _Ending.CRASHED

    def _relay(self, report: Report) -> None:
        match report["type"]:
            case "started":
                self._persist(lambda s: self._started(s, report))
            case "progress":
                self._progress = report["progress"]
                self._remaining_seconds = report.get("remaining_seconds")
            case "metrics":
                self._points += [
                    leases.Point(p["key"], p["step"], p.get("epoch"), float(p["value"]))
                    for p in report["points"]
                ]
            case "checkpoint":
                self._store_checkpoint(report)
            case "warning":
                self._persist(
                    lambda s: leases.warn(
                        s, self._lease, code=report["code"], message=report["message"]
                    )
                )
            case "result":
                self._result = report
            case "failure":
                self._failure = report

    def _started(self, session: Session, report: Report) -> None:
        leases.started(
            session,
            self._lease,
            device=report["device"],
            resumed_from_step=report["resumed_from_step"],
        )

    def _flush(self, *, force: bool) -> None:
        now = time.monotonic()
        if not force and now - self._flushed_at < _FLUSH_SECONDS:
            return
        if not self._points and self._progress is None:
            return
        points, self._points = self._points, []
        progress, self._progress = self._progress, None
        ends_at = _from_now(self._remaining_seconds)
        self._persist(
            lambda s: leases.report(
                s, self._lease, progress=progress, estimated_end_at=ends_at, points=points
            )
        )
        self._flushed_at = now

    def _store_checkpoint(self, report: Report) -> None:
        """Publish a checkpoint's bytes, then its row; one overtaken by newer ones is skipped."""
        path = self._workdir / report["path"]
        try:
            stored = self._put(path, report["path"], expected=report["sha256"])
        except FileNotFoundError:
            return  # the engine has written two newer ones since
        except errors.Unavailable as error:
            # A job must not die for want of a checkpoint; the next one is tried again.
            log.warning("checkpoint_not_stored", job_id=self._lease.job_id, error=str(error))
            return
        self._persist(
            lambda s: leases.checkpoint(
                s,
                self._lease,
                stored,
                step=report["step"],
                epoch=report["epoch"],
                phase=report["phase"],
            )
        )

    def _put(self, path: Path, name: str, *, expected: str | None = None) -> leases.StoredFile:
        with path.open("rb") as file:
            stored = self._context.storage.put(file, expected=expected)
        return leases.StoredFile(name, stored.sha256, stored.size_bytes, stored.key)

    def _persist(self, write: Callable[[Session], T]) -> T:
        """Run `write` in a transaction, again and again while the database is away.

        Raises: errors.StaleFence when the lease is lost meanwhile.
        """
        try:
            return self._context.persist(write, hopeless=lambda: self._heartbeat.lost)
        except errors.Unavailable as error:
            raise errors.StaleFence(f"{self._lease.job_id}: {error}, the lease is lost") from error

    # -- after -------------------------------------------------------------------------------

    def _end(self, ending: _Ending, code: int | None, tail: list[str]) -> State | None:
        if ending is _Ending.LOST:
            return None
        if ending is _Ending.DONE:
            return self._complete(tail)
        if ending is _Ending.STOPPED:
            return self._end_stopped(tail)
        if ending is _Ending.FAILED and self._failure is not None:
            failure = self._failure
            retryable = bool(failure.get("retryable", False))
            return self._fail(failure["code"], failure["message"], retryable, tail)
        return self._fail("engine_crashed", _death(code), True, tail)

    def _complete(self, tail: list[str]) -> State:
        """Publish the student's bytes, then register it and end the job in one transaction."""
        result = self._result or {}
        job = self._persist(lambda s: s.get_one(tables.JobRow, self._lease.job_id))
        try:
            kit = student_files.make(job, result, self._workdir)
            files = [self._put(path, name) for name, path in kit.files.items()]
        except (errors.Unavailable, OSError) as error:
            return self._fail(
                "store_failed", f"The student could not be stored: {error}", True, tail
            )
        return self._persist(
            lambda s: leases.complete(
                s, self._lease, result=kit.result, student=kit.version, files=files
            )
        )

    def _end_stopped(self, tail: list[str]) -> State:
        """End because the user asked, or because this worker shuts down."""

        def write(session: Session) -> State:
            wanted = leases.wanted(session, self._lease)
            by_user = wanted in (State.PAUSING, State.CANCELLING)
            end = leases.stopped if by_user else leases.release
            return end(session, self._lease, log_tail=tail)

        return self._persist(write)

    def _fail(
        self, code: str, message: str, retryable: bool, tail: list[str] | None = None
    ) -> State:
        log.warning("attempt_failed", job_id=self._lease.job_id, code=code, message=message)
        return self._persist(
            lambda s: leases.fail(
                s,
                self._lease,
                code=code,
                message=message,
                retryable=retryable,
                log_tail=tail or [],
            )
        )


class _BuiltinFailed(Exception):
    """A built-in data set could not be written; the message is the child's."""


@dataclass(frozen=True)
class _Inputs:
    """What the database knows of a job's inputs: blobs by the path they get, and the recipe."""

    files: dict[str, tables.BlobRow]
    builtin: str | None
    checkpoints: dict[str, tables.BlobRow]
    recipe: dict[str, Any]


def _inputs(session: Session, job_id: str) -> _Inputs:
    job = session.get_one(tables.JobRow, job_id)
    teacher = _version(session, tables.ModelVersionRow, job.teacher_version_id)
    initial = _version(session, tables.ModelVersionRow, job.initial_version_id)
    dataset = _version(session, tables.DatasetVersionRow, job.dataset_version_id)
    weights = {
        f"{folder}/model.safetensors": session.get_one(tables.BlobRow, version.sha256)
        for folder, version in (("teacher", teacher), ("initial", initial))
        if version is not None
    }
    is_builtin = dataset is not None and dataset.format == datasets.BUILTIN
    return _Inputs(
        files={**weights, **_dataset_files(session, dataset)},
        builtin=datasets.name_of(dataset) if is_builtin else None,
        checkpoints=_checkpoint_files(session, job.id),
        recipe=recipe_of(job, teacher=teacher, initial=initial, dataset=dataset),
    )


def recipe_of(
    job: tables.JobRow,
    *,
    teacher: tables.ModelVersionRow | None,
    initial: tables.ModelVersionRow | None,
    dataset: tables.DatasetVersionRow | None,
) -> dict[str, Any]:
    """Return the engine's view of a job: plain values, no ids of ours.

    The job's own id is left out on purpose: the same spec gives the same bytes.
    """
    spec = jobs.spec_of(job)
    source = dataset or teacher
    if source is None or source.input is None:
        raise errors.Refused("A job needs a data set or a teacher to know its input from.")
    provenance = {
        "teacher": spec.teacher,
        "teacher_digest": job.spec.get("teacher_digest"),
        "dataset": spec.dataset,
        "dataset_digest": job.spec.get("dataset_digest"),
    }
    return {
        "version": 1,
        "task": spec.task,
        "teacher": None if teacher is None else _network(teacher),
        "student": {
            "network": spec.student.network,
            "arguments": spec.student.arguments,
            "classes": len(source.classes),
            "input": source.input,
        },
        "initial": initial is not None,
        "method": spec.method,
        "training": spec.training,
        "baseline": spec.baseline,
        "accelerator": spec.resources.accelerator,
        "provenance": {key: value for key, value in provenance.items() if value},
    }


def _network(version: tables.ModelVersionRow) -> dict[str, Any]:
    return {
        "network": version.network,
        "arguments": version.arguments,
        "classes": len(version.classes),
        "input": version.input,
    }


def _version(session: Session, kind: Any, identity: str | None) -> Any:
    return None if identity is None else session.get_one(kind, identity)


def _dataset_files(
    session: Session, dataset: tables.DatasetVersionRow | None
) -> dict[str, tables.BlobRow]:
    if dataset is None:
        return {}
    rows = session.query(tables.DatasetFileRow).filter_by(version_id=dataset.id)
    return {f"dataset/{row.path}": session.get_one(tables.BlobRow, row.sha256) for row in rows}


def _checkpoint_files(session: Session, job_id: str) -> dict[str, tables.BlobRow]:
    # Newest last: of two attempts that reached the same step, the later one counts.
    rows = reversed(leases.checkpoints(session, job_id=job_id))
    return {row.path: session.get_one(tables.BlobRow, row.sha256) for row in rows}


def _from_now(seconds: float | None) -> datetime | None:
    if seconds is None or seconds > _FORESEEABLE_SECONDS:
        return None
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _death(code: int | None) -> str:
    if code == engine_process.CHECKPOINTED:
        return "The engine was stopped (SIGTERM), but not by its worker."
    if code is not None and code < 0:
        hint = " (on Linux most often for want of memory)" if code == -9 else ""
        return f"The engine was ended by signal {-code}{hint}."
    return f"The engine ended with exit code {code} and said nothing of a result."
