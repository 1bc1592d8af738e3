"""Submission: complete and check a spec, resolve its inputs, store the job."""

import copy
import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors, ids, tracing
from models_registry.access import quotas
from models_registry.access.quotas import UNLIMITED, QuotaLimits
from models_registry.artifacts import datasets, job_teachers, models, references
from models_registry.federations import federations
from models_registry.jobs import (
    dependencies,
    fair_share,
    network_trials,
    transitions,
    validation,
    workers,
)
from models_registry.jobs.lifecycle import Event, Reason, State
from models_registry.jobs.spec import (
    NAME_PATTERN,
    VERSION,
    JobReference,
    JobSpec,
    Request,
    ResourcesSpec,
)
from models_registry.jobs.validation import JobInputs
from models_registry.persistence import database, tables
from models_registry.webhooks import deliveries
from workers.distill.config import teachers

log = structlog.get_logger()


@dataclass(frozen=True)
class StudyPlace:
    """A job's place in a study: no two jobs have the same."""

    study_id: str
    variant: int
    seed: int


@dataclass(frozen=True)
class Checked:
    """A spec that was found right, and what its submitter should know."""

    spec: JobSpec
    inputs: JobInputs
    warnings: list[errors.Fault]
    is_being_tried: bool = False
    """Whether an inspector is trying the student's network out just now."""


def check(session: Session, *, project_id: str, spec: JobSpec) -> Checked:
    """Return `spec` with defaults filled in and with warnings, storing no job.

    A student's network that nobody has tried out is given to an inspector.
    Raises: errors.Refused with the fields at fault.
    """
    checked = _examine(session, project_id, spec)
    inputs = with_trial(session, checked.spec.parts, checked.inputs, ask=True)
    if inputs.trial is None or inputs.trial.state != network_trials.PENDING:
        return checked
    untried = errors.Fault(
        "/student/network",
        "network_not_tried",
        f"whether {inputs.trial.network} can be built for these images, and shows what the method "
        "needs, is not known yet; a job waits until an inspector has tried it",
    )
    return Checked(
        checked.spec,
        inputs,
        [*checked.warnings, untried],
        is_being_tried=workers.anyone_takes(session, queue=network_trials.QUEUE),
    )


def submit(
    session: Session,
    *,
    project_id: str,
    spec: JobSpec,
    retry_of: str | None = None,
    place: StudyPlace | None = None,
    limits: QuotaLimits = UNLIMITED,
) -> tables.JobRow:
    """Store a job; it is queued at once if its inputs are ready, else it validates them first.

    `limits` are those of the service; the project may have smaller ones of its own.

    Raises: errors.Refused with the fields at fault, errors.QuotaExceeded; nothing is stored then.
    """
    checked = _examine(session, project_id, spec)
    (job,) = store(
        session,
        [NewJob(checked.spec, checked.warnings, retry_of, place)],
        project_id=project_id,
        inputs=checked.inputs,
        notice=notice(session, checked.spec.resources),
        limits=limits,
    )
    return job


@dataclass(frozen=True)
class NewJob:
    """A job to be stored: its completed spec, and what its submitter should know of it."""

    completed: JobSpec
    warnings: list[errors.Fault]
    retry_of: str | None = None
    place: StudyPlace | None = None


def store(
    session: Session,
    new: Sequence[NewJob],
    *,
    project_id: str,
    inputs: JobInputs,
    notice: str | None,
    limits: QuotaLimits = UNLIMITED,
) -> list[tables.JobRow]:
    """Store jobs whose specs were completed and found right, all with the same inputs.

    They are written together: SQLite's one writer is held for each of them for less than 1 ms.
    `notice` is shown while they wait in the queue.

    Raises: errors.QuotaExceeded where the project has no place for all of them.
    """
    quotas.check_jobs(session, project_id=project_id, new=len(new), service=limits)
    now = database.now(session)
    trials: dict[str, tables.NetworkTrialRow | None] = {}
    jobs: list[tables.JobRow] = []
    ready: list[tables.JobRow] = []
    occurred: list[deliveries.Occurrence] = []
    for number, one in enumerate(new):
        # Lists and queues go by time, so each has a time of its own, none in the future.
        at = now - timedelta(microseconds=len(new) - 1 - number)
        key = json.dumps([one.completed.student.network, one.completed.student.arguments])
        if key not in trials:
            trials[key] = with_trial(session, one.completed.parts, inputs, ask=True).trial
        tried = dataclasses.replace(inputs, trial=trials[key])
        waiting = _waits_for(tried)
        job = _row_of(one, project_id=project_id, inputs=tried, waiting=waiting, at=at)
        jobs.append(job)
        facts = [("validating", {"to": State.VALIDATING})]
        facts += [("warning", told) for told in job.warnings or []]
        for kind, told in facts:
            event = transitions.new_event(job, kind, told, at)
            occurred.append(deliveries.Occurrence.of(job, event))
        if not waiting:
            event = transitions.queue_new(job, message=notice, at=at)
            occurred.append(deliveries.Occurrence.of(job, event))
            ready.append(job)
    messages = transitions.messages_of_new(ready, now)
    database.add_rows(session, [*jobs, *(one.event for one in occurred), *messages])
    if ready:
        log.info("jobs_queued", count=len(ready), job_ids=[job.id for job in ready])
    awaited = _awaited(inputs)
    for job, one in zip(jobs, new, strict=True):
        job_teachers.add(session, job.id, [row.id for row in inputs.several])
        dependencies.add(session, job, awaited)
        if federations.is_remote(one.completed.method):
            federations.open_for(session, job)
    session.flush()
    deliveries.record(session, occurred)
    return jobs


def _awaited(inputs: JobInputs) -> dict[str, str]:
    """Return the ids of the jobs whose students are waited for, by field."""
    models_by_field = {"teacher": inputs.teacher, "initial": inputs.initial}
    return {
        field: str(row.job_id)
        for field, row in models_by_field.items()
        if row is not None and dependencies.is_awaited(row)
    }


def _waits_for(inputs: JobInputs) -> list[str]:
    waiting = [
        f"{row.job_id} has made {dependencies.ROLES[pointer]}"
        if dependencies.is_awaited(row)
        else f"{pointer} is inspected"
        for pointer, row in inputs.all()
        if row.state == "pending"
    ]
    if inputs.trial is not None and inputs.trial.state == network_trials.PENDING:
        waiting.append(f"{inputs.trial.network} is tried out")
    return waiting


def _row_of(
    new: NewJob, *, project_id: str, inputs: JobInputs, waiting: list[str], at: datetime
) -> tables.JobRow:
    completed, place = new.completed, new.place
    awaited = _awaited(inputs)
    reason = Reason.WAITING_FOR_JOB if awaited else Reason.WAITING_FOR_INPUT
    spec = {"version": VERSION, **completed.model_dump(mode="json"), **_digests(inputs)}
    if awaited:
        spec["depends_on"] = awaited
    warnings: list[dict[str, str]] = []
    for fault in new.warnings:
        told = {"code": fault.code, "message": fault.detail}
        if told not in warnings:
            warnings.append(told)
    return tables.JobRow(
        id=ids.new("job"),
        project_id=project_id,
        name=completed.name,
        task=completed.task,
        method=completed.method["name"],
        queue=completed.resources.accelerator,
        devices=completed.resources.devices,
        priority=completed.priority,
        labels=completed.labels,
        spec=spec,
        teacher_version_id=inputs.teacher and inputs.teacher.id,
        initial_version_id=inputs.initial and inputs.initial.id,
        dataset_version_id=inputs.dataset and inputs.dataset.id,
        retry_of=new.retry_of,
        study_id=place and place.study_id,
        study_variant=place and place.variant,
        study_seed=place and place.seed,
        state=State.VALIDATING,
        state_reason=reason if waiting else None,
        state_message=f"Waiting until {' and '.join(waiting)}." if waiting else None,
        last_sequence=0,
        attempt=0,
        releases=0,
        max_attempts=completed.max_attempts,
        checkpoints_last=completed.checkpoints_last,
        max_runtime_seconds=completed.resources.max_runtime_seconds,
        queue_deadline_seconds=completed.resources.queue_deadline_seconds,
        warnings=warnings or None,
        traceparent=tracing.current(),
        not_before=at,
        claim_order_at=fair_share.claim_order_at(at, priority=completed.priority),
        created_at=at,
    )


def notice(session: Session, wanted: ResourcesSpec) -> str | None:
    """Return what the submitter of a job should know of its queue, if anything."""
    most = workers.most_devices(session, queue=wanted.accelerator)
    if most >= wanted.devices:
        return None
    if most == 0:
        return f"No worker that takes {wanted.accelerator!r} jobs is online; the job waits for one."
    return (
        f"The job needs {wanted.devices} devices, and no worker that is online offers more than "
        f"{most}; it waits for one. Lower resources.devices, or start a worker with more "
        "(RETORT_WORKER_DEVICES)."
    )


def _warn(session: Session, job: tables.JobRow, found: list[errors.Fault]) -> None:
    """Add what the submitter should know to a job and to its events, each thing once."""
    for fault in found:
        told = {"code": fault.code, "message": fault.detail}
        if told not in (job.warnings or []):
            job.warnings = [*(job.warnings or []), told]
            session.flush()
            transitions.add_event(session, job.id, "warning", told)


def _examine(session: Session, project_id: str, spec: JobSpec) -> Checked:
    """Check everything that can be known now; collect all faults before refusing."""
    inputs, unresolved = find_inputs(session, project_id=project_id, spec=spec)
    inputs = with_trial(session, spec.parts, inputs)
    key = None if unresolved else _key_of(spec, inputs)
    known = _known.get(key) if key is not None else None
    if known is None:
        known = _judge(spec, inputs, unresolved)
        if key is not None:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[key] = known
    return Checked(_completed(spec, inputs, known), inputs, known.warnings)


@dataclass(frozen=True)
class _Judgement:
    """What a spec without faults is completed with, and what its submitter should know.

    It follows from the spec's parts and from inputs that never change.
    """

    method: dict[str, Any]
    training: dict[str, Any]
    warnings: list[errors.Fault]


_MOST_KNOWN = 1_000
_known: dict[str, _Judgement] = {}


def _key_of(spec: JobSpec, inputs: JobInputs) -> str | None:
    """Return what a spec is judged by, or None while that can change: an input is not ready."""
    rows = [row for _, row in inputs.all()]
    if any(row.state != "ready" for row in rows):
        return None
    trial = inputs.trial
    if trial is not None and trial.state == network_trials.PENDING:
        return None
    parts = json.dumps(vars(spec.parts), default=lambda part: part.model_dump(mode="json"))
    return f"{parts} {[row.id for row in rows]} {trial and trial.digest}"


def _judge(spec: JobSpec, inputs: JobInputs, unresolved: list[errors.Fault]) -> _Judgement:
    """Return what a spec is completed with. Raises: errors.Refused with all faults."""
    completed, faults = complete(spec, inputs)
    faults += unresolved
    if faults:
        raise errors.Refused(summary(faults), code="invalid_spec", faults=faults)
    warnings = validation.warnings_of_inputs(validation.read(completed.parts), inputs)
    return _Judgement(completed.method, completed.training, warnings)


def find_inputs(
    session: Session, *, project_id: str, spec: Request
) -> tuple[JobInputs, list[errors.Fault]]:
    """Return what the references of a spec lead to, and what is wrong with those that do not."""
    faults: list[errors.Fault] = []
    inputs = JobInputs(
        teacher=_resolve(session, project_id, spec.teacher, models.resolve, "/teacher", faults),
        initial=_resolve(
            session, project_id, spec.student.initial, models.resolve, "/student/initial", faults
        ),
        dataset=_resolve(session, project_id, spec.dataset, datasets.resolve, "/dataset", faults),
        several=tuple(
            row
            for place, reference in enumerate(spec.teachers)
            if (
                row := _resolve(
                    session, project_id, reference, models.resolve, f"/teachers/{place}", faults
                )
            )
        ),
    )
    return inputs, faults


def with_trial(
    session: Session, parts: validation.SpecParts, inputs: JobInputs, *, ask: bool = False
) -> JobInputs:
    """Return the inputs with the trial of the student's network, if it needs one.

    `ask` has an inspector try the network, if nobody has before.
    """
    wanted = validation.wanted_trial(parts, inputs)
    if wanted is None:
        return inputs
    find = network_trials.ask if ask else network_trials.find
    return dataclasses.replace(inputs, trial=find(session, wanted))


def complete(spec: JobSpec, inputs: JobInputs) -> tuple[JobSpec, list[errors.Fault]]:
    """Return `spec` with defaults filled in and references pinned, and all that is wrong with it.

    With a fault, the spec is returned as it was.
    """
    document = validation.read(spec.parts)
    faults = [*document.faults, *validation.faults_of_inputs(document, inputs)]
    if faults:
        return spec, faults
    judgement = _Judgement(document.method.document, document.training.document, [])
    return _completed(spec, inputs, judgement), []


def _completed(spec: JobSpec, inputs: JobInputs, judgement: _Judgement) -> JobSpec:
    """Return a spec that was found right, with its defaults filled in and its references pinned."""
    pinned = _pinned(spec, inputs)
    initial = pinned.pop("initial", None)
    register_as = spec.student.register_as or student_name(spec.name)
    student = spec.student.model_copy(update={"register_as": register_as, "initial": initial})
    # Copies: a judgement serves other specs too.
    fields = copy.deepcopy({"method": judgement.method, "training": judgement.training})
    return spec.model_copy(update={**fields, "student": student, **pinned})


def _resolve(
    session: Session,
    project_id: str,
    reference: str | JobReference | None,
    resolve: Any,  # models.resolve or datasets.resolve: same call, different row
    pointer: str,
    faults: list[errors.Fault],
) -> Any:
    if reference is None:
        return None
    try:
        if isinstance(reference, JobReference):
            found: Any = dependencies.find(
                session, project_id=project_id, job_id=reference.job, pointer=pointer
            )
        else:
            found = resolve(session, project_id=project_id, reference=reference)
    except (errors.NotFound, errors.Refused, errors.Malformed) as error:
        faults.append(errors.Fault(pointer, error.code, error.message))
        return None
    if dependencies.is_awaited(found):
        return found
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


def _pinned(spec: Request, inputs: JobInputs) -> dict[str, Any]:
    """Return the references by number: what was resolved stays resolved."""
    pinned: dict[str, Any] = {}
    if inputs.teacher is not None:
        pinned["teacher"] = _by_number(spec.teacher, inputs.teacher)
    if inputs.several:
        pinned["teachers"] = [
            _by_number(reference, row)
            for reference, row in zip(spec.teachers, inputs.several, strict=True)
        ]
    if inputs.initial is not None:
        pinned["initial"] = _by_number(spec.student.initial, inputs.initial)
    if inputs.dataset is not None:
        pinned["dataset"] = _by_number(spec.dataset, inputs.dataset)
    return pinned


def _by_number(
    reference: str | JobReference | None, row: tables.ModelVersionRow | tables.DatasetVersionRow
) -> str | JobReference:
    """Return the reference that leads to a row whatever becomes the latest, or has the alias."""
    if dependencies.is_awaited(row):
        return JobReference(job=str(row.job_id))
    if isinstance(reference, str):
        return references.write(references.parse(reference).name, row.version)
    if isinstance(row, tables.DatasetVersionRow):
        return datasets.reference_of(row)
    return models.reference_of(row)


def _digests(inputs: JobInputs) -> dict[str, Any]:
    """Return the digests of the inputs, and what kinds of teachers they are."""
    rows = {
        "teacher_digest": inputs.teacher,
        "initial_digest": inputs.initial,
        "dataset_digest": inputs.dataset,
    }
    found: dict[str, Any] = {
        name: f"sha256:{row.sha256}" if row is not None and row.sha256 else None
        for name, row in rows.items()
    }
    found["teacher_kinds"] = [teachers.kind_of(row.network) for row in inputs.teachers]
    if inputs.several:
        found["teacher_digests"] = [
            f"sha256:{row.sha256}" if row.sha256 else None for row in inputs.several
        ]
    return found


def settle(session: Session, job: tables.JobRow) -> None:
    """Queue or fail a validating job, if its inputs have been inspected by now."""
    if job.state != State.VALIDATING:
        return
    awaited, deleted = _take_students(session, job)
    inputs = JobInputs(
        teacher=awaited.get("teacher")
        or _row(session, tables.ModelVersionRow, job.teacher_version_id),
        initial=awaited.get("initial")
        or _row(session, tables.ModelVersionRow, job.initial_version_id),
        dataset=_row(session, tables.DatasetVersionRow, job.dataset_version_id),
        several=()
        if job.teacher_version_id is not None
        else tuple(job_teachers.of_job(session, job)),
    )
    rejected = deleted + [
        f"{pointer.strip('/')} was rejected: {(row.rejection or {}).get('message', '')}"
        for pointer, row in inputs.all()
        if row.state == "rejected"
    ]
    parts = spec_of(job).parts
    inputs = with_trial(session, parts, inputs, ask=True)
    document = validation.read(parts)
    wrong = validation.faults_of_inputs(document, inputs)
    faults = rejected or [fault.detail for fault in wrong]
    if faults:
        failure = _failure("input_rejected", faults[0], attempt=0)
        transitions.move(
            session,
            job,
            Event.INVALID,
            because=Reason.INPUT_REJECTED,
            message=faults[0],
            values={"failure": failure},
        )
    elif inputs.trial is not None and inputs.trial.state == network_trials.PENDING:
        pass  # settled when it ends
    elif all(row.state == "ready" for _, row in inputs.all()):
        job.spec = {**job.spec, **_digests(inputs)}
        session.flush()
        _warn(session, job, validation.warnings_of_inputs(document, inputs))
        transitions.move(session, job, Event.VALID, message=notice(session, spec_of(job).resources))


def _take_students(
    session: Session, job: tables.JobRow
) -> tuple[dict[str, tables.ModelVersionRow], list[str]]:
    """Write into a job the students that jobs it waits for have made.

    Return descriptions of those still to come, by field, and what is wrong with the others.
    """
    awaited, wrong = {}, []
    for field, other in dependencies.of(session, job.id).items():
        if other.state != State.SUCCEEDED:
            awaited[field] = dependencies.described(session, other)
            continue
        if getattr(job, f"{field}_version_id") is not None:
            continue
        version = session.get_one(tables.ModelVersionRow, other.student_version_id)
        if version.deleted_at is not None:
            wrong.append(f"the student of {other.id} was deleted before it was used as {field}")
        setattr(job, f"{field}_version_id", version.id)
        reference = models.reference_of(version)
        place = {"student": {**job.spec["student"], "initial": reference}}
        job.spec = {**job.spec, **({"teacher": reference} if field == "teacher" else place)}
    session.flush()
    return awaited, wrong


def settle_dependents(session: Session, job: tables.JobRow) -> int:
    """Queue or fail the jobs that wait for one that has succeeded; return how many were looked at.

    At most `transitions.DEPENDENTS_AT_ONCE`: the others are left to the next sweep.
    """
    waiting = dependencies.waiting_for(job.id).limit(transitions.DEPENDENTS_AT_ONCE)
    found = session.scalars(waiting.with_for_update(key_share=True)).all()
    for dependent in found:
        settle(session, dependent)
    return len(found)


def settle_left_waiting(session: Session) -> int:
    """Queue or fail some jobs that wait for one that has ended; return how many were looked at."""
    waiting = dependencies.left_waiting().limit(transitions.DEPENDENTS_AT_ONCE)
    locked = waiting.with_for_update(key_share=True, skip_locked=True, of=tables.JobRow)
    found = session.scalars(locked).all()
    for job in found:
        failed = [
            other
            for other in dependencies.of(session, job.id).values()
            if other.state in (State.FAILED, State.CANCELLED)
        ]
        if failed:
            transitions.fail_dependents(session, failed[0])
        else:
            settle(session, job)
    return len(found)


def settle_tried(session: Session, trial: tables.NetworkTrialRow) -> None:
    """Queue or fail the validating jobs whose student's network was tried out."""
    row = tables.JobRow
    waiting = sa.select(row).where(
        row.state == State.VALIDATING,
        row.spec["student"]["network"].as_string() == trial.network,
    )
    for job in session.scalars(waiting.order_by(row.id).with_for_update(key_share=True)).all():
        settle(session, job)


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
