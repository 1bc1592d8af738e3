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
from models_registry.access import quotas
from models_registry.access.quotas import UNLIMITED, QuotaLimits
from models_registry.jobs import actions, lifecycle, queries, submission, validation
from models_registry.jobs.lifecycle import Reason, State
from models_registry.jobs.spec import VERSION, JobSpec
from models_registry.persistence import database, outbox, paging, tables, tombstones
from models_registry.studies import grids, leaderboard, open_sets, search_variants, variants
from models_registry.studies.leaderboard import Run, Variant
from models_registry.studies.search_spec import ACTIVE_PHASES, SearchPhase, SearchSpec
from models_registry.studies.spaces import Axis
from models_registry.studies.spec import StudySpec
from models_registry.studies.variants import VariantDraft
from workers.distill.config.descriptions import METRICS, PRIMARY_METRICS, Metric

SEARCH_TASK = "studies.advance"
SEARCH_QUEUE = "maintenance"
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
class SpacePlan:
    """A value that a search chooses."""

    axis: Axis
    method: str
    default: Any  # Any: JSON


@dataclass(frozen=True)
class StudyPlan:
    """The variants and jobs of a study, before anything is stored.

    A search has no variants yet: what it tries is chosen later.
    """

    spec: StudySpec  # references pinned
    inputs: validation.JobInputs
    variants: tuple[Variant, ...]
    specs: tuple[JobSpec, ...]  # of each variant, with the first seed
    warnings: tuple[list[errors.Fault], ...]  # of each variant
    spaces: tuple[SpacePlan, ...] = ()  # of a search
    told: tuple[errors.Fault, ...] = ()  # of the search itself

    @property
    def job_count(self) -> int:
        """Return how many jobs there will be, at most."""
        if self.spec.search is not None:
            return search_variants.job_count(self.spec.source, self.spec.search)
        return len(self.variants) * len(self.spec.seeds)

    @property
    def all_warnings(self) -> list[errors.Fault]:
        """Return what the submitter should know, each thing once."""
        every = [*self.told, *(told for warnings in self.warnings for told in warnings)]
        return list(dict.fromkeys(every))


@dataclass(frozen=True)
class StudyStatus:
    """Counts by state, progress and times of a study's jobs."""

    counts: Mapping[State, int]
    progress: float
    started_at: datetime | None
    finished_at: datetime | None  # None until all have ended
    pruned: int = 0
    """Of the jobs that are cancelled, how many fell behind in a search."""
    phase: SearchPhase | None = None
    """Of its search, if it has one."""

    @property
    def state(self) -> StudyState:
        """Return the state that follows from those of the jobs, and from the search's phase."""
        there = {
            state
            for state, count in self.counts.items()
            if state is not State.CANCELLED or count > self.pruned
        }
        if there <= {State.VALIDATING, State.QUEUED} and (
            self.phase is None or (self.phase in ACTIVE_PHASES and self.pruned == 0)
        ):
            return StudyState.QUEUED
        if self.phase in ACTIVE_PHASES:
            return StudyState.RUNNING
        if not there <= lifecycle.FINAL:
            return StudyState.RUNNING
        if State.CANCELLED in there or self.phase is SearchPhase.CANCELLED:
            return StudyState.CANCELLED
        if State.SUCCEEDED not in there or self.phase is SearchPhase.FAILED:
            return StudyState.FAILED
        return StudyState.INCOMPLETE if State.FAILED in there else StudyState.SUCCEEDED


# -- what a study consists of ------------------------------------------------------------------


def plan(session: Session, *, project_id: str, spec: StudySpec) -> StudyPlan:
    """Return the variants of a study with defaults filled in, storing nothing.

    Raises: errors.Refused with the faults, as pointers into the study's spec.
    """
    source = spec.source
    inputs, faults = submission.find_inputs(session, project_id=project_id, spec=spec)
    register_as = spec.student.register_as or submission.student_name(spec.name)
    student = spec.student.model_copy(update={"register_as": register_as})
    spec = spec.model_copy(update={"student": student})
    if spec.search is not None:
        return _plan_search(session, spec, inputs, faults)
    if variants.faults_of_expansion(source):
        _refuse([*variants.faults(source, spec.parts), *faults])

    drafts = list(variants.expand(source))
    specs: list[JobSpec] = []
    for draft in drafts:
        job = job_of(spec, draft.method.document, draft.training.document)
        tried = submission.with_trial(session, job.parts, inputs)
        completed, wrong = submission.complete(job, tried)
        faults += (variants.relocated(fault, source, draft) for fault in wrong)
        specs.append(completed)
    _refuse(faults)
    _refuse(list(_faults_of_doubles(drafts, specs)))
    return StudyPlan(
        spec=_pinned(spec, specs[0]),
        inputs=inputs,
        variants=tuple(_variants(spec, drafts, specs)),
        specs=tuple(specs),
        warnings=_warnings(specs, inputs),
    )


def _warnings(
    specs: Sequence[JobSpec], inputs: validation.JobInputs
) -> tuple[list[errors.Fault], ...]:
    """Return what the submitter should know of each variant, alone and beside the others."""
    beside = open_sets.warnings([one.method for one in specs])
    return tuple(
        [*validation.warnings_of_inputs(validation.read(one.parts), inputs), *told]
        for one, told in zip(specs, beside, strict=True)
    )


def _plan_search(
    session: Session,
    spec: StudySpec,
    inputs: validation.JobInputs,
    faults: list[errors.Fault],
) -> StudyPlan:
    """Return what a search chooses from; all of its corners were found right."""
    source = spec.source
    found = [*faults, *spec.faults()]
    _refuse(found)
    every: list[JobSpec] = []
    for draft in search_variants.drafts(source):
        job = job_of(spec, draft.method, draft.training)
        tried = submission.with_trial(session, job.parts, inputs)
        completed, wrong = submission.complete(job, tried)
        found += (search_variants.relocated(fault, draft) for fault in wrong)
        every.append(completed)
    _refuse(found)
    defaults = {
        place: submission.complete(job_of(spec, draft.method, draft.training), inputs)[0]
        for place in source.methods
        for draft in [search_variants.default_of(source, place)]
    }
    return StudyPlan(
        spec=_pinned(spec, every[0]),
        inputs=inputs,
        variants=(),
        specs=(),
        warnings=_warnings(every, inputs),
        spaces=tuple(_spaces(source, defaults)),
        told=tuple(_told_of_search(spec)),
    )


def _spaces(source: variants.VariantSource, defaults: Mapping[int, JobSpec]) -> Iterator[SpacePlan]:
    for place, default in defaults.items():
        for axis in search_variants.axes(source, place):
            if axis.pointer.startswith("/training/"):
                if place == 0:  # it is the same beside each method
                    yield SpacePlan(axis, "", value_at(axis.path, default.training))
            else:
                yield SpacePlan(
                    axis, method_name(default.method), value_at(axis.path, default.method)
                )


def _told_of_search(spec: StudySpec) -> Iterator[errors.Fault]:
    search = spec.search
    if search is None:
        return
    if 0 < search.confirm_seeds < leaderboard.PAIRS_FOR_A_VERDICT:
        detail = (
            f"with confirm_seeds {search.confirm_seeds} there is no verdict whether the best trial "
            f"is better than the default settings; that takes {leaderboard.PAIRS_FOR_A_VERDICT}"
        )
        yield errors.Fault("/search/confirm_seeds", "no_verdict", detail)
    elif search.confirm_seeds == 0:
        detail = (
            "with confirm_seeds 0 the best trial is not compared with the default settings: the "
            "best of many trials looks better than it is"
        )
        yield errors.Fault("/search/confirm_seeds", "not_confirmed", detail)
    for place, method in enumerate(spec.methods):
        if validation.is_data_free(method):
            detail = (
                f"{method['name']} trains without images, but the search chooses its values by the "
                "validation split of a real data set"
            )
            yield errors.Fault(f"/methods/{place}", "search_reads_validation", detail)


def _in_json(told: Iterable[errors.Fault]) -> list[dict[str, str]]:
    return [{"code": one.code, "message": one.detail} for one in told]


def _pinned(spec: StudySpec, job: JobSpec) -> StudySpec:
    """Return the study's spec with its references as those of one of its jobs."""
    student = spec.student.model_copy(update={"initial": job.student.initial})
    pinned = {
        "teacher": job.teacher,
        "teachers": job.teachers,
        "dataset": job.dataset,
        "student": student,
    }
    return spec.model_copy(update=pinned)


def _refuse(faults: Sequence[errors.Fault]) -> None:
    if faults:
        distinct = list(dict.fromkeys(faults))  # variants share most of their faults
        code = "too_many_jobs" if distinct[0].code == "too_many_jobs" else "invalid_spec"
        raise errors.Refused(submission.summary(distinct), code=code, faults=distinct[:MAX_FAULTS])


def job_of(spec: StudySpec, method: dict[str, Any], training: dict[str, Any]) -> JobSpec:
    """Return the spec of one of a study's jobs, with its first seed and without defaults."""
    shared = {name: getattr(spec, name) for name in type(spec).model_fields}
    for name in ("methods", "seeds", "baseline", "search"):
        del shared[name]
    # Every part was checked as a part of the study.
    return JobSpec.model_construct(
        **{
            **shared,
            "method": method,
            "training": {**training, "seed": spec.seeds[0]},
            "baseline": False,
        }
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
    label = " ".join([method_name(variant.method), *settings])
    called = {"default": " (default settings)", "best": " (best trial)", None: ""}
    return label + called[variant.role]


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
                    _dotted(at): value_at(at, done.method, draft.method.document)
                    for at in differing[method_name(done.method)]
                },
                **_settings_of_training(spec, draft),
            },
            is_baseline=number == against,
            compared_with=None if number == against else against,
        )


def _settings_of_training(spec: StudySpec, draft: VariantDraft) -> dict[str, Any]:
    return {
        f"training.{_dotted(at)}": value_at(at, draft.training.document)
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
            value = value_at(at, spec.method, draft.method.document)
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


def value_at(at: grids.Path, *documents: Any) -> Any:  # Any: JSON
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
        search_phase=None if spec.search is None else SearchPhase.TRIALS,
        search=None if spec.search is None else {"warnings": _in_json(planned.told)},
        created_at=database.now(session),
    )
    session.add(study)
    session.flush()
    if spec.search is not None:
        quotas.check_jobs(session, project_id=project_id, new=1, service=limits)
        # Trials are chosen by a process that has the library for it; the sweep is another way.
        payload = {"study_id": study.id}
        outbox.add(session, task=SEARCH_TASK, queue=SEARCH_QUEUE, payload=payload)
        return study
    submission.store(
        session,
        list(_jobs_of(planned, study.id)),
        project_id=project_id,
        inputs=inputs,
        notice=submission.notice(session, spec.resources),
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
        searching = sa.func.coalesce(row.search_phase.in_(ACTIVE_PHASES), False)
        is_active = sa.or_(unfinished, searching)
        statement = statement.where(is_active if filters.is_active else ~is_active)
    statement = queries.restrict(session, statement, row, filters)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def statuses(session: Session, rows: Iterable[tables.StudyRow]) -> dict[str, StudyStatus]:
    """Return the status of each of these studies, in one query."""
    row = tables.JobRow
    wanted = {study.id: study for study in rows}
    found = session.execute(
        sa.select(
            row.study_id,
            row.state,
            sa.func.count(),
            sa.func.sum(row.progress),
            sa.func.min(row.started_at),
            sa.func.max(row.finished_at),
            sa.func.sum(sa.case((row.state_reason == Reason.PRUNED, 1), else_=0)),
        )
        .where(row.study_id.in_(list(wanted)))
        .group_by(row.study_id, row.state)
    )
    groups: dict[str, list[Any]] = {study_id: [] for study_id in wanted}  # Any: rows of this query
    for study_id, *group in found:
        groups[str(study_id)].append(group)
    return {study_id: _status(wanted[study_id], group) for study_id, group in groups.items()}


def _status(study: tables.StudyRow, groups: list[Any]) -> StudyStatus:
    counts: dict[State, int] = {}
    # A job that failed will not go on: for the study, it is done.
    progress, pruned = 0.0, 0
    for state, count, total, _, _, of_search in groups:
        counts[State(state)] = count
        progress += count if lifecycle.is_final(State(state)) else total
        pruned += of_search if state == State.CANCELLED else 0
    starts = [start for _, _, _, start, _, _ in groups if start is not None]
    ends = [end for _, _, _, _, end, _ in groups if end is not None]
    phase = None if study.search_phase is None else SearchPhase(study.search_phase)
    is_over = counts.keys() <= lifecycle.FINAL and phase not in ACTIVE_PHASES
    expected = sum(counts.values())
    if phase in ACTIVE_PHASES:
        known = {key: study.spec[key] for key in StudySpec.model_fields if key in study.spec}
        spec = StudySpec.model_construct(**known)
        search = SearchSpec.model_validate(study.spec["search"])
        expected = max(expected, search_variants.job_count(spec.source, search))
    return StudyStatus(
        counts=counts,
        progress=progress / expected if expected else 1.0,
        started_at=min(starts, default=None),
        finished_at=max(ends, default=None) if is_over else None,
        pruned=pruned,
        phase=phase,
    )


def cancel(session: Session, *, project_id: str, study_id: str) -> tables.StudyRow:
    """Cancel all jobs that have not ended; a search makes no more."""
    study = get(session, project_id=project_id, study_id=study_id)
    session.refresh(study, with_for_update=True)
    if study.search_phase in ACTIVE_PHASES:
        study.search_phase = SearchPhase.CANCELLED
        session.flush()
    row = tables.JobRow
    unfinished = sa.select(row.id).where(
        row.study_id == study.id, row.state.not_in(lifecycle.FINAL)
    )
    for job_id in session.scalars(unfinished.order_by(row.id)).all():
        message = f"Study {study.id}, which the job belongs to, was cancelled."
        actions.cancel(session, project_id=project_id, job_id=job_id, message=message)
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
    state = statuses(session, [study])[study.id].state
    is_searching = study.search_phase in ACTIVE_PHASES
    if is_searching or not all(lifecycle.is_final(State(job.state)) for job in members):
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
    compared = variants_of(study)
    # Trials of a search are no variants: they are compared on the validation split.
    numbers = {variant.number for variant in compared}
    runs = [
        run_of(variant, seed, job_id, State(state), result)
        for variant, seed, job_id, state, result in rows
        if variant in numbers and variant is not None and seed is not None
    ]
    # Studies that were stored before there was a second task name none.
    metric = PRIMARY_METRICS[study.spec.get("task", "classification")]
    return leaderboard.make(compared, runs, metric=metric)


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
