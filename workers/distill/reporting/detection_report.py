"""The report on detections: numbers for JSON, and pictures with how to read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from workers.distill.functional import detection_metrics
from workers.distill.reporting import detection_figures, figures

DIGITS = 6
LOWEST_CLASSES = 5
SIZES = {
    "ap": "all sizes",
    "ap_small": "small\n(under 32² pixels)",
    "ap_medium": "medium\n(32² to 96²)",
    "ap_large": "large\n(96² and more)",
}
ERROR_LABELS = {
    "right": "right",
    "localisation": "localisation:\nright class, badly placed",
    "class": "class:\nwell placed, another class",
    "duplicate": "duplicate:\nof a box found already",
    "background": "background:\nnothing is there",
    "missed": "missed:\ntrue box not found",
}
ABOUT_CURVES = (
    "Detections are accepted by falling score: recall is the share of true boxes that are found, "
    "precision the share of detections that are right, at an IoU of 0.5 or more. The area under a "
    "curve is AP50. Left, the mean over classes at each recall; right, the student's classes with "
    "the lowest AP50."
)
ABOUT_CLASSES = (
    "AP is the mean precision over recalls and over IoU from 0.5 to 0.95, as COCO defines it. "
    "Classes are sorted by the student's; those without a true box have no bar, and are left out "
    "of the mean."
)
ABOUT_SIZES = (
    "AP by the area of the true boxes in pixels of the original pictures, as COCO divides them. A "
    "size without a true box has no bar."
)
ABOUT_ERRORS = (
    f"Detections with a score of {detection_metrics.SHOWN_SCORE:g} or more, each counted once. A "
    "wrong one has an IoU of 0.5 or more with a box of its class that is taken (duplicate) or of "
    "another class (class), of 0.1 or more with a box of its class (localisation), or is "
    "background. Crowds and difficult boxes count nowhere."
)
Pictures = dict[str, tuple[Figure, str]]
"""By file stem, with a word on how to read each."""


@dataclass(frozen=True)
class Assessment:
    """What the report says of one network's detections on the test split."""

    scores: detection_metrics.CocoScores
    errors: dict[str, int]
    """By kind, in the order of `ERROR_LABELS`."""
    boxes: int
    """True boxes that are neither a crowd nor difficult."""

    @property
    def average_precision(self) -> Float[np.ndarray, " C"]:
        """Return AP by class; NaN of classes without a true box."""
        return np.array(self.scores.by_class, dtype=np.float64)

    @property
    def average_precision50(self) -> Float[np.ndarray, " C"]:
        """Return AP50 by class; NaN of classes without a true box."""
        curves = self.scores.precision50
        return np.array([np.nan if curve is None else curve.mean() for curve in curves])

    @property
    def mean_curve(self) -> Float[np.ndarray, " R"] | None:
        """Return precision by recall, mean over classes; None without any true box."""
        known = [curve for curve in self.scores.precision50 if curve is not None]
        return np.mean(known, axis=0) if known else None


def assess(detections: detection_metrics.Detections) -> Assessment:
    """Return what one network's detections are worth."""
    counts = detections.errors
    return Assessment(
        detections.coco,
        {"right": counts.right, **counts.wrong, "missed": counts.missed},
        detections.boxes,
    )


def numbers(assessed: Mapping[str, Assessment], classes: Sequence[str]) -> dict[str, Any]:
    """Return everything that the pictures show."""
    return {
        "classes": list(classes),
        "boxes": assessed["student"].boxes,
        "recalls": _rounded(detection_metrics.RECALLS),
        "lowest_score_of_errors": detection_metrics.SHOWN_SCORE,
        "networks": {name: _network_numbers(one) for name, one in assessed.items()},
        "students_lowest_classes": [classes[place] for place in lowest(assessed["student"])],
    }


def pictures(assessed: Mapping[str, Assessment], classes: Sequence[str]) -> Pictures:
    """Return what there is to see: without any true box the errors alone."""
    shown: Pictures = {}
    curves = {name: one.mean_curve for name, one in assessed.items()}
    if all(curve is not None for curve in curves.values()):
        shown["precision-recall"] = (_curves(assessed, classes), ABOUT_CURVES)
        shown["average-precision"] = (
            figures.class_bars(
                {name: one.average_precision for name, one in assessed.items()},
                classes,
                title="Average precision of each class",
                values_name="AP on the test split (%)",
            ),
            ABOUT_CLASSES,
        )
        shown["average-precision-by-size"] = (
            detection_figures.size_bars(
                {
                    name: [one.scores.statistics[key] for key in SIZES]
                    for name, one in assessed.items()
                },
                list(SIZES.values()),
            ),
            ABOUT_SIZES,
        )
    shown["detection-errors"] = (
        detection_figures.error_bars(
            {name: list(one.errors.values()) for name, one in assessed.items()},
            [ERROR_LABELS[kind] for kind in assessed["student"].errors],
            title=f"What the networks' detections are, for {assessed['student'].boxes:,} true "
            "boxes",
        ),
        ABOUT_ERRORS,
    )
    return shown


def lowest(student: Assessment) -> list[int]:
    """Return the classes with the student's lowest AP50, the lowest first."""
    values = student.average_precision50
    order = [int(place) for place in np.argsort(values, kind="stable")]
    return [place for place in order if np.isfinite(values[place])][:LOWEST_CLASSES]


def _curves(assessed: Mapping[str, Assessment], classes: Sequence[str]) -> Figure:
    student = assessed["student"]
    values = student.average_precision50
    several = np.isfinite(values).sum() > 1
    return detection_figures.precision_recall(
        detection_metrics.RECALLS,
        {name: one.mean_curve for name, one in assessed.items() if one.mean_curve is not None},
        [
            (classes[place], curve)
            for place in lowest(student)
            if several and (curve := student.scores.precision50[place]) is not None
        ],
    )


def _network_numbers(one: Assessment) -> dict[str, Any]:
    curve = one.mean_curve
    return {
        **{
            name: None if value is None else round(value, DIGITS)
            for name, value in one.scores.statistics.items()
        },
        "ap_by_class": _known(one.average_precision),
        "ap50_by_class": _known(one.average_precision50),
        "mean_precision_at_recalls": None if curve is None else _rounded(curve),
        "precision_at_recalls_by_class": [
            None if known is None else _rounded(known) for known in one.scores.precision50
        ],
        "detections": one.errors,
    }


def _known(values: Float[np.ndarray, " C"]) -> list[float | None]:
    return [round(float(value), DIGITS) if np.isfinite(value) else None for value in values]


def _rounded(values: Float[np.ndarray, " R"]) -> list[float]:
    shown: list[float] = np.round(values, DIGITS).tolist()
    return shown
