"""One sentence on what a finished run is worth: the last line of command line and card.

The words are those of a study's leaderboard: a student beats or misses another only where the 95 %
interval of the difference leaves out 0, and matches it else.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from workers.distill.config.result import RunResult

Scores: TypeAlias = Mapping[str, Any]  # of one network, by metric; each task has its own
NAMES = {"accuracy": "accuracy", "miou": "mean IoU", "ap": "AP", "knn": "k-NN accuracy"}
AGREEMENTS = {
    "knn": "Of the nearest images of a test image, {student:.1%} are the same for the student and "
    "for its teacher{baseline}: no test image has a label, so that nothing tells what either "
    "embedding is worth.",
}
"""What is said where the teacher's answers are the labels, by metric; else that of accuracy."""


def sentence(metric: str, result: RunResult) -> str:
    """Return what the student reached, beside its teacher and its baseline.

    `metric` is the one that decides.
    """
    student, name = result.scores.get("student"), NAMES.get(metric, metric)
    if student is None:
        return "Nothing is known of the student: there was no data set to evaluate it on."
    if student[metric] is None:
        return f"The test split has nothing to measure the student's {name} by."
    if result.labels is not None and result.labels.scored_by.get("test") == "teacher":
        if metric in AGREEMENTS:
            before = result.scores.get("baseline")
            beside = "" if before is None else f" (of the untrained student {before[metric]:.1%})"
            return AGREEMENTS[metric].format(student=student[metric], baseline=beside)
        return (
            f"The student agrees with its teacher on {student[metric]:.1%} of the test split, of "
            "which no image has a label: nothing tells how often either is right."
        )
    teacher, baseline = result.scores.get("teacher"), result.scores.get("baseline")
    reached = f"The student reaches {student[metric]:.1%} {name} on the test split"
    if teacher is not None and teacher[metric] is not None:
        reached += f" (its teacher {teacher[metric]:.1%})"
    if baseline is None or baseline[metric] is None:
        alone = "reached before training" if metric in AGREEMENTS else "would reach alone"
        return f"{reached}; what it {alone} was not measured (baseline: true does that)."
    return f"{reached}; {_compared(metric, student, baseline, _other(metric, result))}."


def _other(metric: str, result: RunResult) -> str:
    if metric in AGREEMENTS:
        return "the same student before training"
    if result.synthesis is not None:
        return "the same student trained on noise"
    if result.federation is not None:
        return "the best of the clients, each trained alone"
    return "the same student trained without a teacher"


def _compared(metric: str, student: Scores, baseline: Scores, other: str) -> str:
    difference = 100 * (student[metric] - baseline[metric])
    half = _half_width(metric, student, baseline)
    if half is None:
        return (
            f"{other} reaches {baseline[metric]:.1%}, and one run does not tell whether "
            f"{difference:+.1f} points are chance"
        )
    interval = f"95 % interval {difference - half:+.1f} to {difference + half:+.1f}"
    if abs(difference) <= half:
        return f"it matches {other}: {difference:+.1f} points ({interval}) may be chance"
    verb = "beats" if difference > 0 else "misses"
    return f"it {verb} {other} by {abs(difference):.1f} points ({interval})"


def _half_width(metric: str, *scores: Scores) -> float | None:
    """Return half the 95 % interval of a difference in points, or None without its intervals.

    Both scores come from the same images, which makes their difference surer than this says.
    """
    intervals = [score.get(f"{metric}_interval") for score in scores]
    halves = [(given[1] - given[0]) / 2 for given in intervals if given is not None]
    return 100 * math.hypot(*halves) if len(halves) == len(scores) else None
