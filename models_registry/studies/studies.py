"""Submit, read and end studies: jobs that differ in method, hyper-parameters and seed.

All jobs of a study are made in one transaction, or none. A study has no state of its own: it
follows from those of its jobs. How a study's results are compared is in `leaderboard.py`.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import catalog, errors, ids
from models_registry.access.quotas import UNLIMITED, QuotaLimits
from models_registry.jobs import actions, lifecycle, queries, submission, validation
from models_registry.jobs.lifecycle import State
from models_registry.jobs.spec import VERSION, JobSpec
from models_registry.persistence import database, paging, tables, tombstones
from models_registry.studies import grids, leaderboard, variants
from models_registry.studies.leaderboard import Run, Variant
from models_registry.studies.spec import StudySpec
from models_registry.studies.variants import VariantDraft
from workers.distill.config.descriptions import METRICS, PRIMARY_METRICS, Metric

MAX_FAULTS = 100
_JOB_NAME_CHARACTERS = 200


class StudyState(StrEnum):
    """The state of a study, which follows from those of its jobs."""

    QUEUED = "queued"  # no job has started
    RUNNING = "running"  # jobs have started, and not all have ended
    SUCCEEDED = "succeeded"  # every job
    INCOMPLETE = "incomplete"  # some jobs succeeded, others failed
    FAILED = "failed"  # no job succeeded
    CANCELLED = "cancelled"  # all jobs have ended, some because they were cancelled


@dataclass(frozen=True, kw_only=True)
class StudyFilters(queries.ListFilters):
    """Filters of a list of studies; an empty field does not restrict."""

    is_active: bool | None = None


@dataclass(frozen=True)
class StudyPlan:
    """The variants and jobs of a study, before anything is stored."""

    spec: StudySpec  # references pinned
    inputs: validation.JobInputs
    variants: tuple[Variant, ...]
    specs: tuple[JobSpec, ...]  # of each variant, with the first seed
    warnings: tuple[list[errors.Fault], ...]  # of each variant

    @property
    def job_count(self) -> int:
        """Return how many jobs there will be."""
        return len(self.variants) * len(self.spec.seeds)


@dataclass(frozen=True)
class StudyStatus:
    """Counts by state, progress and times of a study's jobs."""

    counts: Mapping[State, int]
    progress: float
    started_at: datetime | None
    finished_at: datetime | None  # None until all have ended

    @property
    def state(self) -> StudyState:
        """Return the state that follows from those of the jobs."""
        there = self.counts.keys()
        if there <= {State.VALIDATING, State.QUEUED}:
            return StudyState.QUEUED
        if not there <= lifecycle.FINAL:
            return StudyState.RUNNING
        if State.CANCELLED in there:
            return StudyState.CANCELLED
        if State.SUCCEEDED not in there:
            return StudyState.FAILED
        return StudyState.INCOMPLETE if State.FAILED in there else StudyState.SUCCEEDED


# -- what a study consists of ------------------------------------------------------------------


def plan(session: Session, *, project_id: str, spec: StudySpec) -> StudyPlan:
    """Return the variants of a study with defaults filled in, storing nothing.

    Raises: errors.Refused with the faults, as pointers into the study's spec.
    """
    source = spec.source
    inputs, faults = submission.find_inputs(session, project_id=project_id, spec=spec)
    if variants.faults_of_expansion(source):
        _refuse([*variants.faults(source, spec.parts), *faults])
    register_as = spec.student.register_as or submission.student_name(spec.name)
    student = spec.student.model_copy(update={"register_as": register_as})
    spec = spec.model_copy(update={"student": student})

    drafts = list(variants.expand(source))
    specs: list[JobSpec] = []
    for draft in drafts:
        job = _job(spec, draft)
        tried = submission.with_trial(session, job.parts, inputs)
        completed, wrong = submission.complete(job, tried)
        faults += (variants.relocated(fault, source, draft) for fault in wrong)
        specs.append(completed)
    _refuse(faults)
    _refuse(list(_faults_of_doubles(drafts, specs)))
    first = specs[0]
    student = student.model_copy(update={"initial": first.student.initial})
    pinned = {"teacher": first.teacher, "dataset": first.dataset, "student": student}
    return StudyPlan(
        spec=spec.model_copy(update=pinned),
        inputs=inputs,
        variants=tuple(_variants(spec, drafts, specs)),
        specs=tuple(specs),
        warnings=tuple(
            validation.warnings_of_inputs(validation.read(one.parts), inputs) for one in specs
        ),
    )


def _refuse(faults: Sequence[errors.Fault]) -> None:
    if faults:
        distinct = list(dict.fromkeys(faults))  # variants share most of their faults
        code = "too_many_jobs" if distinct[0].code == "too_many_jobs" else "invalid_spec"
        raise errors.Refused(submission.summary(distinct), code=code, faults=distinct[:MAX_FAULTS])


def _job(spec: StudySpec, draft: VariantDraft) -> JobSpec:
    shared = {name: getattr(spec, name) for name in type(spec).model_fields}
    for name in ("methods", "seeds", "baseline"):
        del shared[name]
    training = {**draft.training.document, "seed": spec.seeds[0]}
    # Every part was checked as a part of the study.
    return JobSpec.model_construct(
        **{**shared, "method": draft.method.document, "training": training, "baseline": False}
    )


def _faults_of_doubles(
    drafts: Sequence[VariantDraft], specs: Sequence[JobSpec]
) -> Iterator[errors.Fault]:
    seen: dict[str, VariantDraft] = {}
    for draft, spec in zip(drafts, specs, strict=True):
        twin = seen.setdefault(variants.key_of([spec.method, spec.training]), draft)
        if twin is not draft:
            where = draft.pointer if draft.pointer != twin.pointer else "/training"
            detail = (
                f"{method_name(spec.method)} appears twice: with defaults filled in, a variant of "
                f"{draft.pointer} is the same as one of {twin.pointer}"
            )
            yield errors.Fault(where, "duplicate_variant", detail)


# -- how variants differ -----------------------------------------------------------------


def method_name(method: dict[str, Any]) -> str:
    """Return the name of a method, or of the methods that are combined: `crd+kd`."""
    return "+".join(part["name"] for part in validation.parts(method))


def label_of(variant: Variant) -> str:
    """Return a variant in words: `kd temperature=4`."""
    settings = (f"{key}={_shown(value)}" for key, value in variant.settings.items())
    return " ".join([method_name(variant.method), *settings])


def _shown(value: Any) -> str:  # Any: JSON
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _variants(
    spec: StudySpec, drafts: Sequence[VariantDraft], specs: Sequence[JobSpec]
) -> Iterator[Variant]:
    differing = _differing(drafts, specs)
    trainings = [
        variants.key_of(variants.without_teacher(draft.training.document)) for draft in drafts
    ]
    numbers = {
        (training, variants.key_of(done.method)): number
        for number, (training, done) in enumerate(zip(trainings, specs, strict=True), 1)
    }
    for number, (draft, done) in enumerate(zip(drafts, specs, strict=True), 1):
        against = None
        if spec.baseline:
            baseline = catalog.complete_method(catalog.baseline_of(done.method))
            against = numbers.get((trainings[number - 1], variants.key_of(baseline)))
        yield Variant(
            number=number,
            method=done.method,
            settings={
                **{
                    _dotted(at): _value(at, done.method, draft.method.document)
                    for at in differing[method_name(done.method)]
                },
                **_settings_of_training(spec, draft),
            },
            is_baseline=number == against,
            compared_with=None if number == against else against,
        )


def _settings_of_training(spec: StudySpec, draft: VariantDraft) -> dict[str, Any]:
    return {
        f"training.{_dotted(at)}": _value(at, draft.training.document)
        for at, values in grids.find(spec.training)
        if len(values) > 1
    }


def _differing(
    drafts: Sequence[VariantDraft], specs: Sequence[JobSpec]
) -> dict[str, tuple[grids.Path, ...]]:
    """Return for each method the hyper-parameters that its variants differ in.

    Only what some variant states is looked at: what follows from it is not named again.
    """
    stated: dict[str, dict[grids.Path, set[str]]] = {}
    for draft, spec in zip(drafts, specs, strict=True):
        paths = stated.setdefault(method_name(spec.method), {})
        paths.update({at: set() for at in _leaves(draft.method.document) if at not in paths})
    for draft, spec in zip(drafts, specs, strict=True):
        for at, values in stated[method_name(spec.method)].items():
            value = _value(at, spec.method, draft.method.document)
            values.add(variants.key_of(value))
    return {
        name: tuple(at for at, values in paths.items() if len(values) > 1)
        for name, paths in stated.items()
    }


def _leaves(node: Any, at: grids.Path = ()) -> Iterator[grids.Path]:  # Any: JSON
    """Yield where the values of a method are; names are none, and a list of numbers is one."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "name":
                yield from _leaves(value, (*at, key))
    elif isinstance(node, list) and any(isinstance(entry, dict) for entry in node):
        for place, value in enumerate(node):
            yield from _leaves(value, (*at, place))
    else:
        yield at


def _value(at: grids.Path, *documents: Any) -> Any:  # Any: JSON
    """Return what stands at a path in the first document that has it."""
    for document in documents:
        try:
            return functools.reduce(lambda node, step: node[step], at, document)
        except (KeyError, IndexError, TypeError):
            continue
    return None


def _dotted(at: grids.Path) -> str:
    return ".".join(map(str, at))


# -- what a user does --------------------------------------------------------------------------


def submit(
    session: Session,
    *,
    project_id: str,
    spec: StudySpec,
    planned: StudyPlan | None = None,
    limits: QuotaLimits = UNLIMITED,
) -> tables.StudyRow:
    """Store a study with all its jobs, which are queued seed by seed.

    `planned` is its plan, where it was made before the transaction: hundreds of specs take seconds
    to complete, in which SQLite's other writers would wait. Its inputs are looked up again.
    `limits` are those of the service.

    Raises: errors.Refused with the fields at fault, errors.QuotaExceeded; nothing is stored then.
    """
    if planned is None:
        planned = plan(session, project_id=project_id, spec=spec)
    inputs, faults = submission.find_inputs(session, project_id=project_id, spec=planned.spec)
    _refuse(faults)
    study = tables.StudyRow(
        id=ids.new("stu"),
        project_id=project_id,
        name=spec.name,
        labels=spec.labels,
        spec={"version": VERSION, **planned.spec.model_dump(mode="json")},
        variants=[vars(variant) for variant in planned.variants],
        created_at=database.now(session),
    )
    session.add(study)
    session.flush()
    submission.store(
        session,
        list(_jobs_of(planned, study.id)),
        project_id=project_id,
        inputs=inputs,
        notice=submission.notice(session, queue=spec.resources.accelerator),
        limits=limits,
    )
    return study


def _jobs_of(planned: StudyPlan, study_id: str) -> Iterator[submission.NewJob]:
    every = list(zip(planned.variants, planned.specs, planned.warnings, strict=True))
    for seed in planned.spec.seeds:  # so that what has ended can soon be compared
        for variant, completed, warnings in every:
            name = f"{planned.spec.name}: {label_of(variant)}, seed {seed}"
            training = {**completed.training, "seed": seed}
            named = {"name": name[:_JOB_NAME_CHARACTERS], "training": training}
            place = submission.StudyPlace(study_id, variant.number, seed)
            yield submission.NewJob(completed.model_copy(update=named), warnings, place=place)


def get(session: Session, *, project_id: str, study_id: str) -> tables.StudyRow:
    """Return a study of the project.

    Raises: errors.NotFound, also for another project's study; errors.Gone for a deleted one.
    """
    study = session.get(tables.StudyRow, study_id)
    is_forgotten = study is not None and tombstones.is_forgotten(session, study.deleted_at)
    if study is None or study.project_id != project_id or is_forgotten:
        raise errors.NotFound(f"There is no study {study_id!r}.")
    if study.deleted_at is not None:
        raise errors.Gone(f"Study {study_id!r} was deleted.")
    return study


def page(
    session: Session, *, project_id: str, filters: StudyFilters, wanted: paging.PageRequest
) -> paging.Page[tables.StudyRow]:
    """Return a page of the project's studies, newest first; deleted ones are left out."""
    row, job = tables.StudyRow, tables.JobRow
    statement = sa.select(row).where(row.project_id == project_id, row.deleted_at.is_(None))
    if filters.is_active is not None:
        unfinished = sa.exists().where(job.study_id == row.id, job.state.not_in(lifecycle.FINAL))
        statement = statement.where(unfinished if filters.is_active else ~unfinished)
    statement = queries.restrict(session, statement, row, filters)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def statuses(session: Session, *, study_ids: Iterable[str]) -> dict[str, StudyStatus]:
    """Return the status of each of these studies, in one query."""
    row = tables.JobRow
    rows = session.execute(
        sa.select(
            row.study_id,
            row.state,
            sa.func.count(),
            sa.func.sum(row.progress),
            sa.func.min(row.started_at),
            sa.func.max(row.finished_at),
        )
        .where(row.study_id.in_(list(study_ids)))
        .group_by(row.study_id, row.state)
    )
    groups: dict[str, list[Any]] = {}  # Any: rows of this query
    for study_id, *group in rows:
        groups.setdefault(str(study_id), []).append(group)
    return {study_id: _status(group) for study_id, group in groups.items()}


def _status(groups: list[Any]) -> StudyStatus:
    counts: dict[State, int] = {}
    # A job that failed will not go on: for the study, it is done.
    progress = 0.0
    for state, count, total, _, _ in groups:
        counts[State(state)] = count
        progress += count if lifecycle.is_final(State(state)) else total
    starts = [start for *_, start, _ in groups if start is not None]
    ends = [end for *_, end in groups if end is not None]
    return StudyStatus(
        counts=counts,
        progress=progress / sum(counts.values()),
        started_at=min(starts, default=None),
        finished_at=max(ends, default=None) if counts.keys() <= lifecycle.FINAL else None,
    )


def cancel(session: Session, *, project_id: str, study_id: str) -> tables.StudyRow:
    """Cancel all jobs that have not ended."""
    study = get(session, project_id=project_id, study_id=study_id)
    row = tables.JobRow
    unfinished = sa.select(row.id).where(
        row.study_id == study.id, row.state.not_in(lifecycle.FINAL)
    )
    for job_id in session.scalars(unfinished.order_by(row.id)).all():
        actions.cancel(session, project_id=project_id, job_id=job_id)
    return study


def delete(session: Session, *, project_id: str, study_id: str) -> None:
    """Delete a study and its jobs; their students stay.

    Raises: errors.IllegalMove while a job has not ended.
    """
    study = get(session, project_id=project_id, study_id=study_id)
    # Before the jobs: a retry, which would add one, waits here.
    session.refresh(study, with_for_update=True)
    row = tables.JobRow
    members = session.scalars(sa.select(row).where(row.study_id == study.id).order_by(row.id)).all()
    state = statuses(session, study_ids=[study.id])[study.id].state
    if not all(lifecycle.is_final(State(job.state)) for job in members):
        raise errors.IllegalMove(
            f"A study that is {state} cannot be deleted; cancel it, and delete it once all of its "
            "jobs have ended.",
            state=state,
            allowed=("cancel",),
        )
    study.deleted_at = database.now(session)
    for job in members:
        actions.hide(session, job)
    session.flush()


def variants_of(study: tables.StudyRow) -> list[Variant]:
    """Return the variants of a stored study."""
    return [Variant(**variant) for variant in study.variants]


def compare(session: Session, study: tables.StudyRow) -> leaderboard.Leaderboard:
    """Return the leaderboard of a study, from the results so far."""
    row = tables.JobRow
    rows = session.execute(
        sa.select(row.study_variant, row.study_seed, row.id, row.state, row.result).where(
            row.study_id == study.id
        )
    )
    runs = [
        run_of(variant, seed, job_id, State(state), result)
        for variant, seed, job_id, state, result in rows
        if variant is not None and seed is not None
    ]
    # Studies that were stored before there was a second task name none.
    metric = PRIMARY_METRICS[study.spec.get("task", "classification")]
    return leaderboard.make(variants_of(study), runs, metric=metric)


def run_of(
    variant: int, seed: int, job_id: str, state: State, result: dict[str, Any] | None
) -> Run:
    """Return a job as a run, from its result as the engine wrote it."""
    result = result or {}
    scores = result.get("scores") or {}
    student, teacher = scores.get("student") or {}, scores.get("teacher") or {}
    parameters = (result.get("parameters") or {}).get("student")
    shared_with = result.get("shared_with")
    return Run(
        variant=variant,
        seed=seed,
        job_id=job_id,
        state=state,
        student=result.get("student"),
        scores=_scores(student),
        agreement=_number(student.get("agreement")),
        ece=_number(student.get("ece")),
        wall_seconds=_number(result.get("wall_seconds")),
        images_per_second=_number(result.get("images_per_second")),
        shared_with=shared_with if isinstance(shared_with, int) else None,
        parameters=parameters if isinstance(parameters, int) else None,
        teacher_scores=_scores(teacher),
    )


def _scores(measured: Mapping[str, Any]) -> dict[Metric, float]:
    values = {name: _number(measured.get(name)) for name in METRICS}
    return {name: value for name, value in values.items() if value is not None}


def _number(value: object) -> float | None:
    """Return a finite number; what was not measured, or came as `"NaN"`, is None."""
    return float(value) if isinstance(value, int | float) else None
