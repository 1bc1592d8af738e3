"""Asynchronous successive halving: which trials go on after so many epochs; pure functions.

Source: Li et al., MLSys 2020, arXiv:1810.05934 (ASHA), in the form without pauses that Optuna's
`SuccessiveHalvingPruner` has: a trial is compared when it comes to a rung, with all that have come
there before, and either goes on or ends for good.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from models_registry.studies.search_spec import PruningSpec


@dataclass(frozen=True)
class Judgement:
    """Whether a trial goes on beyond a rung, and what it was compared with."""

    kept: bool
    needed: float
    """The worst value that goes on."""
    best_of: int
    """How many go on,"""
    among: int
    """of how many that have come as far, this one included."""


def rungs(pruning: PruningSpec, epochs: int) -> list[int]:
    """Return the epochs after which a trial of so many epochs is compared, its last left out."""
    found = []
    rung = pruning.min_epochs
    while rung < epochs:
        found.append(rung)
        rung *= pruning.reduction_factor
    return found


def judge(
    value: float, others: Sequence[float], *, reduction_factor: int, lower_is_better: bool
) -> Judgement:
    """Return whether `value` is among the best 1 / `reduction_factor` of all, rounded down.

    The best of all always goes on.
    """
    in_order = sorted([value, *others], reverse=not lower_is_better)
    best_of = max(1, len(in_order) // reduction_factor)
    needed = in_order[best_of - 1]
    kept = value <= needed if lower_is_better else value >= needed
    return Judgement(kept, needed, best_of, len(in_order))


def best_so_far(
    points: Sequence[tuple[int, float]], *, epoch: float, lower_is_better: bool, last: bool
) -> tuple[int, float] | None:
    """Return the value of a student after the first validation at or after an epoch.

    `points` are epochs and validation scores, in order. The value is the best so far, or with
    `last` that of the epoch itself; the epoch is that of the validation. None if it has not come
    so far, or nothing so far was a number. An infinite `epoch` takes all points.
    """
    after = [at for at, _ in points if at >= epoch]
    if not points or (not after and epoch != math.inf):
        return None
    end = after[0] if after else points[-1][0]
    values = [value for at, value in points if at <= end and math.isfinite(value)]
    if not values:
        return None
    if last:
        return end, values[-1]
    return end, min(values) if lower_is_better else max(values)
