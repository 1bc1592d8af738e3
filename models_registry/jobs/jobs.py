"""Submit, read and move jobs. `move` is the only code that writes a job's state.

Each move is one conditional UPDATE with its event (and, where the job is to be announced, its
outbox row) in the caller's transaction; a move that lost a race looks again and answers by what
it then finds. What a worker does while it holds a job is in `leases.py`; what time does, in
`sweeps.py`.
"""

import random
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.artifacts import datasets, models
from models_registry.jobs import lifecycle, validation, workers
from models_registry.jobs.lifecycle import Answer, Event, Reason, State
from models_registry.jobs.spec import NAME_PATTERN, VERSION, JobSpec, Request
from models_registry.jobs.validation import Inputs
from models_registry.persistence import database, outbox, tables

log = structlog.get_logger()

RUN_TASK = "jobs.run"
BACKOFF_SECONDS = 2.0
BACKOFF_LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Moved:
    """What a move did: `answer` is the new state, or why the state stayed."""

    job: tables.JobRow
    answer: State | Answer

    @property
    def happened(self) -> bool:
        """Return whether the state changed."""
        return isinstance(self.answer, State)


# -- the one door ----------------------------------------------------------------------------


def move(
    session: Session,
    job: tables.JobRow,
    event: Event,
    *,
    because: Reason | None = None,
    message: str | None = None,
    fence: int | None = None,
    values: dict[str, Any] | None = None,
) -> Moved:
    """Apply `event` to `job` by the table of `lifecycle.py`.

    `fence` proves that a worker still holds the job. `values` are further columns to write with
    the state. The row is read again first, so the answer is about the present.

    Raises: errors.StaleFence when a worker is out of date; errors.IllegalMove when a user's
    event does not fit the state.
    """
    for _ in range(10):  # a lost race is looked at again; ten in a row do not happen
        session.refresh(job)
        if fence is not None and fence != job.fence:
            raise errors.StaleFence(f"{job.id}: fence {fence} is out of date, now {job.fence}")
        situation = lifecycle.Situation(
            attempts_left=job.attempt - job.releases < job.max_attempts,
            target=State(job.cancel_target or State.CANCELLED),
        )
        answer = lifecycle.answer(State(job.state), event, situation)
        if not isinstance(answer, State):
            return _stay(job, event, answer)
        if lifecycle.TABLE[State(job.state)][event] is Answer.TARGET or event is Event.STOPPED:
            # What the user (or the deadline) asked for is now so: its reason stays.
            because = Reason(job.state_reason) if job.state_reason else because
            message = job.state_message
        elif event in (Event.FAIL_RETRYABLE, Event.LEASE_EXPIRED) and answer is State.FAILED:
            because = Reason.ATTEMPTS_EXHAUSTED
        if _write(session, job, answer, event, because, message, values or {}):
            return Moved(job, answer)
    raise errors.Conflict(f"{job.id} changes too quickly for {event}; try again")


def _stay(job: tables.JobRow, event: Event, answer: Answer) -> Moved:
    if answer is Answer.STALE:
        raise errors.StaleFence(f"{job.id} is {job.state}: the worker's {event} comes too late")
    if answer is Answer.CONFLICT:
        raise _illegal(job, event)
    if answer is Answer.NEVER:
        raise errors.Conflict(f"{job.id} is {job.state}, where {event} cannot happen")
    return Moved(job, answer)


def _illegal(job: tables.JobRow, verb: str) -> errors.IllegalMove:
    state = State(job.state)
    verbs = lifecycle.allowed(state)
    if verbs:
        way_out = f"allowed now: {', '.join(verbs)}"
    elif lifecycle.is_final(state):
        way_out = "nothing changes it any more"
    else:
        way_out = "it will soon have ended"
    return errors.IllegalMove(
        f"A job that is {state} cannot {verb}; {way_out}.", state=state, allowed=verbs
    )


def _write(
    session: Session,
    job: tables.JobRow,
    state: State,
    event: Event,
    because: Reason | None,
    message: str | None,
    values: dict[str, Any],
) -> bool:
    """Write one move if the job is still as it was read; return whether it was."""
    now = database.now(session)
    old = State(job.state)
    row = tables.JobRow
    written = session.execute(
        sa.update(row)
        .where(row.id == job.id, row.state == old, row.fence == job.fence)
        .values(
            state=state,
            state_reason=because,
            state_message=message,
            last_sequence=row.last_sequence + 1,
            **_consequences(job, state, event, now),
            **values,
        )
        .execution_options(synchronize_session=False)
    )
    if written.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE gives a CursorResult
        return False
    if old in lifecycle.HELD and state not in lifecycle.HELD:
        _end_attempt(session, job, now, outcome=because or state, message=message)
    session.refresh(job)
    facts = {"from": old, "to": state, "attempt": job.attempt}
    if because:
        facts["reason"] = because
    if message:
        facts["message"] = message
    session.add(
        tables.EventRow(
            job_id=job.id, sequence=job.last_sequence, type=f"job.{state}", at=now, data=facts
        )
    )
    if state is State.QUEUED and job.not_before <= now:
        announce(session, job, now)
    session.flush()
    log.info("job_moved", job_id=job.id, from_state=old, to_state=state, reason=because)
    return True


def _consequences(job: tables.JobRow, state: State, event: Event, now: datetime) -> dict[str, Any]:
    """Return the columns that follow from entering `state`."""
    columns: dict[str, Any] = {}
    if state is State.QUEUED:
        columns |= {"queued_at": now, "not_before": now, "announced_at": None}
        columns["announce_again_at"] = None
        if event in (Event.FAIL_RETRYABLE, Event.LEASE_EXPIRED):
            columns["not_before"] = now + backoff(job.attempt - job.releases)
    if event is Event.RELEASED or (job.state, state) == (State.PAUSING, State.PAUSED):
        # Handed back, or cut short by a pause: neither uses up one of the job's attempts.
        columns["releases"] = job.releases + 1
    if state is State.RUNNING and job.started_at is None:
        columns["started_at"] = now
    if state not in lifecycle.HELD:
        columns |= {"lease_owner": None, "lease_expires_at": None, "estimated_end_at": None}
    if event is Event.LEASE_EXPIRED:
        columns["fence"] = job.fence + 1  # the old holder is locked out from this moment on
    if lifecycle.is_final(state):
        columns["finished_at"] = now
    if state is State.SUCCEEDED:
        columns["progress"] = 1.0
    return columns


def _end_attempt(
    session: Session, job: tables.JobRow, now: datetime, *, outcome: str, message: str | None
) -> None:
    attempt = session.get(tables.AttemptRow, (job.id, job.attempt))
    if attempt is None or attempt.ended_at is not None:
        return
    attempt.ended_at, attempt.outcome, attempt.message = now, outcome, message
    seconds = (now - attempt.started_at).total_seconds()
    session.execute(
        sa.update(tables.JobRow)
        .where(tables.JobRow.id == job.id)
        .values(active_seconds=tables.JobRow.active_seconds + seconds)
        .execution_options(synchronize_session=False)
    )


def backoff(attempt: int) -> timedelta:
    """Return how long to wait once `attempt` attempts have counted: doubling, with jitter."""
    longest = min(BACKOFF_SECONDS * 2 ** max(attempt - 1, 0), BACKOFF_LIMIT_SECONDS)
    return timedelta(seconds=longest * random.uniform(0.5, 1.0))


def announce(session: Session, job: tables.JobRow, now: datetime) -> None:
    """Write the message that tells workers of a queued job."""
    job.announced_at = now
    outbox.add(
        session,
        task=RUN_TASK,
        queue=job.queue,
        payload={"job_id": job.id, "dispatch_seq": job.last_sequence},
        priority=job.priority,
    )


def add_event(session: Session, job_id: str, kind: str, facts: dict[str, Any]) -> int:
    """Append an event that changes no state, and return its sequence number."""
    row = tables.JobRow
    sequence = session.scalars(
        sa.update(row)
        .where(row.id == job_id)
        .values(last_sequence=row.last_sequence + 1)
        .returning(row.last_sequence)
        .execution_options(synchronize_session=False)
    ).one()
    now = database.now(session)
    session.add(
        tables.EventRow(job_id=job_id, sequence=sequence, type=f"job.{kind}", at=now, data=facts)
    )
    session.flush()
    return sequence


# -- submission --------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyPlace:
    """A job's place in a study: no two jobs have the same."""

    study_id: str
    variant: int
    seed: int


def check(session: Session, *, project_id: str, spec: JobSpec) -> JobSpec:
    """Return `spec` with defaults filled in, storing nothing.

    Raises: errors.Refused with the fields at fault.
    """
    completed, _ = _examine(session, project_id, spec)
    return completed


def submit(
    session: Session,
    *,
    project_id: str,
    spec: JobSpec,
    retry_of: str | None = None,
    place: StudyPlace | None = None,
) -> tables.JobRow:
    """Store a job; it is queued at once if its inputs are ready, else it validates them first.

    Raises: errors.Refused with the fields at fault; nothing is stored then.
    """
    completed, inputs = _examine(session, project_id, spec)
    return store(
        session,
        project_id=project_id,
        completed=completed,
        inputs=inputs,
        notice=notice(session, queue=completed.resources.accelerator),
        retry_of=retry_of,
        place=place,
    )


def store(
    session: Session,
    *,
    project_id: str,
    completed: JobSpec,
    inputs: Inputs,
    notice: str | None,
    retry_of: str | None = None,
    place: StudyPlace | None = None,
) -> tables.JobRow:
    """Store a job whose spec was completed and found right; `notice` is shown while it waits."""
    now = database.now(session)
    waiting = [pointer for pointer, row in inputs.all() if row.state == "pending"]
    job = tables.JobRow(
        id=ids.new("job"),
        project_id=project_id,
        name=completed.name,
        task=completed.task,
        method=completed.method["name"],
        queue=completed.resources.accelerator,
        priority=completed.priority,
        labels=completed.labels,
        spec={"version": VERSION, **completed.model_dump(mode="json"), **_digests(inputs)},
        teacher_version_id=inputs.teacher and inputs.teacher.id,
        initial_version_id=inputs.initial and inputs.initial.id,
        dataset_version_id=inputs.dataset and inputs.dataset.id,
        retry_of=retry_of,
        study_id=place and place.study_id,
        study_variant=place and place.variant,
        study_seed=place and place.seed,
        state=State.VALIDATING,
        state_reason=Reason.WAITING_FOR_INPUT if waiting else None,
        state_message=f"Waiting until {', '.join(waiting)} is inspected." if waiting else None,
        max_attempts=completed.max_attempts,
        max_runtime_seconds=completed.resources.max_runtime_seconds,
        queue_deadline_seconds=completed.resources.queue_deadline_seconds,
        not_before=now,
        created_at=now,
    )
    session.add(job)
    session.flush()
    add_event(session, job.id, "validating", {"to": State.VALIDATING})
    if not waiting:
        move(session, job, Event.VALID, message=notice)
    session.refresh(job)
    return job


def notice(session: Session, *, queue: str) -> str | None:
    """Return what the submitter of a job should know of its queue, if anything."""
    if workers.anyone_takes(session, queue=queue):
        return None
    return f"No worker that takes {queue!r} jobs is online; the job waits for one."


def _examine(session: Session, project_id: str, spec: JobSpec) -> tuple[JobSpec, Inputs]:
    """Check everything that can be known now; collect all faults before refusing."""
    inputs, unresolved = find_inputs(session, project_id=project_id, spec=spec)
    completed, faults = complete(spec, inputs)
    faults += unresolved
    if faults:
        raise errors.Refused(summary(faults), code="invalid_spec", faults=faults)
    return completed, inputs


def find_inputs(
    session: Session, *, project_id: str, spec: Request
) -> tuple[Inputs, list[errors.Fault]]:
    """Return what the references of a spec lead to, and what is wrong with those that do not."""
    faults: list[errors.Fault] = []
    inputs = Inputs(
        teacher=_resolve(session, project_id, spec.teacher, models.resolve, "/teacher", faults),
        initial=_resolve(
            session, project_id, spec.student.initial, models.resolve, "/student/initial", faults
        ),
        dataset=_resolve(session, project_id, spec.dataset, datasets.resolve, "/dataset", faults),
    )
    return inputs, faults


def complete(spec: JobSpec, inputs: Inputs) -> tuple[JobSpec, list[errors.Fault]]:
    """Return `spec` with defaults filled in and references pinned, and all that is wrong with it.

    With a fault, the spec is returned as it was.
    """
    document = validation.read(spec.parts)
    faults = [*document.faults, *validation.faults_of_inputs(document, inputs)]
    if faults:
        return spec, faults
    fields = {"method": document.method.document, "training": document.training.document}
    pinned = _pinned(inputs)
    initial = pinned.pop("initial", None)
    register_as = spec.student.register_as or student_name(spec.name)
    student = spec.student.model_copy(update={"register_as": register_as, "initial": initial})
    return spec.model_copy(update={**fields, "student": student, **pinned}), []


def _resolve(
    session: Session,
    project_id: str,
    reference: str | None,
    resolve: Any,  # models.resolve or datasets.resolve: same call, different row
    pointer: str,
    faults: list[errors.Fault],
) -> Any:
    if reference is None:
        return None
    try:
        found = resolve(session, project_id=project_id, reference=reference)
    except (errors.NotFound, errors.Refused, errors.Malformed) as error:
        faults.append(errors.Fault(pointer, error.code, error.message))
        return None
    if found.state == "pending":
        # Held, so that its inspection either ends before this look, or finds the job that waits.
        session.refresh(found, with_for_update={"read": True})
    if found.state == "rejected":
        why = (found.rejection or {}).get("message", "its inspection failed")
        faults.append(errors.Fault(pointer, "rejected", f"{reference} was rejected: {why}"))
    return found


def summary(faults: list[errors.Fault]) -> str:
    """Return the first fault as a sentence, and how many more there are."""
    first = faults[0].detail
    # Names such as student_steps or retort/fcn stay as they are written.
    is_word = first.partition(" ")[0].isalpha()
    sentence = first[:1].upper() + first[1:] if is_word else first
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{sentence}{more}"


def student_name(name: str) -> str:
    """Return the registry name of a student whose job has this name."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:96]
    return slug if re.match(NAME_PATTERN, slug) else "student"


def _pinned(inputs: Inputs) -> dict[str, Any]:
    """Return the references by number: what was resolved stays resolved."""
    pinned: dict[str, Any] = {}
    if inputs.teacher is not None:
        pinned["teacher"] = models.reference_of(inputs.teacher)
    if inputs.initial is not None:
        pinned["initial"] = models.reference_of(inputs.initial)
    if inputs.dataset is not None:
        pinned["dataset"] = datasets.reference_of(inputs.dataset)
    return pinned


def _digests(inputs: Inputs) -> dict[str, str | None]:
    rows = {
        "teacher_digest": inputs.teacher,
        "initial_digest": inputs.initial,
        "dataset_digest": inputs.dataset,
    }
    return {
        name: f"sha256:{row.sha256}" if row is not None and row.sha256 else None
        for name, row in rows.items()
    }


def settle(session: Session, job: tables.JobRow) -> None:
    """Queue or fail a validating job, if its inputs have been inspected by now."""
    if job.state != State.VALIDATING:
        return
    inputs = Inputs(
        teacher=_row(session, tables.ModelVersionRow, job.teacher_version_id),
        initial=_row(session, tables.ModelVersionRow, job.initial_version_id),
        dataset=_row(session, tables.DatasetVersionRow, job.dataset_version_id),
    )
    rejected = [
        f"{pointer.strip('/')} was rejected: {(row.rejection or {}).get('message', '')}"
        for pointer, row in inputs.all()
        if row.state == "rejected"
    ]
    wrong = validation.faults_of_inputs(validation.read(spec_of(job).parts), inputs)
    faults = rejected or [fault.detail for fault in wrong]
    if faults:
        failure = _failure("input_rejected", faults[0], attempt=0)
        move(
            session,
            job,
            Event.INVALID,
            because=Reason.INPUT_REJECTED,
            message=faults[0],
            values={"failure": failure},
        )
    elif all(row.state == "ready" for _, row in inputs.all()):
        job.spec = {**job.spec, **_digests(inputs)}
        session.flush()
        move(session, job, Event.VALID, message=notice(session, queue=job.queue))


def _row(session: Session, kind: Any, identity: str | None) -> Any:
    return None if identity is None else session.get(kind, identity, populate_existing=True)


def _failure(code: str, message: str, *, attempt: int, retryable: bool = False) -> dict[str, Any]:
    return {
        "code": code,
        "message": message,
        "retryable": retryable,
        "attempt": attempt,
        "log_tail": [],
    }


def spec_of(job: tables.JobRow) -> JobSpec:
    """Return the stored spec of a job as a value."""
    known = {key: job.spec[key] for key in JobSpec.model_fields if key in job.spec}
    return JobSpec.model_validate(known)


# -- what a user does --------------------------------------------------------------------------


def get(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Return a job of the project.

    Raises: errors.NotFound, also for another project's job; errors.Gone for a deleted one.
    """
    job = session.get(tables.JobRow, job_id)
    if job is None or job.project_id != project_id:
        raise errors.NotFound(f"There is no job {job_id!r}.")
    if job.deleted_at is not None:
        raise errors.Gone(f"Job {job_id!r} was deleted.")
    return job


def cancel(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Ask for the job's end; a final job stays as it is."""
    job = get(session, project_id=project_id, job_id=job_id)
    because = Reason.CANCELLED_BY_CALLER
    return move(
        session, job, Event.CANCEL, because=because, values={"cancel_target": State.CANCELLED}
    ).job


def pause(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Ask for a checkpoint and a rest.

    Raises: errors.IllegalMove where the state does not allow it.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    return move(session, job, Event.PAUSE, because=Reason.PAUSED_BY_CALLER).job


def resume(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Queue a paused job again; it goes on from its newest checkpoint.

    Raises: errors.IllegalMove where the state does not allow it.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    return move(session, job, Event.RESUME, because=Reason.RESUMED_BY_CALLER).job


def retry(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Submit the spec of a failed or cancelled job again, as a new job.

    In a study, the new job takes the old one's place.

    Raises: errors.IllegalMove for any other state.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    if job.state not in (State.FAILED, State.CANCELLED):
        raise errors.IllegalMove(
            f"Only failed or cancelled jobs can be retried; this one is {job.state}.",
            state=job.state,
            allowed=lifecycle.allowed(State(job.state)),
        )
    place = _free_place(session, job)
    return submit(session, project_id=project_id, spec=spec_of(job), retry_of=job.id, place=place)


def _free_place(session: Session, job: tables.JobRow) -> StudyPlace | None:
    if job.study_id is None or job.study_variant is None or job.study_seed is None:
        return None
    place = StudyPlace(job.study_id, job.study_variant, job.study_seed)
    row, study = tables.JobRow, tables.StudyRow
    # Held, so that the study is not deleted before its new job is there.
    session.scalars(
        sa.select(study.id).where(study.id == place.study_id).with_for_update(read=True)
    ).one()
    left = session.scalars(
        # Of two retries at the same time, one finds the place empty.
        sa.update(row)
        .where(row.id == job.id, row.study_id.is_not(None), row.deleted_at.is_(None))
        .values(study_id=None, study_variant=None, study_seed=None)
        .returning(row.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    session.refresh(job)
    return place if left is not None else None


def delete(session: Session, *, project_id: str, job_id: str) -> None:
    """Hide a final job for good; the students it made stay.

    Raises: errors.InUse for a job of a study, which would lose a result; errors.IllegalMove while
    the job is not final.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    if job.study_id is not None:
        raise errors.InUse(
            f"Job {job_id!r} belongs to study {job.study_id!r}: delete the study, and its jobs go "
            "with it."
        )
    if not lifecycle.is_final(State(job.state)):
        raise _illegal(job, "be deleted")
    hide(session, job)


def hide(session: Session, job: tables.JobRow) -> None:
    """Hide a job that has ended, with what could resume it."""
    job.deleted_at = database.now(session)
    session.execute(sa.delete(tables.CheckpointRow).where(tables.CheckpointRow.job_id == job.id))
    session.flush()
