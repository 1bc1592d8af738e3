"""The report's sheet of test images: which ones, what is written, and how to read it."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from workers.distill.evaluation import examples
from workers.distill.functional import detection_metrics
from workers.distill.reporting import examples_figures
from workers.distill.tasks.comparisons import Comparison

DIGITS = 6
KINDS = {"worst": "among the worst", "typical": "typical"}
ABOUT_CHOICE = (
    "Of {candidates:,} test images, evenly spread over the split, those where the student's answer "
    "is least like the truth, then those whose {measure} is nearest to the median. "
)
ABOUT_DRAWING = (
    f"Boxes: detections with a score of {detection_metrics.SHOWN_SCORE:g} or more; a dashed one "
    "is wrong (no true box of its class has an IoU of 0.5 or more with it, or another detection "
    "took it), a dotted true one is a crowd or difficult. Masks: a colour for each class, grey "
    "where a pixel has none."
)


def numbers(chosen: examples.Examples) -> dict[str, Any]:  # Any: JSON
    """Return which images are shown, and how alike answers and truth are."""
    return {
        "candidates": chosen.candidates,
        "measure": _student(chosen.shown[0]).measure,
        "images": [
            {
                "test_image": example.place,
                "kind": example.kind,
                "scores": {
                    name: None if answer.score is None else round(answer.score, DIGITS)
                    for name, answer in example.answers.items()
                },
            }
            for example in chosen.shown
        ],
    }


def pictures(chosen: examples.Examples, classes: Sequence[str]) -> dict[str, tuple[Figure, str]]:
    """Return one sheet, with a word on how to read it."""
    measure = _student(chosen.shown[0]).measure
    rows = [
        examples_figures.SheetRow(
            "\n".join(
                [
                    f"test image {example.place}",
                    KINDS[example.kind],
                    *(_score(name, answer) for name, answer in example.answers.items()),
                ]
            ),
            example.image,
            example.answers,
        )
        for example in chosen.shown
    ]
    sheet = examples_figures.sheet(
        rows,
        classes,
        title="Test images, and what the networks say of them",
        about=f"Below each image's number: {measure} with the truth, as a share",
    )
    about = ABOUT_CHOICE.format(candidates=chosen.candidates, measure=measure) + ABOUT_DRAWING
    return {"examples": (sheet, about)}


def _student(example: examples.Example) -> Comparison:
    return example.answers[examples.STUDENT]


def _score(name: str, answer: Comparison) -> str:
    return f"{name} {'–' if answer.score is None else f'{answer.score:.2f}'}"
