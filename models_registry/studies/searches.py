"""What a study with a search does next: judge its trials, make new ones, confirm the best.

`advance` is the one door. It holds the study's row, and does in the caller's transaction all that
the results so far allow, so that it may be called at any time, by several processes at once, and
again after a crash: nothing happens twice, and what was not committed did not happen. Which values
a new trial has is chosen outside of the transaction by whoever calls (`Question`, `Suggestions`).

A trial is judged by its values alone, never by when it is looked at: one that fell behind at a rung
is pruned although its jobs may have ended meanwhile.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.access.quotas import UNLIMITED, QuotaLimits
from models_registry.jobs import lifecycle, submission, transitions, validation
from models_registry.jobs.lifecycle import Event, Reason, State
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, paging, tables
from models_registry.studies import halving, leaderboard, search_variants, studies, variants
from models_registry.studies.leaderboard import Variant
from models_registry.studies.search_spec import (
    ACTIVE_PHASES,
    SearchPhase,
    SearchSpec,
    TrialState,
    fresh_seeds,
)
from models_registry.studies.search_variants import SearchDraft
from models_registry.studies.spaces import Axis
from models_registry.studies.spec import StudySpec
from workers.distill.config.descriptions import LOWER_IS_BETTER

log = structlog.get_logger()

_NAME_CHARACTERS = 200
_MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True)
class PastTrial:
    """What a sampler is told of a trial."""

    number: int
    state: TrialState
    place: int
    choices: Mapping[str, Any]
    value: float | None
    at_rungs: Mapping[int, float]


@dataclass(frozen=True)
class Question:
    """How many trials are wanted, and what there is to choose their values by."""

    study_id: str
    revision: str
    """Of the trials: an answer holds only while it is the same."""
    search: SearchSpec
    lower_is_better: bool
    axes: Mapping[int, Sequence[Axis]]
    """The spaces, by the place of the method in the study."""
    past: Sequence[PastTrial]
    count: int


@dataclass(frozen=True)
class Proposal:
    """One choice of values: of floats and whole numbers themselves, of others their place."""

    place: int
    choices: Mapping[str, Any]


@dataclass(frozen=True)
class Suggestions:
    """What a sampler proposes to a question."""

    revision: str
    proposals: Sequence[Proposal]


@dataclass(frozen=True)
class _TrialJob:
    """A job of the study: no more of its row than is needed."""

    job_id: str
    variant: int
    seed: int
    state: State
    message: str | None
    epochs: int

    @property
    def is_over(self) -> bool:
        return lifecycle.is_final(self.state)


def active(session: Session) -> Sequence[str]:
    """Return the ids of the studies whose search is not over, oldest first."""
    row = tables.StudyRow
    query = sa.select(row.id).where(row.search_phase.in_(ACTIVE_PHASES), row.deleted_at.is_(None))
    return session.scalars(query.order_by(row.id)).all()


def active_of_job(session: Session, job_id: str) -> str | None:
    """Return the study of a job if its search is not over, else None."""
    row, job = tables.StudyRow, tables.JobRow
    query = sa.select(row.id).join(job, job.study_id == row.id)
    return session.scalars(
        query.where(job.id == job_id, row.search_phase.in_(ACTIVE_PHASES))
    ).one_or_none()


def advance(
    session: Session,
    study_id: str,
    answer: Suggestions | None = None,
    *,
    limits: QuotaLimits = UNLIMITED,
) -> Question | None:
    """Do what the results so far allow; return a question if new trials are wanted.

    Nothing is done, and None returned, while another transaction holds the study, and once its
    search is over. An answer to an older question is left aside, and asked for again.
    """
    row = tables.StudyRow
    free = sa.select(row).where(
        row.id == study_id, row.search_phase.in_(ACTIVE_PHASES), row.deleted_at.is_(None)
    )
    study = session.scalars(
        free.with_for_update(skip_locked=True).execution_options(populate_existing=True)
    ).one_or_none()
    if study is None:
        return None
    search = _Search(session, study, limits)
    if study.search_phase == SearchPhase.CONFIRMING:
        search.end_confirmation()
        question = None
    else:
        search.judge()
        if answer is not None and answer.revision == search.revision:
            search.start(answer.proposals)
        question = search.question()
        if question is None:
            search.decide()
    search.summarise()
    session.flush()
    return question


def tell(session: Session, study_id: str, message: str) -> None:
    """Say in a study why its search does not go on for now; its next advance takes it back."""
    study = session.get_one(tables.StudyRow, study_id, populate_existing=True, with_for_update=True)
    if study.search_phase in ACTIVE_PHASES:
        study.search = {**(study.search or {}), "message": message[:_MESSAGE_CHARACTERS]}


class _Search:
    """A study whose row this transaction holds, with its trials and jobs."""

    def __init__(self, session: Session, study: tables.StudyRow, limits: QuotaLimits) -> None:
        self._session = session
        self._limits = limits
        self._study = study
        known = {key: study.spec[key] for key in StudySpec.model_fields if key in study.spec}
        self._spec = StudySpec.model_validate(known)
        if self._spec.search is None:
            raise errors.Conflict(f"study {study.id} has no search, but a phase of one")
        self._search = self._spec.search
        self._source = self._spec.source
        self._objective = search_variants.objective_of(self._search, self._spec.task)
        self._lower_is_better = self._objective in LOWER_IS_BETTER
        trial = tables.TrialRow
        self._trials = list(
            session.scalars(
                sa.select(trial)
                .where(trial.study_id == study.id)
                .order_by(trial.number)
                .execution_options(populate_existing=True)
            )
        )
        self._members = _members(session, study.id)

    @property
    def revision(self) -> str:
        """Return a text that changes with what a sampler is told."""
        return json.dumps(
            [[t.number, t.state, t.value, t.rungs] for t in self._trials], sort_keys=True
        )

    # -- trials ------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Compare trials at their rungs, and end those whose jobs have ended."""
        open_trials = [trial for trial in self._trials if self._is_open(trial)]
        job_ids = [m.job_id for trial in open_trials for m in self._members.get(trial.number, ())]
        curves = _curves(self._session, job_ids, key=f"validation/{self._objective}")
        for trial in open_trials:
            members = self._members[trial.number]
            own = [curves.get(member.job_id, []) for member in members]
            if not self._falls_behind(trial, members, own):
                self._end_if_over(trial, members, own)

    def _is_open(self, trial: tables.TrialRow) -> bool:
        """Whether a trial may still change; one whose failed job is retried goes on."""
        if trial.state == TrialState.RUNNING:
            return True
        members = self._members.get(trial.number, ())
        return trial.state == TrialState.FAILED and (
            any(not member.is_over for member in members)
            or (bool(members) and all(m.state is State.SUCCEEDED for m in members))
        )

    def _falls_behind(
        self,
        trial: tables.TrialRow,
        members: Sequence[_TrialJob],
        curves: Sequence[Sequence[tuple[int, float]]],
    ) -> bool:
        """Compare a trial at each rung that it has come to; prune it if it is not kept."""
        pruning = self._search.pruning
        if pruning is None:
            return False
        known = {rung["rung"] for rung in trial.rungs}
        for rung in halving.rungs(pruning, min(member.epochs for member in members)):
            if rung in known:
                continue
            reached = [self._value(trial, curve, epoch=rung) for curve in curves]
            values = [one[1] for one in reached if one is not None]
            if len(values) < len(reached):
                return False
            value = math.fsum(values) / len(values)
            others = [
                other_rung["value"]
                for other in self._trials
                if other is not trial
                for other_rung in other.rungs
                if other_rung["rung"] == rung
            ]
            verdict = halving.judge(
                value,
                others,
                reduction_factor=pruning.reduction_factor,
                lower_is_better=self._lower_is_better,
            )
            epoch = max(one[0] for one in reached if one is not None)
            trial.rungs = [
                *trial.rungs,
                {"rung": rung, "epoch": epoch, "value": value, **vars(verdict)},
            ]
            if not verdict.kept:
                self._prune(trial, members, epoch, value, verdict)
                return True
        return False

    def _prune(
        self,
        trial: tables.TrialRow,
        members: Sequence[_TrialJob],
        epoch: int,
        value: float,
        verdict: halving.Judgement,
    ) -> None:
        best = "the best" if verdict.best_of == 1 else f"among the best {verdict.best_of}"
        sides = "at most" if self._lower_is_better else "at least"
        message = (
            f"Pruned after epoch {epoch}: {self._objective} {value:.4g} on the validation split is "
            f"not {best} of {verdict.among} trials that have come as far, which takes {sides} "
            f"{verdict.needed:.4g}."
        )
        unfinished = [member for member in members if not member.is_over]
        for member in unfinished:
            job = self._session.get_one(tables.JobRow, member.job_id)
            transitions.move(
                self._session,
                job,
                Event.CANCEL,
                because=Reason.PRUNED,
                message=message,
                values={"cancel_target": State.CANCELLED},
            )
        if not unfinished:
            message += " Its training had ended before it could be stopped."
        self._end(trial, TrialState.PRUNED, value, message)

    def _end_if_over(
        self,
        trial: tables.TrialRow,
        members: Sequence[_TrialJob],
        curves: Sequence[Sequence[tuple[int, float]]],
    ) -> None:
        if not all(member.is_over for member in members):
            trial.state, trial.message, trial.ended_at = TrialState.RUNNING, None, None
            return
        wrong = next((m for m in members if m.state is not State.SUCCEEDED), None)
        if wrong is not None:
            message = f"Job {wrong.job_id} {wrong.state}: {wrong.message or 'no reason was given'}"
            self._end(trial, TrialState.FAILED, None, message)
            return
        measured = [self._value(trial, curve, epoch=math.inf) for curve in curves]
        values = [one[1] for one in measured if one is not None]
        if len(values) < len(measured):
            message = f"No {self._objective} was measured on the validation split that is a number."
            self._end(trial, TrialState.FAILED, None, message)
            return
        self._end(trial, TrialState.COMPLETE, math.fsum(values) / len(values), None)

    def _value(
        self, trial: tables.TrialRow, curve: Sequence[tuple[int, float]], *, epoch: float
    ) -> tuple[int, float] | None:
        # Its last weights are delivered, whatever an evaluation split says of others.
        last = validation.is_data_free(self._spec.methods[trial.place])
        return halving.best_so_far(
            curve, epoch=epoch, lower_is_better=self._lower_is_better, last=last
        )

    def _end(
        self, trial: tables.TrialRow, state: TrialState, value: float | None, message: str | None
    ) -> None:
        if (trial.state, trial.value, trial.message) == (state, value, message):
            return  # it was looked at again, since its jobs could have been retried
        trial.state, trial.value, trial.message = state, value, message
        trial.ended_at = database.now(self._session)
        log.info("trial_ended", study_id=trial.study_id, trial=trial.number, state=state)

    # -- new trials --------------------------------------------------------------------------------

    def _wanted(self) -> int:
        running = sum(trial.state == TrialState.RUNNING for trial in self._trials)
        return min(self._search.parallel - running, self._search.trials - len(self._trials))

    def question(self) -> Question | None:
        """Return what a sampler needs to propose new trials; None if none are wanted."""
        if self._study.search_phase != SearchPhase.TRIALS or self._wanted() <= 0:
            return None
        return Question(
            study_id=self._study.id,
            revision=self.revision,
            search=self._search,
            lower_is_better=self._lower_is_better,
            axes={
                place: search_variants.axes(self._source, place) for place in self._source.methods
            },
            past=[
                PastTrial(
                    trial.number,
                    TrialState(trial.state),
                    trial.place,
                    trial.choices,
                    trial.value,
                    {rung["epoch"]: rung["value"] for rung in trial.rungs},
                )
                for trial in self._trials
            ],
            count=self._wanted(),
        )

    def start(self, proposals: Sequence[Proposal]) -> None:
        """Make trials with the values that were proposed, and their jobs."""
        inputs = self._inputs()
        if inputs is None:
            return
        for proposal in proposals[: max(self._wanted(), 0)]:
            self._start_one(proposal, inputs)

    def _start_one(self, proposal: Proposal, inputs: validation.JobInputs) -> None:
        found = search_variants.axes(self._source, proposal.place)
        values = {a.pointer: a.space.value_of(proposal.choices[a.pointer]) for a in found}
        draft = search_variants.draft_of(self._source, proposal.place, values)
        completed, faults = self._complete(draft, inputs)
        trial = tables.TrialRow(
            study_id=self._study.id,
            number=len(self._trials) + 1,
            state=TrialState.RUNNING,
            method=studies.method_name(completed.method),
            place=proposal.place,
            choices=dict(proposal.choices),
            settings={axis.name: values[axis.pointer] for axis in found},
            rungs=[],
            value=None,
            created_at=database.now(self._session),
        )
        self._session.add(trial)
        self._session.flush()
        self._trials.append(trial)
        if faults:
            # Bounds are right, and so is most of what lies between them.
            self._end(trial, TrialState.FAILED, None, submission.summary(faults))
            return
        variant = Variant(trial.number, completed.method, trial.settings, False, None)
        label = f"trial {trial.number}, {studies.label_of(variant)}"
        self._store([(trial.number, label, completed)], self._spec.seeds, inputs)

    def _complete(
        self, draft: SearchDraft, inputs: validation.JobInputs
    ) -> tuple[JobSpec, list[errors.Fault]]:
        spec = studies.job_of(self._spec, draft.method, draft.training)
        tried = submission.with_trial(self._session, spec.parts, inputs)
        completed, faults = submission.complete(spec, tried)
        return completed, [search_variants.relocated(fault, draft) for fault in faults]

    def _inputs(self) -> validation.JobInputs | None:
        """Look up what the study refers to; if that is gone, the search is over."""
        inputs, faults = submission.find_inputs(
            self._session, project_id=self._study.project_id, spec=self._spec
        )
        if faults:
            self._close(SearchPhase.FAILED, f"No more jobs: {submission.summary(faults)}")
            return None
        return inputs

    def _store(
        self,
        wanted: Sequence[tuple[int, str, JobSpec]],
        seeds: Sequence[int],
        inputs: validation.JobInputs,
    ) -> None:
        """Store one job for each of some variants (number, label, spec) and each seed."""
        new = []
        for seed in seeds:
            for number, label, completed in wanted:
                name = f"{self._spec.name}: {label}, seed {seed}"[:_NAME_CHARACTERS]
                training = {**completed.training, "seed": seed}
                told = validation.warnings_of_inputs(validation.read(completed.parts), inputs)
                place = submission.StudyPlace(self._study.id, number, seed)
                named = completed.model_copy(update={"name": name, "training": training})
                new.append(submission.NewJob(named, told, place=place))
        submission.store(
            self._session,
            new,
            project_id=self._study.project_id,
            inputs=inputs,
            notice=submission.notice(self._session, self._spec.resources),
            limits=self._limits,
        )

    # -- the end -----------------------------------------------------------------------------------

    def decide(self) -> None:
        """Once all trials have ended, train the best and the default settings with fresh seeds."""
        is_over = len(self._trials) == self._search.trials and not any(
            trial.state == TrialState.RUNNING for trial in self._trials
        )
        if self._study.search_phase != SearchPhase.TRIALS or not is_over:
            return
        best = self._best()
        if best is None:
            first = next((trial.message for trial in self._trials if trial.message), "")
            self._close(SearchPhase.FAILED, f"No trial succeeded. The first said: {first}")
        elif self._search.confirm_seeds == 0:
            message = (
                f"Trial {best.number} is the best on the validation split; it was not compared "
            )
            self._close(
                SearchPhase.DONE, message + "with the default settings (confirm_seeds is 0)."
            )
        else:
            self._confirm(best)

    def _best(self) -> tables.TrialRow | None:
        complete = [trial for trial in self._trials if trial.state == TrialState.COMPLETE]
        sign = 1 if self._lower_is_better else -1
        in_order = sorted(complete, key=lambda t: (sign * (t.value or 0.0), t.number))
        return in_order[0] if in_order else None

    def _confirm(self, best: tables.TrialRow) -> None:
        inputs = self._inputs()
        if inputs is None:
            return
        found = search_variants.axes(self._source, best.place)
        values = {a.pointer: a.space.value_of(best.choices[a.pointer]) for a in found}
        default = search_variants.default_of(self._source, best.place)
        drafts: dict[Role, SearchDraft] = {"default": default}
        if self._spec.baseline:
            drafts = {"baseline": search_variants.baseline_of(default), **drafts}
        drafts["best"] = search_variants.draft_of(self._source, best.place, values)
        specs: list[JobSpec] = []
        rows: list[Variant] = []
        numbers: dict[Role, int] = {}
        for role, draft in drafts.items():
            completed, faults = self._complete(draft, inputs)
            if faults:
                self._close(SearchPhase.FAILED, f"No more jobs: {submission.summary(faults)}")
                return
            # The best trial may have the default settings, and those may need no teacher.
            keys = [_key(spec) for spec in specs]
            if _key(completed) in keys:
                numbers[role] = self._search.trials + 1 + keys.index(_key(completed))
                continue
            numbers[role] = self._search.trials + 1 + len(specs)
            against = {"best": numbers.get("default"), "default": numbers.get("baseline")}
            rows.append(
                Variant(
                    number=numbers[role],
                    method=completed.method,
                    settings={} if role == "baseline" else _settings(found, completed),
                    is_baseline=not rows,
                    compared_with=against.get(role),
                    role=None if role == "baseline" else role,
                )
            )
            specs.append(completed)
        self._study.variants = [vars(row) for row in rows]
        seeds = fresh_seeds(self._spec.seeds, self._search.confirm_seeds)
        labelled = [
            (row.number, studies.label_of(row), completed)
            for row, completed in zip(rows, specs, strict=True)
        ]
        self._store(labelled, seeds, inputs)
        self._study.search_phase = SearchPhase.CONFIRMING
        self._study.search = {
            **(self._study.search or {}),
            "confirmation": {
                "seeds": seeds,
                **{role: numbers.get(role) for role in ("best", "default", "baseline")},
            },
        }

    def end_confirmation(self) -> None:
        """Close the search once the best and the default settings are trained."""
        members = [
            member
            for number, own in self._members.items()
            if number > self._search.trials
            for member in own
        ]
        if all(member.is_over for member in members):
            self._close(SearchPhase.DONE, None)

    def _close(self, phase: SearchPhase, message: str | None) -> None:
        self._study.search_phase = phase
        self._study.search = {**(self._study.search or {}), "message": message}
        log.info("search_closed", study_id=self._study.id, phase=phase, message=message)

    def summarise(self) -> None:
        """Write what there is to say of the trials."""
        counts = dict.fromkeys(TrialState, 0)
        for trial in self._trials:
            counts[TrialState(trial.state)] += 1
        best = self._best()
        known = {"message": None, "confirmation": None, **(self._study.search or {})}
        if self._study.search_phase in ACTIVE_PHASES:
            known["message"] = None
        self._study.search = {
            **known,
            "counts": {str(state): count for state, count in counts.items()},
            "best": None
            if best is None
            else {
                "trial": best.number,
                "method": best.method,
                "settings": best.settings,
                "value": best.value,
            },
        }


Role: TypeAlias = Literal["baseline", "default", "best"]


def _settings(found: Sequence[Axis], completed: JobSpec) -> dict[str, Any]:
    """Return the values of a complete spec in the places of the spaces."""
    return {
        axis.name: studies.value_at(
            axis.path,
            completed.training if axis.pointer.startswith("/training/") else completed.method,
        )
        for axis in found
    }


def _key(spec: JobSpec) -> str:
    return variants.key_of([spec.method, spec.training])


def _members(session: Session, study_id: str) -> dict[int, list[_TrialJob]]:
    """Return the jobs of a study by their variants, in the order of their seeds."""
    row = tables.JobRow
    query = sa.select(
        row.id,
        row.study_variant,
        row.study_seed,
        row.state,
        row.state_message,
        row.spec["training"]["epochs"].as_integer(),
    ).where(row.study_id == study_id)
    found: dict[int, list[_TrialJob]] = {}
    for job_id, variant, seed, state, message, epochs in session.execute(
        query.order_by(row.study_seed)
    ):
        if variant is not None and seed is not None:
            member = _TrialJob(job_id, variant, seed, State(state), message, epochs)
            found.setdefault(variant, []).append(member)
    return found


def _curves(
    session: Session, job_ids: Iterable[str], *, key: str
) -> dict[str, list[tuple[int, float]]]:
    """Return epochs and values of one series of these jobs; of a step, the newest attempt's."""
    row = tables.MetricRow
    query = sa.select(row.job_id, row.step, row.epoch, row.value).where(
        row.job_id.in_(list(job_ids)), row.key == key, row.epoch.is_not(None)
    )
    by_step: dict[str, dict[int, tuple[int, float]]] = {}
    for job_id, step, epoch, value in session.execute(query.order_by(row.step, row.attempt)):
        if epoch is not None:
            by_step.setdefault(job_id, {})[step] = (epoch, value)
    return {job_id: list(points.values()) for job_id, points in by_step.items()}


def conclusion(study: tables.StudyRow, board: leaderboard.Leaderboard) -> str | None:
    """Return in a sentence whether the best trial is better than the default settings.

    None where there is no search, and until it is over.
    """
    told = study.search or {}
    roles = told.get("confirmation")
    if study.search_phase != SearchPhase.DONE:
        return told.get("message")
    if roles is None:
        return str(told.get("message"))
    trial = told["best"]["trial"]
    if roles["best"] == roles["default"]:
        return f"Trial {trial} is the best, and has the default settings: nothing better was found."
    row = next(row for row in board.rows if row.variant.number == roles["best"])
    found = row.difference
    if found is None:
        return f"Trial {trial} could not be compared: no fresh seed succeeded with both settings."
    seeds = f"{found.pairs} fresh seed{'s' * (found.pairs != 1)}"
    points = f"{100 * found.mean:+.2f} points of {board.metric}"
    if found.interval is None or found.verdict is None:
        few = leaderboard.PAIRS_FOR_A_VERDICT
        return (
            f"Trial {trial} against the default settings: {points}, {seeds}; {few} give a verdict."
        )
    low, high = (100 * bound for bound in found.interval)
    verdicts = {
        "beats": f"Trial {trial} is better than the default settings",
        "matches": f"Trial {trial} is not told apart from the default settings",
        "misses": f"Trial {trial} is worse than the default settings",
    }
    return (
        f"{verdicts[found.verdict]}: {points} (95 % interval {low:+.2f} to {high:+.2f}, {seeds})."
    )


def trials(
    session: Session, study: tables.StudyRow, *, wanted: paging.PageRequest
) -> paging.Page[tables.TrialRow]:
    """Return a page of the trials of a study, newest first."""
    row = tables.TrialRow
    statement = sa.select(row).where(row.study_id == study.id)
    return paging.take(session, statement, by=(row.created_at, row.number), wanted=wanted)


def jobs_of_trials(
    session: Session, study: tables.StudyRow, numbers: Sequence[int]
) -> dict[int, list[str]]:
    """Return the ids of the jobs of some trials, by their seeds, in one query."""
    row = tables.JobRow
    query = sa.select(row.study_variant, row.id).where(
        row.study_id == study.id, row.study_variant.in_(list(numbers))
    )
    found: dict[int, list[str]] = {number: [] for number in numbers}
    for number, job_id in session.execute(query.order_by(row.study_seed)):
        if number is not None:
            found[number].append(job_id)
    return found
