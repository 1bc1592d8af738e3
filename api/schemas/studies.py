"""Bodies of studies and their leaderboards."""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from api.schemas import rows
from api.schemas.jobs import JobWarning
from models_registry.jobs.spec import reference_in
from models_registry.persistence import tables
from models_registry.studies import leaderboard, search_variants, searches, studies
from models_registry.studies.search_spec import SearchSpec
from models_registry.studies.spec import StudySpec
from workers.distill.config.descriptions import LOWER_IS_BETTER, METRICS, Metric

# Methods and settings are the caller's JSON, frozen at submission.
Json = dict[str, Any]


class StudyLinks(BaseModel):
    """Related addresses."""

    study: str
    jobs: str
    leaderboard: str
    trials: str | None = Field(default=None, description="Of a search.")


class TrialSummary(BaseModel):
    """The best trial so far, by the validation split."""

    trial: int = Field(description="Its number, which is also the variant of its jobs.")
    method: str
    settings: Json = Field(description="The values that were chosen.")
    value: float = Field(description="Of the search's objective.")


class ConfirmationRead(BaseModel):
    """The last comparison of a search, on the test split: see the leaderboard."""

    seeds: list[int] = Field(description="None of them was used by a trial.")
    best: int | None = Field(description="Variant of the best trial.")
    default: int | None = Field(
        description="Variant of the default settings; the same if these were best."
    )
    baseline: int | None


class SearchRead(BaseModel):
    """How far a search is."""

    phase: str = Field(
        description="`trials`, `confirming` (the best trial and the default settings are trained "
        "with fresh seeds), then `done`, `failed` or `cancelled`."
    )
    message: str | None = Field(description="Why it ended, where that needs to be said.")
    objective: str = Field(description="What trials are compared by, on the validation split.")
    lower_is_better: bool
    planned_trials: int
    trials: dict[str, int] = Field(
        description="Number of trials by state: `running`, `complete`, `pruned`, `failed`."
    )
    best: TrialSummary | None = Field(
        description="Of the complete trials. Called better than the default settings by the "
        "leaderboard alone."
    )
    confirmation: ConfirmationRead | None = Field(description="Null until it begins.")
    warnings: list[JobWarning] = Field(
        default=[], description="What its submitter should know; each job has its own besides."
    )

    @classmethod
    def of(cls, study: tables.StudyRow) -> "SearchRead | None":
        """Return what there is to say of the search of a study, if it has one."""
        if study.search_phase is None:
            return None
        search = SearchSpec.model_validate(study.spec["search"])
        objective = search_variants.objective_of(search, study.spec["task"])
        told: Json = {"message": None, "counts": {}, "best": None, "confirmation": None}
        told |= study.search or {}
        return cls(
            phase=study.search_phase,
            message=told["message"],
            objective=objective,
            lower_is_better=objective in LOWER_IS_BETTER,
            planned_trials=search.trials,
            trials=told["counts"],
            best=told["best"],
            confirmation=told["confirmation"],
            warnings=[JobWarning.model_validate(one) for one in told.get("warnings") or ()],
        )


class RungRead(BaseModel):
    """A comparison of a trial with all that had come as far."""

    epoch: int
    value: float
    kept: bool
    needed: float = Field(description="The worst value that went on.")
    best_of: int = Field(description="How many went on,")
    among: int = Field(description="of how many.")


class TrialRead(rows.RowRead):
    """One choice of values in a search."""

    number: int = Field(description="From 1; also the variant of its jobs.")
    state: str = Field(description="`running`, `complete`, `pruned` or `failed`.")
    method: str
    settings: Json = Field(description="The values that were chosen.")
    value: float | None = Field(
        description="Of the objective, the mean over seeds; of a pruned trial, when it was pruned."
    )
    message: str | None = Field(description="Why it was pruned, or failed.")
    rungs: list[RungRead] = Field(description="Where it was compared.")
    jobs: list[str] = Field(description="By seed.")
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, trial: tables.TrialRow, jobs: list[str]) -> Self:
        """Return the body of a row."""
        return cls.from_row(trial, jobs=jobs)


class StudyRead(rows.RowRead):
    """A study as it is now; its state follows from those of its jobs."""

    id: str
    name: str
    state: str = Field(
        description="`queued` and `running` are not final, nor is a state that you do not know; "
        "`succeeded`, `incomplete` (some jobs failed), `failed` and `cancelled` are."
    )
    progress: float = Field(ge=0, le=1)
    job_count: int
    jobs: dict[str, int] = Field(description="Number of jobs by state.")
    pruned: int = Field(
        default=0, description="Of the cancelled jobs, how many fell behind in the search."
    )
    search: SearchRead | None = Field(default=None, description="Null without a search.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None = Field(description="When the last job ended.")
    spec: Json = Field(description="As stored: references resolved, grids as given.")
    labels: dict[str, str]
    links: StudyLinks

    @classmethod
    def of(cls, study: tables.StudyRow, status: studies.StudyStatus) -> Self:
        """Return the body of a row with the status of its jobs."""
        here = f"/v1/studies/{study.id}"
        return cls.from_row(
            study,
            state=status.state,
            progress=status.progress,
            pruned=status.pruned,
            search=SearchRead.of(study),
            job_count=sum(status.counts.values()),
            jobs={str(state): count for state, count in sorted(status.counts.items())},
            started_at=status.started_at,
            finished_at=status.finished_at,
            links=StudyLinks(
                study=here,
                jobs=f"/v1/jobs?study={study.id}",
                leaderboard=f"{here}/leaderboard",
                trials=None if study.search_phase is None else f"{here}/trials",
            ),
        )


class VariantRead(rows.RowRead):
    """What the jobs of one method with one choice of hyper-parameters have in common."""

    variant: int = Field(description="Number in the study, from 1.")
    name: str = Field(description="Method and settings in words.")
    method: Json = Field(description="With defaults filled in.")
    settings: Json = Field(description="What distinguishes it from variants of the same method.")
    is_baseline: bool
    compared_with: int | None = Field(
        description="Number of its baseline; of the best trial of a search, that of the default "
        "settings."
    )
    role: Literal["default", "best"] | None = Field(
        default=None,
        description="In a search: the default settings, or the best trial, with fresh seeds.",
    )

    @classmethod
    def of(cls, variant: leaderboard.Variant) -> Self:
        """Return the body of a variant."""
        return cls.from_row(
            variant,
            variant=variant.number,
            name=studies.label_of(variant),
        )


class SpaceRead(BaseModel):
    """A value that a search chooses."""

    pointer: str = Field(description="Where it stands in the study's spec.")
    name: str
    method: str | None = Field(description="Null of the training.")
    space: Json
    default: Any = Field(description="What it is in the default settings.")


class StudyPlanRead(BaseModel):
    """What a study would consist of."""

    spec: StudySpec
    job_count: int = Field(description="Of a search, the most that there can be.")
    variants: list[VariantRead] = Field(description="None of a search: its trials come later.")
    spaces: list[SpaceRead] = Field(default=[], description="What a search chooses.")
    warnings: list[JobWarning] = Field(
        default=[], description="What its submitter should know of its jobs, each thing once."
    )

    @classmethod
    def of(cls, plan: studies.StudyPlan) -> Self:
        """Return the body of a plan."""
        return cls(
            spec=plan.spec,
            job_count=plan.job_count,
            variants=[VariantRead.of(variant) for variant in plan.variants],
            spaces=[
                SpaceRead(
                    pointer=one.axis.pointer,
                    name=one.axis.name,
                    method=one.method or None,
                    space=one.axis.space.model_dump(),
                    default=one.default,
                )
                for one in plan.spaces
            ],
            warnings=[JobWarning(code=w.code, message=w.detail) for w in plan.all_warnings],
        )


class SpreadRead(BaseModel):
    """Values over seeds."""

    mean: float
    standard_deviation: float | None = Field(description="Of the sample; null with one seed.")
    smallest: float
    largest: float
    interval: list[float] | None = Field(
        description="95 % confidence interval of the mean by Student's t; null with one seed."
    )

    @classmethod
    def of(cls, spread: leaderboard.Spread) -> Self:
        """Return a spread as JSON."""
        return cls.model_validate(vars(spread))


class DifferenceRead(BaseModel):
    """A variant minus its baseline, over the seeds that both have finished."""

    pairs: int
    mean: float
    standard_deviation: float | None
    interval: list[float] | None = Field(
        description="95 % confidence interval of the mean by Student's t; null with one pair."
    )
    p_value: float | None = Field(
        description="Two-sided sign-flip test; null with one pair. With n pairs it is never below "
        "2 / 2^n, and it is not corrected for the number of variants."
    )
    seeds_above: int = Field(description="Seeds with which it was better than its baseline.")
    verdict: Literal["beats", "matches", "misses"] | None = Field(
        description="Whether the interval lies above 0, around it or below; null under 3 pairs."
    )


ACCURACY = "Share of right answers, in segmentation of pixels; null in detection."
MIOU = "In segmentation: mean intersection over union."
KNN = "In embedding: accuracy by the nearest labelled training images."
AP = "In detection: COCO's average precision, over IoU thresholds from 0.5 to 0.95."


class RunRead(rows.RowRead):
    """One job of a variant."""

    seed: int
    job: str
    state: str
    accuracy: float | None = Field(description=ACCURACY)
    miou: float | None = Field(description=MIOU)
    ap: float | None = Field(description=AP)
    knn: float | None = Field(description=KNN)
    student: str | None = Field(description="Reference of the registered model version.")


class LeaderboardRow(VariantRead):
    """A variant and its results; means are over the jobs that succeeded."""

    rank: int | None = Field(description="By the mean of `metric`; equal means share one.")
    finished: int = Field(description="Jobs that succeeded.")
    failed: int = Field(description="Jobs that failed or were cancelled.")
    unfinished: int
    accuracy: SpreadRead | None = Field(description=ACCURACY)
    miou: SpreadRead | None = Field(description=MIOU)
    ap: SpreadRead | None = Field(description=AP)
    knn: SpreadRead | None = Field(description=KNN)
    difference: DifferenceRead | None = Field(
        description="In `metric`; null without a baseline to compare."
    )
    agreement: float | None = Field(description="With the teacher.")
    ece: float | None = Field(description="Expected calibration error.")
    wall_seconds: float | None = Field(description="Of one job.")
    images_per_second: float | None
    side_by_side: int = Field(
        description="Jobs that succeeded in a process shared with others: their times are longer "
        "than those of runs alone."
    )
    parameters: int | None = Field(description="Of the student.")
    runs: list[RunRead] = Field(description="By seed.")

    @classmethod
    def of_row(cls, row: leaderboard.RankedVariant) -> Self:
        """Return the body of a row."""
        return cls.from_row(
            row,
            **VariantRead.of(row.variant).model_dump(),
            **{
                name: SpreadRead.of(row.scores[name]) if name in row.scores else None
                for name in METRICS
            },
            difference=DifferenceRead(**vars(row.difference)) if row.difference else None,
            runs=[
                RunRead.from_row(
                    run, job=run.job_id, **{name: run.scores.get(name) for name in METRICS}
                )
                for run in row.runs
            ],
        )


class LeaderboardRead(BaseModel):
    """All variants of a study, best first, as measured on the test split."""

    study: str
    name: str
    state: str
    teacher: str | None
    metric: Metric = Field(
        description="The metric of ranks and differences: `accuracy` in classification, `miou` in "
        "segmentation, `ap` in detection, `knn` in embedding."
    )
    search: SearchRead | None = Field(
        default=None, description="Of a search: how far it is; its trials are no rows here."
    )
    conclusion: str | None = Field(
        default=None, description="Of a search: whether its best trial is better than the default."
    )
    teacher_accuracy: float | None
    teacher_miou: float | None
    teacher_ap: float | None
    teacher_knn: float | None
    seeds: list[int]
    rows: list[LeaderboardRow]

    @classmethod
    def of(cls, study: tables.StudyRow, state: str, compared: leaderboard.Leaderboard) -> Self:
        """Return the body of a leaderboard."""
        search = SearchRead.of(study)
        seeds = study.spec["seeds"]
        if search is not None:
            seeds = [] if search.confirmation is None else search.confirmation.seeds
        return cls(
            study=study.id,
            name=study.name,
            state=state,
            teacher=reference_in(study.spec["teacher"])
            or ", ".join(study.spec.get("teachers") or [])
            or None,
            metric=compared.metric,
            search=search,
            conclusion=searches.conclusion(study, compared),
            seeds=seeds,
            rows=[LeaderboardRow.of_row(row) for row in compared.rows],
            **{f"teacher_{name}": compared.teacher_scores.get(name) for name in METRICS},
        )

    def csv(self) -> str:
        """Return CSV: a header, then one line for each variant; unknown values are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
        writer.writerow(CSV_COLUMNS)
        writer.writerows(_cells(row, self) for row in self.rows)
        return text.getvalue()


_SPREAD = ("mean", "standard_deviation", "smallest", "largest")
# Columns are only ever added at the end, so that no reader's column moves.
_LATER_METRICS = ("miou", "ap", "knn")
CSV_COLUMNS = (
    *("rank", "variant", "name", "is_baseline", "compared_with"),
    *("finished", "failed", "unfinished"),
    *(f"accuracy_{name}" for name in _SPREAD),
    *("pairs", "difference_mean", "difference_standard_deviation"),
    *("difference_low", "difference_high", "p_value", "seeds_above", "verdict"),
    *("agreement", "ece", "wall_seconds", "images_per_second", "side_by_side", "parameters"),
    *("teacher_accuracy", "metric"),
    *(
        column
        for metric in _LATER_METRICS
        for column in (*(f"{metric}_{name}" for name in _SPREAD), f"teacher_{metric}")
    ),
)


def _cells(row: LeaderboardRow, board: LeaderboardRead) -> Sequence[object]:
    difference = row.difference
    low, high = difference.interval if difference and difference.interval else (None, None)
    return (
        *(row.rank, row.variant, row.name, str(row.is_baseline).lower(), row.compared_with),
        *(row.finished, row.failed, row.unfinished),
        *_fields(row.accuracy, _SPREAD),
        *_fields(difference, ("pairs", "mean", "standard_deviation")),
        *(low, high),
        *_fields(difference, ("p_value", "seeds_above", "verdict")),
        *(row.agreement, row.ece, row.wall_seconds, row.images_per_second),
        *(row.side_by_side, row.parameters),
        *(board.teacher_accuracy, board.metric),
        *(
            value
            for metric in _LATER_METRICS
            for value in (
                *_fields(getattr(row, metric), _SPREAD),
                getattr(board, f"teacher_{metric}"),
            )
        ),
    )


def _fields(body: BaseModel | None, names: Iterable[str]) -> list[object]:
    return [getattr(body, name, None) for name in names]
