"""What a worker does with a job while it holds the lease: claim, report, finish.

Every write proves by the fencing token that the worker still holds the job; zero rows touched
means that it does not, and `errors.StaleFence` tells it to stop.
"""

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.artifacts import models, uploads
from models_registry.jobs import fair_share, lifecycle, submission, transitions
from models_registry.jobs.lifecycle import Event, Reason, State
from models_registry.persistence import database, tables
from models_registry.retention import policies

UNFIT_LIMIT = 10
SHUT_DOWN = "The worker was shut down; the job goes on from its newest checkpoint."
# After such an end a job runs alone: it may have needed too much, or must_run_alone the others.
_RUNS_ALONE_AFTER = (Reason.ATTEMPT_FAILED, Reason.ATTEMPT_LOST, Reason.SHARED_ENGINE_FAILED)


@dataclass(frozen=True)
class Lease:
    """The right to work on a job, until it expires or the fence moves on."""

    job_id: str
    attempt: int
    fence: int
    traceparent: str | None = None
    """The trace of the job's submission."""


@dataclass(frozen=True)
class NextJob:
    """What a slot of a worker should do now."""

    job_id: str | None
    """The job to claim."""
    devices: int = 0
    """How many devices it needs."""
    awaits_devices: bool = False
    """Whether a job's turn has come for which too few devices of this worker are free."""


@dataclass(frozen=True)
class MetricSample:
    """One value of one metric."""

    key: str
    step: int
    epoch: int | None
    value: float


@dataclass(frozen=True)
class OutputFile:
    """A file whose bytes are in storage already."""

    path: str
    sha256: str
    size_bytes: int
    storage_key: str


def choose(
    session: Session,
    *,
    announced: str | None,
    queues: Collection[str],
    devices: int = 1,
    free_devices: int | None = None,
    running_limit: int | None = None,
    skipped: Collection[str] = (),
) -> NextJob:
    """Return the job that is next for a worker that was told of an `announced` one.

    A message says that there is work, not whose turn it is. If another job is next, the announced
    one still needs a message, and gets a new one; if it waits because its project runs as many
    jobs as it may, it says so, and gets its message when one of them ends. A job that needs more
    than the `devices` that this worker offers says so, and is announced again later.

    Of these, `free_devices` are free (None: all). A job whose turn it is and that needs more of
    them is passed by smaller ones for a while (`fair_share.PASSING`); then they are kept for it,
    unless a worker has found no room for its inputs.
    """

    def find(most: int) -> str | None:
        return fair_share.next_job(
            session, queues=queues, devices=most, running_limit=running_limit, skipped=skipped
        )

    free = devices if free_devices is None else min(free_devices, devices)
    now = database.now(session)
    first = chosen = find(devices)
    if first is not None and free < devices:
        foremost = session.get_one(tables.JobRow, first, populate_existing=True)
        if foremost.devices > free:
            # Devices that are kept for a job without room here would be idle for nothing.
            has_room = foremost.state_reason != Reason.NO_ROOM
            is_passed = not has_room or fair_share.can_be_passed(foremost, now)
            if announced is not None and foremost.devices > 1 and has_room:
                _tell_waiting_for_devices(session, foremost)
            chosen = find(free) if free and is_passed else None
    needed = 0 if chosen is None else session.get_one(tables.JobRow, chosen).devices
    turn = NextJob(chosen, needed, awaits_devices=chosen != first)
    if announced is None or chosen == announced or announced in skipped:
        return turn
    job = session.get(
        tables.JobRow, announced, populate_existing=True, with_for_update={"key_share": True}
    )
    if job is None or job.state != State.QUEUED or job.not_before > now:
        return turn
    if job.devices > devices:
        message = (
            f"The job needs {job.devices} devices, and the worker that was asked offers {devices}; "
            "it waits for another one."
        )
        decline(session, job_id=job.id, message=message, reason=Reason.TOO_FEW_DEVICES)
        return turn
    project = session.get_one(tables.ProjectRow, job.project_id, populate_existing=True)
    limit = fair_share.running_limit_of(project, running_limit)
    held = fair_share.count_held(session, project_id=project.id)
    if limit is not None and held >= limit:
        _wait_for_quota(session, job, held=held, limit=limit)
    elif first is not None and not skipped and job.state_reason != Reason.NO_ROOM:
        # Once a message: each turn that finds no room would double it. What found none itself is
        # announced by the sweep, after pauses that grow.
        transitions.announce(session, job, now)
        session.flush()
    return turn


def _tell_waiting_for_devices(session: Session, job: tables.JobRow) -> None:
    """Say in a job's state that it waits until enough devices of one worker are free."""
    message = (
        f"The job needs {job.devices} devices of one worker at a time, and fewer are free. From "
        f"{fair_share.end_of_passing(job):%Y-%m-%d %H:%M} UTC on devices are kept for it; before, "
        "jobs that need fewer may pass it."
    )
    decline(session, job_id=job.id, message=message, reason=Reason.TOO_FEW_DEVICES)


def _wait_for_quota(session: Session, job: tables.JobRow, *, held: int, limit: int) -> None:
    message = (
        f"The project runs {held} jobs, and its quota jobs_running is {limit}: the job waits until "
        "one of them has ended."
    )
    is_new = job.state_reason != Reason.RUNNING_QUOTA
    job.state_reason, job.state_message = Reason.RUNNING_QUOTA, message
    session.flush()
    if is_new:
        told = {"reason": Reason.RUNNING_QUOTA, "message": message}
        transitions.add_event(session, job.id, "waiting", told)


def claim(
    session: Session,
    *,
    job_id: str,
    worker_id: str,
    lease_seconds: float,
    running_limit: int | None = None,
) -> Lease | None:
    """Claim a queued job, or return None if it cannot be claimed (any more).

    `running_limit` is the service's limit on the jobs of one project that run.
    """
    # Locked before it is read: the new fence and attempt follow from these values.
    job = session.get(
        tables.JobRow, job_id, populate_existing=True, with_for_update={"key_share": True}
    )
    now = database.now(session)
    if job is None or job.state != State.QUEUED or job.not_before > now:
        return None
    if not fair_share.take_turn(session, project_id=job.project_id, running_limit=running_limit):
        return None
    fence, attempt = job.fence + 1, job.attempt + 1
    values = {
        "fence": fence,
        "attempt": attempt,
        "lease_owner": worker_id,
        "lease_expires_at": now + timedelta(seconds=lease_seconds),
    }
    if not transitions.move(session, job, Event.CLAIM, values=values).happened:
        return None
    session.add(
        tables.AttemptRow(
            job_id=job_id, number=attempt, fence=fence, worker_id=worker_id, started_at=now
        )
    )
    session.flush()
    return Lease(job_id, attempt, fence, job.traceparent)


def find_groupable(session: Session, lease: Lease) -> list[tables.JobRow]:
    """Return jobs that may share the engine of a claimed one, in the order of their submission.

    They belong to the same study, are queued and due, and resume from the same step, since an
    engine has one batch at a time for all of its students. A job that has failed or was lost runs
    alone from then on, and so does one whose time is limited: beside others it takes longer.
    """
    job = _job(session, lease)
    if job.study_id is None:
        return []
    row, attempt, kept = tables.JobRow, tables.AttemptRow, tables.CheckpointRow
    must_run_alone = sa.exists().where(
        attempt.job_id == row.id, attempt.outcome.in_(_RUNS_ALONE_AFTER)
    )
    newest = sa.select(sa.func.max(kept.step)).where(kept.job_id == row.id).scalar_subquery()
    may_share = (
        row.study_id == job.study_id,
        row.queue == job.queue,
        row.teacher_version_id.is_not_distinct_from(job.teacher_version_id),
        row.dataset_version_id.is_not_distinct_from(job.dataset_version_id),
        row.max_runtime_seconds.is_(None),
        ~must_run_alone,
    )
    leader_step = session.execute(
        sa.select(newest).where(row.id == job.id, *may_share)
    ).one_or_none()
    if leader_step is None:
        return []
    query = sa.select(row).where(
        *may_share,
        row.id != job.id,
        row.state == State.QUEUED,
        row.not_before <= database.now(session),
        newest.is_not_distinct_from(leader_step[0]),
    )
    return list(session.scalars(query.order_by(row.created_at, row.id)))


def renew(session: Session, lease: Lease, *, lease_seconds: float) -> State:
    """Extend the lease and return the job's state, which tells what the user wants.

    Raises: errors.StaleFence when the job is no longer held.
    """
    expires = database.now(session) + timedelta(seconds=lease_seconds)
    return _touch(session, lease, {"lease_expires_at": expires})


def poll(session: Session, lease: Lease) -> State:
    """Return the job's state without writing.

    Raises: errors.StaleFence when the job is no longer held.
    """
    row = tables.JobRow
    job = session.execute(sa.select(row.state, row.fence).where(row.id == lease.job_id)).one()
    if job.fence != lease.fence or State(job.state) not in lifecycle.HELD:
        raise errors.StaleFence(f"{lease.job_id} is {job.state}, fence {job.fence}")
    return State(job.state)


def started(session: Session, lease: Lease, *, device: str, resumed_from_step: int | None) -> None:
    """Record that the engine has started."""
    job = _job(session, lease)
    transitions.move(session, job, Event.STARTED, fence=lease.fence)
    attempt = session.get_one(tables.AttemptRow, (lease.job_id, lease.attempt))
    attempt.device, attempt.resumed_from_step = device, resumed_from_step
    session.flush()


def report(
    session: Session,
    lease: Lease,
    *,
    progress: float | None,
    estimated_end_at: datetime | None,
    samples: list[MetricSample],
) -> State:
    """Write progress and metrics; a batch that comes twice is stored once.

    Raises: errors.StaleFence when the job is no longer held.
    """
    columns: dict[str, Any] = {}
    if progress is not None:
        columns = {"progress": progress, "estimated_end_at": estimated_end_at}
    state = _touch(session, lease, columns)
    if samples:
        _add_points(session, lease, samples)
    return state


def _add_points(session: Session, lease: Lease, samples: Sequence[MetricSample]) -> None:
    """Insert points that are not there yet: on PostgreSQL in one statement, as one array a column.

    `benchmarks.growth` measures what a point costs.
    """
    constants: dict[str, Any] = {"job_id": lease.job_id, "attempt": lease.attempt}
    if session.get_bind().dialect.name != "postgresql":
        insert = database.insert(session, tables.MetricRow).on_conflict_do_nothing()
        constants["at"] = database.now(session)
        session.execute(insert, [{**constants, **vars(one)} for one in samples])
        return
    # As text: the driver would look at each element of a list for what it is. NaN is stored as
    # NULL, as `Number` has it.
    arrays = {
        "keys": [_quoted(one.key) for one in samples],
        "steps": [str(one.step) for one in samples],
        "epochs": ["NULL" if one.epoch is None else str(one.epoch) for one in samples],
        "values": ["NULL" if math.isnan(one.value) else repr(one.value) for one in samples],
    }
    texts = {name: "{" + ",".join(elements) + "}" for name, elements in arrays.items()}
    session.execute(_INSERT_POINTS, {**constants, **texts})


# Written by hand: SQLAlchemy takes a millisecond to build and to recognise it, for each batch.
_INSERT_POINTS = sa.text(
    "INSERT INTO job_metrics (job_id, attempt, at, key, step, epoch, value) "
    "SELECT :job_id, :attempt, statement_timestamp(), point.* FROM unnest("
    "CAST(:keys AS varchar[]), CAST(:steps AS bigint[]), CAST(:epochs AS integer[]), "
    "CAST(:values AS double precision[])) AS point (key, step, epoch, value) "
    "ON CONFLICT DO NOTHING"
)


@functools.lru_cache(maxsize=1000)  # a job has some dozens of keys
def _quoted(text: str) -> str:
    """Return a text as an element of PostgreSQL's text of an array."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def prove(session: Session, lease: Lease) -> State:
    """Lock the job's row if the lease is held, and return the job's state; nothing changes.

    Raises: errors.StaleFence when the job is no longer held.
    """
    return _touch(session, lease, {})


def warn(session: Session, lease: Lease, *, code: str, message: str) -> None:
    """Add a warning of the engine to the job and to its events; a repeated one to these alone."""
    _touch(session, lease, {})
    told = {"code": code, "message": message}
    job = session.get_one(tables.JobRow, lease.job_id, populate_existing=True)
    if told not in (job.warnings or []):
        job.warnings = [*(job.warnings or []), told]
    transitions.add_event(session, lease.job_id, "warning", told)


def wait_for_storage(session: Session, lease: Lease, *, message: str) -> None:
    """Say that the job waits for the byte store; what its user has asked for is not written over.

    Raises: errors.StaleFence when the job is no longer held.
    """
    because = Reason.WAITING_FOR_STORAGE
    if _touch(session, lease, {}) in (State.STARTING, State.RUNNING):
        _touch(session, lease, {"state_reason": because, "state_message": message})
    told = {"reason": because, "message": message}
    transitions.add_event(session, lease.job_id, "waiting", told)


def checkpoint(
    session: Session, lease: Lease, file: OutputFile, *, step: int, epoch: int, phase: str
) -> None:
    """Commit a checkpoint whose bytes are stored; delete all but the newest few.

    How many those are says the job, else the policy of its project.
    """
    _touch(session, lease, {})
    if any(
        (known.path, known.sha256) == (file.path, file.sha256)
        for known in checkpoints(session, job_id=lease.job_id)
    ):
        return  # committed by an earlier call whose answer was lost
    uploads.adopt(
        session, sha256=file.sha256, size_bytes=file.size_bytes, storage_key=file.storage_key
    )
    session.add(
        tables.CheckpointRow(
            id=ids.new("ckp"),
            job_id=lease.job_id,
            attempt=lease.attempt,
            step=step,
            epoch=epoch,
            phase=phase,
            path=file.path,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            created_at=database.now(session),
        )
    )
    session.flush()
    job = _job(session, lease)
    policy = policies.of(session, project_id=job.project_id)
    kept = job.checkpoints_last or policy.checkpoints_last
    for old in checkpoints(session, job_id=lease.job_id)[kept:]:
        session.delete(old)
    facts = {"step": step, "epoch": epoch, "phase": phase, "size_bytes": file.size_bytes}
    transitions.add_event(session, lease.job_id, "checkpoint", facts)


def checkpoints(session: Session, *, job_id: str) -> list[tables.CheckpointRow]:
    """Return the committed checkpoints of a job, newest first."""
    row = tables.CheckpointRow
    query = (
        sa.select(row).where(row.job_id == job_id).order_by(row.created_at.desc(), row.id.desc())
    )
    return list(session.scalars(query))


def complete(
    session: Session,
    lease: Lease,
    *,
    result: dict[str, Any],
    student: models.NewModelVersion,
    files: list[OutputFile],
) -> State:
    """Register the student and end the job, in the caller's one transaction.

    A job that is being cancelled ends as cancelled, and nothing is registered.

    Raises: errors.StaleFence when the job is no longer held: nothing is written then.
    """
    job = _job(session, lease)
    moved = transitions.move(session, job, Event.COMPLETE, fence=lease.fence)
    if job.state != State.SUCCEEDED:
        return State(job.state)
    for file in files:
        uploads.adopt(
            session, sha256=file.sha256, size_bytes=file.size_bytes, storage_key=file.storage_key
        )
    version = models.add_version(
        session,
        project_id=job.project_id,
        new=student,
        files={file.path: file.sha256 for file in files},
        state="ready",
    )
    moved.job.result = {
        **result,
        "student": models.reference_of(version),
        "digest": f"sha256:{version.sha256}",
    }
    moved.job.student_version_id = version.id
    for row in checkpoints(session, job_id=job.id):
        session.delete(row)  # nothing resumes a finished job
    session.flush()
    submission.settle_dependents(session, job)
    return State.SUCCEEDED


def fail(
    session: Session,
    lease: Lease,
    *,
    code: str,
    message: str,
    retryable: bool,
    log_tail: list[str],
) -> State:
    """End the attempt in failure; a retryable one is queued again while attempts are left."""
    job = _job(session, lease)
    failure = {
        "code": code,
        "message": message,
        "retryable": retryable,
        "attempt": lease.attempt,
        "log_tail": log_tail,
    }
    event = Event.FAIL_RETRYABLE if retryable else Event.FAIL
    because = Reason.ATTEMPT_FAILED if retryable else Reason.ENGINE_FAILED
    moved = transitions.move(
        session, job, event, because=because, message=message, fence=lease.fence
    )
    if job.state == State.FAILED and not job.failure:
        moved.job.failure = failure
    _keep_log(session, lease, log_tail)
    return State(job.state)


def stopped(session: Session, lease: Lease, *, log_tail: list[str]) -> State:
    """Record that the engine has stopped because the user paused or cancelled the job."""
    job = _job(session, lease)
    transitions.move(session, job, Event.STOPPED, fence=lease.fence)
    _keep_log(session, lease, log_tail)
    return State(job.state)


def release(
    session: Session,
    lease: Lease,
    *,
    because: Reason = Reason.WORKER_SHUTDOWN,
    message: str = SHUT_DOWN,
    log_tail: list[str],
) -> State:
    """Queue the job again for a reason outside of it; the attempt is not counted."""
    job = _job(session, lease)
    transitions.move(
        session, job, Event.RELEASED, because=because, message=message, fence=lease.fence
    )
    _keep_log(session, lease, log_tail)
    return State(job.state)


def release_unfit(session: Session, lease: Lease, *, message: str, log_tail: list[str]) -> State:
    """Hand back a job whose worker's machine failed; the attempt is not counted.

    A job at which `UNFIT_LIMIT` machines in all have failed is likely to be the cause: from then
    on its attempts count.
    """
    row = tables.AttemptRow
    failed = sa.select(sa.func.count()).where(
        row.job_id == lease.job_id, row.outcome == Reason.WORKER_FAILED
    )
    if session.scalars(failed).one() + 1 >= UNFIT_LIMIT:
        many = f"{message} Machines have failed at this job {UNFIT_LIMIT} times or more."
        return fail(
            session, lease, code="worker_failed", message=many, retryable=True, log_tail=log_tail
        )
    because = Reason.WORKER_FAILED
    return release(session, lease, because=because, message=message, log_tail=log_tail)


def decline(
    session: Session, *, job_id: str, message: str, reason: Reason = Reason.NO_ROOM
) -> None:
    """Say why a worker left a queued job to others; it is announced again later."""
    job = session.get(
        tables.JobRow, job_id, populate_existing=True, with_for_update={"key_share": True}
    )
    if job is None or job.state != State.QUEUED:
        return
    is_new = job.state_reason != reason
    job.state_reason, job.state_message = reason, message
    session.flush()
    if is_new:  # not each time that the same worker looks at it
        told = {"reason": reason, "message": message}
        transitions.add_event(session, job_id, "declined", told)


def return_lost(session: Session, lease: Lease, *, message: str) -> bool:
    """Uncount an attempt that its worker stopped because it could not reach the database.

    A lease that nobody has ended yet is handed back. If it was ended meanwhile, and the attempt
    counted as lost, the attempt no longer counts; a job that has ended for good stays as it is.
    Return whether anything changed.
    """
    job = session.get_one(
        tables.JobRow, lease.job_id, populate_existing=True, with_for_update={"key_share": True}
    )
    because = Reason.DATABASE_UNREACHABLE
    if job.fence == lease.fence and job.state in lifecycle.HELD:
        release(session, lease, because=because, message=message, log_tail=[])
        return True
    row = tables.AttemptRow
    lost = sa.update(row).where(
        row.job_id == lease.job_id,
        row.number == lease.attempt,
        row.fence == lease.fence,
        row.outcome == Reason.ATTEMPT_LOST,
    )
    excused = lost.values(outcome=because, message=message).returning(row.number)
    if job.state in lifecycle.FINAL or session.scalars(excused).one_or_none() is None:
        return False
    job.releases += 1
    told = {"attempt": lease.attempt, "reason": because, "message": message}
    transitions.add_event(session, lease.job_id, "attempt_uncounted", told)
    return True


def return_unknown_claim(session: Session, *, job_id: str, worker_id: str) -> bool:
    """Hand back a job that this worker claimed without hearing so; return whether there was one.

    The database may have committed a claim whose answer was lost.
    """
    job = session.get(
        tables.JobRow, job_id, populate_existing=True, with_for_update={"key_share": True}
    )
    if job is None or job.lease_owner != worker_id or job.state != State.STARTING:
        return False
    message = "The worker claimed the job, but lost the database before it knew; no time was lost."
    lease = Lease(job_id, job.attempt, job.fence)
    because = Reason.DATABASE_UNREACHABLE
    release(session, lease, because=because, message=message, log_tail=[])
    return True


def _job(session: Session, lease: Lease) -> tables.JobRow:
    return session.get_one(tables.JobRow, lease.job_id)


def _touch(session: Session, lease: Lease, columns: dict[str, Any]) -> State:
    """Write `columns` if the lease is held, and return the job's state."""
    row = tables.JobRow
    held = [row.id == lease.job_id, row.fence == lease.fence, row.state.in_(lifecycle.HELD)]
    state = session.scalars(
        sa.update(row)
        .where(*held)
        .values(columns or {"fence": lease.fence})
        .returning(row.state)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if state is None:
        raise errors.StaleFence(f"{lease.job_id}: fence {lease.fence} no longer holds the job")
    return State(state)


def _keep_log(session: Session, lease: Lease, log_tail: list[str]) -> None:
    # After the move: every transaction locks the job's row first, so there is no deadlock.
    attempt = session.get_one(tables.AttemptRow, (lease.job_id, lease.attempt))
    attempt.log_tail = log_tail
    session.flush()
