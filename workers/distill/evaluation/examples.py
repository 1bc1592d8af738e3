"""Which test images the report shows with the answers of the networks.

Of up to `CANDIDATES` test images, evenly spread over the split, those are chosen where the
student's answer is least like the truth, and as many of which it is as alike as it usually is. The
choice follows from the scores alone: the same student gives the same images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from workers.distill.evaluation import evaluate
from workers.distill.evaluation.evaluate import LabelledImages, Networks
from workers.distill.tasks.base import BaseTask
from workers.distill.tasks.comparisons import Comparison

CANDIDATES = 100
"""Test images that are looked at; a large split would take as long again as its evaluation."""
MOST_OF_A_KIND = 4
STUDENT = "student"


@dataclass(frozen=True)
class Example:
    """One test image with what each network says of it; `place` counts from 0."""

    place: int
    kind: Literal["worst", "typical"]
    image: UInt8[np.ndarray, "c h w"]
    answers: Mapping[str, Comparison]
    """By role, the student's among them."""


@dataclass(frozen=True)
class Examples:
    """The images that are shown, and of how many they were chosen."""

    candidates: int
    shown: Sequence[Example]


def collect(
    task: BaseTask, networks: Networks, split: LabelledImages, *, classes: int
) -> Examples | None:
    """Return the examples of a split, or None for a task whose report shows none.

    The student looks at all candidates, the other networks at the chosen images alone.
    """
    if "examples" not in task.report_topics:
        return None
    count = min(len(split.images), CANDIDATES)
    candidates = np.linspace(0, len(split.images) - 1, count).round().astype(int).tolist()
    alone = {STUDENT: networks[STUDENT]}
    scores = {
        place: answers[STUDENT].score
        for place, answers in _answers(task, alone, split, candidates, classes)
    }
    worst, typical = choose(scores)
    return Examples(
        count,
        [
            Example(
                place,
                "worst" if place in worst else "typical",
                split.images[place : place + 1][0].cpu().numpy(),
                answers,
            )
            for place, answers in _answers(task, networks, split, [*worst, *typical], classes)
        ],
    )


def choose(scores: Mapping[int, float | None]) -> tuple[list[int], list[int]]:
    """Return the images with the lowest scores, and those whose scores are nearest to the median.

    Of equal images the first ones are taken. Images where nothing can be compared are left out,
    unless there are no others.
    """
    known = {place: score for place, score in scores.items() if score is not None}
    if not known:
        return [], sorted(scores)[:MOST_OF_A_KIND]
    by_score = sorted(known, key=lambda place: (known[place], place))
    median = float(np.median(list(known.values())))
    usual = sorted(by_score[MOST_OF_A_KIND:], key=lambda place: (abs(known[place] - median), place))
    return by_score[:MOST_OF_A_KIND], sorted(usual[:MOST_OF_A_KIND])


def _answers(
    task: BaseTask, networks: Networks, split: LabelledImages, places: Sequence[int], classes: int
) -> Iterator[tuple[int, dict[str, Comparison]]]:
    """Return what the networks say of some images, in the order of their places."""
    batch_size = evaluate.batch_size_for(task, networks, split, classes)
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        rows = torch.tensor(some, device=split.images.device)
        images, targets = split.some_images(rows), split.labels[rows]
        with evaluate.inference(networks):
            compared = {
                role: task.comparisons(network.observe(preprocessor(images)), targets, classes)
                for role, (network, preprocessor) in networks.items()
            }
        for number, place in enumerate(some):
            yield place, {role: answers[number] for role, answers in compared.items()}
