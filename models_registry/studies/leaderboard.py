"""Ranks the variants of a study, with intervals and tests; pure functions without a database.

What too few seeds cannot show is None: a spread, an interval and a test need two seeds, a verdict
three. Nothing is corrected for the number of variants that were tried: the best of many looks
better than it is.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import State
from workers.distill.config.descriptions import METRICS, Metric

CONFIDENCE = 0.95
MAX_EXACT = 16  # differences; beyond, flips are drawn at random
RANDOM_FLIPS = 9_999
PAIRS_FOR_A_VERDICT = 3
Verdict = Literal["beats", "matches", "misses"]


@dataclass(frozen=True)
class Variant:
    """What the jobs of one variant have in common."""

    number: int
    method: dict[str, Any]  # with defaults filled in
    settings: dict[str, Any]  # what distinguishes it from others of the same method
    is_baseline: bool
    compared_with: int | None  # number of its baseline
    role: Literal["default", "best"] | None = None  # of a search, what it is in the comparison


@dataclass(frozen=True)
class Run:
    """One job: a variant with one seed, and what it measured on the test split."""

    variant: int
    seed: int
    job_id: str
    state: State
    student: str | None = None
    scores: Mapping[Metric, float] = field(default_factory=dict)  # those that were measured
    agreement: float | None = None
    ece: float | None = None
    wall_seconds: float | None = None
    images_per_second: float | None = None
    shared_with: int | None = None  # students in the same process
    parameters: int | None = None
    teacher_scores: Mapping[Metric, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Values of one variant over its seeds."""

    mean: float
    standard_deviation: float | None  # of the sample, so divided by one less than the seeds
    smallest: float
    largest: float
    interval: tuple[float, float] | None  # of the mean, by Student's t


@dataclass(frozen=True)
class Difference:
    """A variant minus its baseline, seed by seed."""

    pairs: int
    mean: float
    standard_deviation: float | None
    interval: tuple[float, float] | None  # of the mean, by Student's t
    p_value: float | None  # of flipping signs, two-sided
    seeds_above: int
    verdict: Verdict | None


@dataclass(frozen=True)
class RankedVariant:
    """One variant with its rank and results."""

    rank: int | None
    variant: Variant
    runs: tuple[Run, ...]
    finished: int
    failed: int  # or cancelled
    unfinished: int
    scores: Mapping[Metric, Spread]  # those that were measured
    difference: Difference | None
    agreement: float | None
    ece: float | None
    wall_seconds: float | None
    images_per_second: float | None
    side_by_side: int  # of those finished: their times are not those of runs alone
    parameters: int | None


@dataclass(frozen=True)
class Leaderboard:
    """All variants of a study, best first by `metric`."""

    metric: Metric
    teacher_scores: Mapping[Metric, float]
    rows: tuple[RankedVariant, ...]


def make(variants: Sequence[Variant], runs: Iterable[Run], *, metric: Metric) -> Leaderboard:
    """Rank variants by the mean of a metric; those without a result stand at the end."""
    by_variant: dict[int, list[Run]] = {variant.number: [] for variant in variants}
    for run in sorted(runs, key=lambda run: run.seed):
        by_variant[run.variant].append(run)
    rows = [_row(variant, by_variant, metric) for variant in variants]
    ranked = sorted(rows, key=lambda row: (-_score(row, metric), row.variant.number))
    scores = [_score(row, metric) for row in ranked]
    in_order = [run for group in by_variant.values() for run in group]
    return Leaderboard(
        metric=metric,
        teacher_scores={
            name: known[0]
            for name in METRICS
            if (known := [r.teacher_scores[name] for r in in_order if name in r.teacher_scores])
        },
        # Equal means share a rank.
        rows=tuple(
            row if score == -math.inf else replace(row, rank=scores.index(score) + 1)
            for row, score in zip(ranked, scores, strict=True)
        ),
    )


def _score(row: RankedVariant, metric: Metric) -> float:
    measured = row.scores.get(metric)
    return -math.inf if measured is None else measured.mean


def _row(variant: Variant, by_variant: dict[int, list[Run]], metric: Metric) -> RankedVariant:
    runs = by_variant[variant.number]
    ended = [run for run in runs if lifecycle.is_final(run.state)]
    done = [run for run in ended if run.state is State.SUCCEEDED]
    difference = None
    if variant.compared_with is not None:
        baseline = by_variant[variant.compared_with]
        difference = compare(_measured(runs, metric), _measured(baseline, metric))
    return RankedVariant(
        rank=None,
        variant=variant,
        runs=tuple(runs),
        finished=len(done),
        failed=len(ended) - len(done),
        unfinished=len(runs) - len(ended),
        scores={
            name: measured
            for name in METRICS
            if (measured := spread(list(_measured(runs, name).values()))) is not None
        },
        difference=difference,
        agreement=_mean_of(run.agreement for run in done),
        ece=_mean_of(run.ece for run in done),
        wall_seconds=_mean_of(run.wall_seconds for run in done),
        images_per_second=_mean_of(run.images_per_second for run in done),
        side_by_side=sum(bool(run.shared_with) for run in done),
        parameters=next((run.parameters for run in done if run.parameters is not None), None),
    )


def _measured(runs: Iterable[Run], metric: Metric) -> dict[int, float]:
    """Return what was measured, by seed."""
    return {
        run.seed: run.scores[metric]
        for run in runs
        if run.state is State.SUCCEEDED and metric in run.scores
    }


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and spread; None without values."""
    if not values:
        return None
    return Spread(_mean(values), _deviation(values), min(values), max(values), interval_of(values))


def compare(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Compare a variant with its baseline over the seeds that both have; None without any."""
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    if not differences:
        return None
    interval = interval_of(differences)
    return Difference(
        pairs=len(differences),
        mean=_mean(differences),
        standard_deviation=_deviation(differences),
        interval=interval,
        p_value=sign_flip_p_value(differences),
        seeds_above=sum(difference > 0 for difference in differences),
        verdict=_verdict(interval) if len(differences) >= PAIRS_FOR_A_VERDICT else None,
    )


def _verdict(interval: tuple[float, float] | None) -> Verdict | None:
    if interval is None:
        return None
    low, high = interval
    return "beats" if low > 0 else "misses" if high < 0 else "matches"


def interval_of(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean by Student's t; None for fewer than two."""
    deviation = _deviation(values)
    if deviation is None:
        return None
    middle = _mean(values)
    reach = t_quantile(CONFIDENCE, len(values) - 1) * deviation / math.sqrt(len(values))
    return middle - reach, middle + reach


def t_quantile(confidence: float, freedom: int) -> float:
    """Return t such that a Student variable lies between -t and t with this probability."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < confidence:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        if t_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def t_probability(t: float, freedom: int) -> float:
    """Return the probability that a Student variable lies between -t and t.

    The finite sums for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    is_odd = freedom % 2
    terms = []
    term = cosine if is_odd else 1.0
    for power in range(is_odd, freedom - 1, 2):
        terms.append(term)
        term *= (power + 1) / (power + 2) * cosine * cosine
    total = math.sin(angle) * math.fsum(terms)
    return 2 / math.pi * (angle + total) if is_odd else total


def sign_flip_p_value(differences: Sequence[float]) -> float | None:
    """Return how often random signs give a mean as far from 0; None for fewer than two values.

    Two-sided. With n values all 2^n signs are tried, so no p value is below 2 / 2^n: three seeds
    can never give less than 0.25, and six are the fewest that can give less than 0.05. Above
    `MAX_EXACT` values, `RANDOM_FLIPS` signs are drawn with a fixed seed and the observed ones are
    counted among them, so that the p value is never 0.
    """
    if len(differences) < 2:
        return None
    # A sum in another order must not count as smaller for its last digit.
    far = abs(math.fsum(differences)) - 1e-9 * math.fsum(map(abs, differences))
    if len(differences) <= MAX_EXACT:
        sums = _signed_sums(differences)
        return sum(abs(total) >= far for total in sums) / len(sums)
    generator = random.Random(0)
    # Eight signs at a time are looked up: drawing is then all that it costs.
    looked_up = [_signed_sums(part) for part in _eights(differences)]
    extreme = 1  # what was observed is one of the possible signs
    for _ in range(RANDOM_FLIPS):
        extreme += abs(math.fsum(generator.choice(sums) for sums in looked_up)) >= far
    return extreme / (RANDOM_FLIPS + 1)


def _signed_sums(values: Sequence[float]) -> list[float]:
    """Return the sums of the values with all combinations of signs."""
    sums = [0.0]
    for value in values:
        sums = [total + signed for total in sums for signed in (value, -value)]
    return sums


def _eights(values: Sequence[float]) -> list[Sequence[float]]:
    return [values[start : start + 8] for start in range(0, len(values), 8)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    middle = _mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None
