"""SearchSpec: how a study searches the spaces of its methods and training."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

MAX_TRIALS = 500
MAX_PARALLEL = 64
MAX_CONFIRM_SEEDS = 100


class _SearchPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PruningSpec(_SearchPart):
    """When trials that fall behind are ended: asynchronous successive halving over epochs."""

    min_epochs: int = Field(
        1, ge=1, le=100_000, description="Epochs after which a trial is first compared."
    )
    reduction_factor: int = Field(
        3,
        ge=2,
        le=10,
        description="A trial goes on if it is among the best 1 of so many that have come as far; "
        "it is compared again after as many times the epochs.",
    )


class SearchSpec(_SearchPart):
    """Trials that are chosen one after the other by the results so far, and what follows them.

    Trials are compared on the validation split, never on the test split. The best of them is then
    trained again with fresh seeds beside the default settings: it is called better only if that
    comparison says so.
    """

    sampler: Literal["tpe", "random"] = Field(
        "tpe",
        description="How values are chosen. tpe: by a tree-structured Parzen estimator, at random "
        "in the first 10 trials.",
    )
    trials: int = Field(ge=1, le=MAX_TRIALS, description="Settings to try, pruned ones included.")
    parallel: int = Field(
        1,
        ge=1,
        le=MAX_PARALLEL,
        description="Trials at the same time. The same seed gives the same search if it is 1.",
    )
    objective: str | None = Field(
        None,
        description="What trials are compared by, of the validation split: accuracy or loss in "
        "classification; miou, accuracy or loss in segmentation; ap or ap50 in detection. Null "
        "takes the first. The best epoch counts, of data-free methods the last.",
    )
    pruning: PruningSpec | None = Field(
        default_factory=PruningSpec, description="Null lets every trial run to its end."
    )
    confirm_seeds: int = Field(
        3,
        ge=0,
        le=MAX_CONFIRM_SEEDS,
        description="Fresh seeds with which the best trial and the default settings are trained at "
        "the end. Fewer than 3 give no verdict, 0 skips this.",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Start of the sampler's random choices.")

    @field_validator("parallel")
    @classmethod
    def _parallel_within_trials(cls, parallel: int, known: ValidationInfo) -> int:
        trials = known.data.get("trials")
        if trials is not None and parallel > trials:
            raise ValueError(
                f"parallel is {parallel}, and there are only {trials} trials; give at most {trials}"
            )
        return parallel


def fresh_seeds(seeds: list[int], count: int) -> list[int]:
    """Return so many seeds that no trial was trained with: those after the largest."""
    start = max(seeds) + 1
    if start + count > 2**31:
        start = 0
    return [seed for seed in range(start, start + count + len(seeds)) if seed not in seeds][:count]


class SearchPhase(StrEnum):
    """Where a search is; `lifecycle.py` has the states of its jobs."""

    TRIALS = "trials"  # values are chosen and tried
    CONFIRMING = "confirming"  # the best and the default settings are trained with fresh seeds
    DONE = "done"
    FAILED = "failed"  # no trial succeeded, or none can be made any more
    CANCELLED = "cancelled"


ACTIVE_PHASES = frozenset({SearchPhase.TRIALS, SearchPhase.CONFIRMING})


class TrialState(StrEnum):
    """Where a trial is."""

    RUNNING = "running"  # some of its jobs have not ended
    COMPLETE = "complete"
    PRUNED = "pruned"  # it fell behind
    FAILED = "failed"  # or was cancelled, or its values contradict each other
