"""What the scores of a finished run tell its user to doubt or to try next."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from workers.distill.config.result import RunWarning

STILL_IMPROVING_POINTS = 0.01
"""A gain over the last fifth of the epochs, as a share, from which more epochs look worth it."""
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
) -> Iterator[RunWarning]:
    """Yield `below_baseline` and `still_improving`, where they hold.

    `metric` is the one that decides; scores are those of the test split, `history` is the
    student's, with one entry an epoch.
    """
    if student and baseline:
        yield from _below_baseline(metric, student, baseline)
    looks = [
        (int(entry["epoch"]), float(entry[f"validation/{metric}"]))
        for entry in history
        if f"validation/{metric}" in entry
    ]
    if len(looks) >= FEWEST_LOOKS:
        yield from _still_improving(metric, looks)


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


def _below_baseline(metric: str, student: Scores, baseline: Scores) -> Iterator[RunWarning]:
    interval = student.get(f"{metric}_interval")
    # Without an interval, as for mIoU, a point is taken for noise.
    upper = interval[1] if interval else student[metric] + 0.01
    if baseline[metric] > upper:
        yield RunWarning(
            code="below_baseline",
            message=f"the student's {metric} is {student[metric]:.1%}, and that of the same "
            f"student without the teacher {baseline[metric]:.1%}: distillation did harm here; "
            "first try a smaller weight of the method's distillation term, or method kd",
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
