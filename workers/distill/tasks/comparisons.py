"""What is drawn of one image: the truth, a network's answer, and how alike both are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer

from workers.distill.data import dataset
from workers.distill.functional import detection_metrics, segmentation_metrics


class Comparison(ABC):
    """Truth and answer for one image, on its stored pixels."""

    measure: ClassVar[str]
    """What `score` is, in words."""

    @property
    @abstractmethod
    def score(self) -> float | None:
        """Return how alike truth and answer are, 0 to 1; None where there is nothing to compare."""


@dataclass(frozen=True)
class Box:
    """One box to draw: class, score if it was detected, corners (x1, y1, x2, y2)."""

    label: int
    score: float | None
    corners: Float[np.ndarray, " 4"]
    state: Literal["right", "wrong", "ignored"]


@dataclass(frozen=True)
class BoxComparison(Comparison):
    """True boxes (class, x1, y1, x2, y2, area, flag), detections (class, score, x1, y1, x2, y2)."""

    truths: Float[np.ndarray, "n 7"]
    detections: Float[np.ndarray, "m 6"]

    measure = "F1 of boxes"

    @property
    def score(self) -> float | None:
        """Return F1 of class and place (IoU of 0.5) of the detections from `SHOWN_SCORE` on."""
        image = detection_metrics.Image(self.truths, self.detections)
        counts = detection_metrics.count_errors([image])
        total = 2 * counts.right + counts.missed + sum(counts.wrong.values())
        return 2 * counts.right / total if total else None

    @property
    def true_boxes(self) -> list[Box]:
        """Return the true boxes; crowds and difficult ones are `ignored`."""
        return [
            Box(int(row[0]), None, row[1:5], "ignored" if row[6] else "right")
            for row in self.truths
        ]

    @property
    def detected_boxes(self) -> list[Box]:
        """Return the detections with a score from `detection_metrics.SHOWN_SCORE` on.

        Those with the class and the place of a true box are `right`, also if it is a crowd or
        difficult.
        """
        shown = self.detections[self.detections[:, 1] >= detection_metrics.SHOWN_SCORE]
        return [
            Box(int(row[0]), float(row[1]), row[2:6], "right" if is_right else "wrong")
            for row, is_right in zip(shown, self._is_right(shown), strict=True)
        ]

    def _is_right(self, shown: Float[np.ndarray, "s 6"]) -> Bool[np.ndarray, " s"]:
        result = np.zeros(len(shown), dtype=bool)
        image = detection_metrics.Image(self.truths, shown)
        for label in np.unique(shown[:, 0]):
            matches = detection_metrics.Matches.of(
                [image], int(label), thresholds=np.array([0.5]), most=None
            )
            places = np.flatnonzero(shown[:, 0] == label)
            by_score = places[np.argsort(-shown[places, 1], kind="stable")]
            result[by_score] = matches.right[0] | matches.ignored[0]
        return result


@dataclass(frozen=True)
class MaskComparison(Comparison):
    """The class of each pixel; `dataset.IGNORE_INDEX` in the true mask stands for none."""

    truth: Integer[np.ndarray, "h w"]
    predicted: Integer[np.ndarray, "h w"]
    classes: int

    measure = "mean IoU"

    @property
    def score(self) -> float | None:
        """Return the mean IoU of the classes that one of both masks has."""
        is_judged = self.truth != dataset.IGNORE_INDEX
        if not is_judged.any():
            return None
        true, predicted = (
            mask[is_judged].astype(np.int64) for mask in (self.truth, self.predicted)
        )
        cells = np.bincount(true * self.classes + predicted, minlength=self.classes**2)
        confusion = torch.from_numpy(cells.reshape(self.classes, self.classes))
        return segmentation_metrics.miou(confusion)
