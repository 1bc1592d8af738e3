"""What the scores of a finished run tell its user to doubt or to try next."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from workers.distill.config.result import BalanceSummary, RunWarning
from workers.distill.training.balance import DOMINATES
from workers.distill.training.state import TrainState

STILL_IMPROVING_POINTS = 0.01
"""A gain over the last fifth of the epochs, as a share, from which more epochs look worth it."""
MOST_OF_THE_RUN = 0.5
"""Share of the measurements from which a dominating term is told of."""
FEWEST_LOOKS = 5
"""Fewer validations than this show no trend."""
ALWAYS = 0.99
"""Above this share of answers, a class is taken for the only one."""

Scores = Mapping[str, Any]  # of one network, by metric; each task has its own


def warnings(
    metric: str,
    *,
    student: Scores | None,
    baseline: Scores | None,
    history: Sequence[Mapping[str, int | float]],
    method: Mapping[str, Any],
    balance: BalanceSummary | None = None,
) -> Iterator[RunWarning]:
    """Yield `below_baseline`, `term_dominates` and `still_improving`, where they hold.

    `metric` is the one that decides; scores are those of the test split, `history` is the
    student's, with one entry an epoch; `method` is complete.
    """
    if student and baseline:
        yield from _below_baseline(metric, student, baseline, first_to_try(method, balance))
    if balance is not None:
        yield from _term_dominates(method, balance)
    looks = [
        (int(entry["epoch"]), float(entry[f"validation/{metric}"]))
        for entry in history
        if f"validation/{metric}" in entry
    ]
    if len(looks) >= FEWEST_LOOKS:
        yield from _still_improving(metric, looks)


def balance_summary(state: TrainState) -> BalanceSummary | None:
    """Return how strong the distillation terms were; None where nothing was measured."""
    measured = state.balance
    if measured is None:
        return None
    ratios, factors = (
        [entry[key] for entry in state.history if key in entry]
        for key in ("balance/ratio", "balance/factor")
    )
    return BalanceSummary(
        limit=measured.limit,
        ratio=statistics.median(ratios) if ratios else None,
        factor=statistics.median(factors) if factors else 1.0,
        dominated_share=round(measured.dominated_share(), 4),
    )


def first_to_try(method: Mapping[str, Any], balance: BalanceSummary | None) -> str:
    """Return what to change first where a complete method did harm, with its present value."""
    if "synthesis" in method:
        return "more images for the student: raise training.epochs or method.synthesis.steps"
    if "federation" in method:
        return "more rounds: raise training.epochs"
    if "balance" not in method:
        return "method kd, which learns from the labels and a teacher"
    now = method["balance"] or "published"
    other = "" if method["name"] == "kd" else ", then method kd"
    if balance is not None and balance.limit is not None:
        weight = method.get("task_weight", 1.0)
        if weight < 1:
            # The limit compares with the labels at weight 1, and they count less: a lower one
            # would leave the student with too little of both.
            return f"method.task_weight: 1 (now {weight:g}), at which the labels are heard{other}"
        better = f"{balance.limit / 3:.2g}"
    else:
        better = "1" if balance is None else "auto"
    return f"method.balance: {better} (now {now}), which holds the teacher's gradient back{other}"


def _term_dominates(method: Mapping[str, Any], balance: BalanceSummary) -> Iterator[RunWarning]:
    if balance.limit is not None or balance.dominated_share <= MOST_OF_THE_RUN:
        return
    times = "" if balance.ratio is None else f", {balance.ratio:.3g} times it in the middle"
    yield RunWarning(
        code="term_dominates",
        message=f"the gradient of method {method['name']}'s distillation terms was more than "
        f"{DOMINATES:g} times that of the labels in {balance.dominated_share:.0%} of the "
        f"measurements{times}: the labels were hardly heard. The published weights do not fit "
        f"here; set method.balance: auto (now {method['balance']}), or lower the terms' weights",
    )


def one_class(
    role: str, unit: str, classes: Sequence[str], confusion: Int[Tensor, "C C"] | None
) -> Iterator[RunWarning]:
    """Yield `one_class_predicted` where a network takes all pixels for one class, if it does.

    Other answers are at most 1 % of all, and fewer than half of what other classes truly have:
    where nearly everything is of one class, that answer is right. Tasks that count anything but
    pixels have no such background, whose share makes an accuracy look good; those without a
    confusion tell nothing.
    """
    if confusion is None or unit != "pixels":
        return
    counts, total = confusion.sum(0), int(confusion.sum())
    most = int(counts.argmax())
    others, true_others = total - int(counts[most]), total - int(confusion[most].sum())
    if others <= (1 - ALWAYS) * total and 2 * others < true_others:
        yield RunWarning(
            code="one_class_predicted",
            message=f"the {role} takes {1 - others / total:.1%} of the {unit} for "
            f"{classes[most]!r}, which is the class of {1 - true_others / total:.1%}: it has "
            "hardly learned the other classes; train longer or at another learning rate, or, where "
            "it learns from masks, let rare classes count more: training.class_weights auto",
        )


def _below_baseline(
    metric: str, student: Scores, baseline: Scores, advice: str
) -> Iterator[RunWarning]:
    interval = student.get(f"{metric}_interval")
    # Without an interval a point is taken for noise.
    upper = interval[1] if interval else student[metric] + 0.01
    if baseline[metric] > upper:
        yield RunWarning(
            code="below_baseline",
            message=f"the student's {metric} is {student[metric]:.1%}, and that of the same "
            f"student without the teacher {baseline[metric]:.1%}: distillation did harm here; "
            f"first try {advice}",
        )


def _still_improving(metric: str, looks: Sequence[tuple[int, float]]) -> Iterator[RunWarning]:
    last, score = looks[-1]
    before = max((value for epoch, value in looks if epoch <= 0.8 * last), default=score)
    gain = score - before
    if score == max(value for _, value in looks) and gain >= STILL_IMPROVING_POINTS:
        yield RunWarning(
            code="still_improving",
            message=f"the student's {metric} on the validation split still rose by {gain:.1%} in "
            f"the last fifth of its {last} epochs: more epochs are likely to help",
        )
