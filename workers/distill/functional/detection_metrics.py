"""How good detections are: average precision as COCO and VOC define it, and kinds of errors.

Boxes are added batch by batch, in pixels of the original pictures. COCO's twelve figures come from
faster-coco-eval; what it does not offer (VOC's precision, intervals, agreement, kinds of errors)
is computed here from greedy matches.
Sources: Lin et al., ECCV 2014, arXiv 1405.0312 (COCO); Everingham et al., IJCV 2010 (VOC);
Hoiem et al., ECCV 2012 (kinds of errors).
"""

import functools
import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.distill.functional import bootstrap

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100
"""Detections of an image that count, those with the highest scores."""
SHOWN_SCORE = 0.3
"""Detections from this score on count for agreement and for kinds of errors."""
FAINT_IOU = 0.1
STATISTICS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""COCO's twelve figures, in its order; sizes are small < 32x32 <= medium < 96x96 <= large."""
ERRORS = ("localisation", "class", "duplicate", "background")

Rows = NDArray[np.float64]


@dataclass
class Image:
    """The boxes of one picture: true ones, detected ones, and the teacher's where there are any.

    `truths` are [n, 7]: class, x1, y1, x2, y2, area, flag (0 ordinary, 1 crowd, 2 difficult).
    `detections` and `teacher` are [m, 6]: class, score, x1, y1, x2, y2.
    """

    truths: Rows
    detections: Rows
    teacher: Rows | None = None


@dataclass(frozen=True)
class CocoScores:
    """COCO's figures, average precision by class, and precision at IoU 0.5 by class and recall.

    None stands where no true box is there to be found.
    """

    statistics: dict[str, float | None]
    by_class: list[float | None]
    precision50: list[NDArray[np.float64] | None]


@dataclass(frozen=True)
class Detections:
    """All images of a split for one network; what scores and report both need is computed once."""

    images: Sequence[Image]
    classes: int

    @functools.cached_property
    def coco(self) -> CocoScores:
        """Return what COCO's evaluation says."""
        return coco(self.images, self.classes)

    @functools.cached_property
    def errors(self) -> "ErrorCounts":
        """Return how many detections are right, and what the others are."""
        return count_errors(self.images)

    @property
    def boxes(self) -> int:
        """Return the number of true boxes that are neither a crowd nor difficult."""
        return sum(int((image.truths[:, 6] == 0).sum()) for image in self.images)


def coco(images: Sequence[Image], classes: int) -> CocoScores:
    """Return what COCO's evaluation says; crowds and difficult boxes are ignored as its crowds."""
    truths: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        for row in image.truths:
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": number,
                    "category_id": int(row[0]),
                    "bbox": _xywh(row[1:5]),
                    "area": float(row[5]),
                    "iscrowd": int(row[6] != 0),
                }
            )
        for row in image.detections:
            detections.append(
                {
                    "image_id": number,
                    "category_id": int(row[0]),
                    "bbox": _xywh(row[2:6]),
                    "score": float(row[1]),
                }
            )
    if not detections:
        return _without_detections(images, classes)
    # Imported here because it loads a native library, which a start should not pay.
    library: Any = importlib.import_module("faster_coco_eval")
    reference = library.COCO(
        {
            "images": [{"id": number} for number in range(len(images))],
            "annotations": truths,
            "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        }
    )
    evaluation = library.COCOeval_faster(reference, reference.loadRes(detections), "bbox")
    evaluation.run()
    # Axes: IoU, recall, class, size, most detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return CocoScores(
        {
            name: _known(value)
            for name, value in zip(STATISTICS, evaluation.stats[: len(STATISTICS)], strict=True)
        },
        [_known(_mean_known(precision[:, :, label])) for label in range(classes)],
        [
            None if (precision[0, :, label] < 0).all() else precision[0, :, label]
            for label in range(classes)
        ],
    )


def voc_ap50(images: Sequence[Image], classes: int) -> list[float | None]:
    """Return VOC's average precision at IoU 0.5 of each class: the area under the whole curve.

    A detection that matches a difficult box or a crowd counts neither as right nor as wrong.
    """
    result: list[float | None] = []
    for label in range(classes):
        matches = Matches.of(images, label, thresholds=np.array([0.5]), most=None, crowds=False)
        if matches.positives.sum() == 0:
            result.append(None)
            continue
        recall, precision = matches.curve(0, np.ones(len(images)))
        # Precision made monotonous from the right, then summed over the steps of recall.
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        steps = np.diff(recall, prepend=0.0)
        result.append(float((steps * envelope).sum()))
    return result


@dataclass(frozen=True)
class Matches:
    """Detections of one class over all images, by falling score, and whether each is right.

    `right` and `ignored` are [thresholds, detections]; `image` names the image of each detection,
    `positives` are the boxes to be found in each image.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    positives: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        images: Sequence[Image],
        label: int,
        *,
        thresholds: NDArray[np.float64],
        most: int | None,
        crowds: bool = True,
    ) -> "Matches":
        """Match the detections of a class greedily, each with the best box that is still free.

        `crowds` measures the overlap with ignored boxes as a share of the detection, as COCO does.
        """
        scores, places, right, ignored = [], [], [], []
        positives = np.zeros(len(images), dtype=np.int64)
        for number, image in enumerate(images):
            truths = image.truths[image.truths[:, 0] == label]
            positives[number] = (truths[:, 6] == 0).sum()
            detections = _of_class(image.detections, label, most)
            if len(detections) == 0:
                continue
            was_right, was_ignored = _match(detections, truths, thresholds, crowds=crowds)
            scores.append(detections[:, 1])
            places.append(np.full(len(detections), number))
            right.append(was_right)
            ignored.append(was_ignored)
        if not scores:
            none = np.zeros((len(thresholds), 0), dtype=bool)
            return cls(np.zeros(0, dtype=np.int64), none, none, positives)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        return cls(
            np.concatenate(places)[order],
            np.concatenate(right, axis=1)[:, order],
            np.concatenate(ignored, axis=1)[:, order],
            positives,
        )

    def curve(self, threshold: int, weights: NDArray[np.float64]) -> tuple[Rows, Rows]:
        """Return recall and precision after each detection, its image counted `weights` times."""
        weight = weights[self.image] * ~self.ignored[threshold]
        hits = np.cumsum(weight * self.right[threshold])
        all_of_them = np.cumsum(weight)
        wanted = float((weights * self.positives).sum())
        return hits / wanted, hits / np.maximum(all_of_them, np.finfo(float).eps)

    def average_precision(self, weights: NDArray[np.float64]) -> float | None:
        """Return COCO's average precision over thresholds and 101 recalls; None without a box."""
        if (weights * self.positives).sum() == 0:
            return None
        values = []
        for threshold in range(len(self.right)):
            recall, precision = self.curve(threshold, weights)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            places = np.searchsorted(recall, RECALLS, side="left")
            padded = np.append(envelope, 0.0)
            values.append(padded[np.minimum(places, len(envelope))].mean())
        return float(np.mean(values))


def ap_interval(
    images: Sequence[Image], classes: int, *, resamples: int = bootstrap.RESAMPLES
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of COCO's AP, by drawing images with replacement."""
    matches = [
        Matches.of(images, label, thresholds=IOU_THRESHOLDS, most=MOST_DETECTIONS)
        for label in range(classes)
    ]

    def ap(weights: NDArray[np.float64]) -> float | None:
        by_class = [one.average_precision(weights) for one in matches]
        known = [value for value in by_class if value is not None]
        return float(np.mean(known)) if known else None

    return bootstrap.interval(ap, len(images), resamples=resamples)


def agreement(images: Sequence[Image]) -> float | None:
    """Return F1 of detections against the teacher's: same class, IoU of 0.5 at least.

    Both from `SHOWN_SCORE` on. None where neither network shows anything, or there is no teacher.
    """
    shared = total = 0
    for image in images:
        if image.teacher is None:
            return None
        own, theirs = _shown(image.detections), _shown(image.teacher)
        total += len(own) + len(theirs)
        for label in np.unique(own[:, 0]):
            mine = own[own[:, 0] == label]
            boxes = theirs[theirs[:, 0] == label]
            # The teacher's boxes take the place of true ones, none of them ignored.
            truths = np.column_stack([boxes[:, 0], boxes[:, 2:6], np.zeros((len(boxes), 2))])
            both, _ = _match(mine, truths, np.array([0.5]), crowds=False)
            shared += int(both.sum())
    return 2 * shared / total if total else None


@dataclass
class ErrorCounts:
    """What detections from `SHOWN_SCORE` on are: right, or wrong in one of four ways.

    A wrong one is a `duplicate` (IoU of 0.5 with a box of its class that is taken), of the wrong
    `class` (IoU of 0.5 with a box of another class), badly placed (`localisation`: IoU of 0.1 with
    a box of its class), or `background`. `missed` are the boxes that nothing matches.
    """

    right: int = 0
    missed: int = 0
    wrong: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ERRORS, 0))


def count_errors(images: Sequence[Image]) -> ErrorCounts:
    """Return how many detections are right, wrong by kind, and how many boxes are missed."""
    counts = ErrorCounts()
    for image in images:
        detections = _shown(image.detections)
        matched = np.zeros(len(detections), dtype=bool)
        ignored = np.zeros(len(detections), dtype=bool)
        for label in np.unique(detections[:, 0]):
            rows = detections[:, 0] == label
            truths = image.truths[image.truths[:, 0] == label]
            right, skipped = _match(detections[rows], truths, np.array([0.5]), crowds=True)
            matched[rows], ignored[rows] = right[0], skipped[0]
        counts.right += int(matched.sum())
        counts.missed += int((image.truths[:, 6] == 0).sum() - matched.sum())
        overlaps = iou(detections[:, 2:6], image.truths[:, 1:5])
        same = detections[:, :1] == image.truths[None, :, 0]
        for row in np.flatnonzero(~matched & ~ignored):
            counts.wrong[_error_kind(overlaps[row], same[row])] += 1
    return counts


def iou(boxes: Rows, others: Rows, *, crowds: NDArray[np.bool_] | None = None) -> Rows:
    """Return intersection over union of [n, 4] with [m, 4] boxes (x1, y1, x2, y2) as [n, m].

    For `others` that are `crowds` it is the intersection's share of the first box.
    """
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(-1)
    own, their = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1) for b in (boxes, others))
    union = own[:, None] + their[None, :] - intersection
    if crowds is not None:
        union = np.where(crowds[None, :], own[:, None], union)
    shares: Rows = intersection / np.maximum(union, np.finfo(float).eps)
    return shares


def _match(
    detections: Rows, truths: Rows, thresholds: NDArray[np.float64], *, crowds: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which detections (of falling score) are right, and which count for nothing.

    Both [thresholds, detections]. A box of a crowd may be matched many times.
    """
    is_ignored = truths[:, 6] != 0
    # Ordinary boxes first, as in COCO: a crowd is only matched by what matches nothing else.
    order = np.argsort(is_ignored, kind="stable")
    truths, is_ignored = truths[order], is_ignored[order]
    overlaps = iou(detections[:, 2:6], truths[:, 1:5], crowds=is_ignored if crowds else None)
    right = np.zeros((len(thresholds), len(detections)), dtype=bool)
    skipped = np.zeros_like(right)
    if len(truths) == 0:
        return right, skipped
    needed = np.minimum(thresholds, 1 - 1e-10)[:, None]
    free = np.ones((len(thresholds), len(truths)), dtype=bool)
    levels = np.arange(len(thresholds))
    for row, overlap in enumerate(overlaps):
        reached = np.where(free & (overlap >= needed), overlap, -1.0)
        is_matched = np.zeros(len(thresholds), dtype=bool)
        for group in (~is_ignored, is_ignored):
            allowed = np.where(group, reached, -1.0)
            # COCO lets the later of two equal boxes win.
            best = len(truths) - 1 - allowed[:, ::-1].argmax(1)
            hit = (allowed[levels, best] >= 0) & ~is_matched
            is_matched |= hit
            if group is is_ignored:
                skipped[hit, row] = True
            else:
                right[hit, row] = True
                free[levels[hit], best[hit]] = False
    return right, skipped


def _of_class(detections: Rows, label: int, most: int | None) -> Rows:
    rows: Rows = detections[detections[:, 0] == label]
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    return rows if most is None else rows[:most]


def _shown(detections: Rows) -> Rows:
    rows = detections[detections[:, 1] >= SHOWN_SCORE]
    ordered: Rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    return ordered


def _error_kind(overlaps: Rows, same_class: NDArray[np.bool_]) -> str:
    own = overlaps[same_class].max(initial=0.0)
    other = overlaps[~same_class].max(initial=0.0)
    if own >= 0.5:
        return "duplicate"
    if other >= 0.5:
        return "class"
    return "localisation" if own >= FAINT_IOU else "background"


def _without_detections(images: Sequence[Image], classes: int) -> CocoScores:
    """Return zeros where there are true boxes: the library refuses an empty list of detections."""
    ordinary = np.concatenate([image.truths[image.truths[:, 6] == 0] for image in images])
    bounds = dict(zip(("small", "medium", "large"), _size_ranges(), strict=True))

    def score(name: str) -> float | None:
        low, high = bounds.get(name.rpartition("_")[2], (0.0, math.inf))
        areas = ordinary[:, 5]
        return 0.0 if ((areas >= low) & (areas <= high)).any() else None

    present = set(ordinary[:, 0].astype(int).tolist())
    return CocoScores(
        {name: score(name) for name in STATISTICS},
        [0.0 if label in present else None for label in range(classes)],
        [np.zeros(len(RECALLS)) if label in present else None for label in range(classes)],
    )


def _size_ranges() -> Iterator[tuple[float, float]]:
    yield 0.0, 32.0**2
    yield 32.0**2, 96.0**2
    yield 96.0**2, math.inf


def _xywh(box: Rows) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _known(value: float) -> float | None:
    return None if value < 0 else float(value)


def _mean_known(values: Rows) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
