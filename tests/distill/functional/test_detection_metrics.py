import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from workers.distill.functional import detection_metrics
from workers.distill.functional.detection_metrics import Image

NONE = np.zeros((0, 7))
NOTHING = np.zeros((0, 6))


def truth(label: int, x: float, y: float, w: float, h: float, flag: int = 0) -> list[float]:
    return [float(label), x, y, x + w, y + h, float(w * h), float(flag)]


def detection(label: int, score: float, x: float, y: float, w: float, h: float) -> list[float]:
    return [float(label), score, x, y, x + w, y + h]


# The case `coco_ap_tiny` of the guide.
TINY = [
    Image(
        np.array([truth(0, 10, 10, 40, 40), truth(1, 60, 60, 20, 20)]),
        np.array(
            [
                detection(0, 0.9, 12, 10, 40, 40),
                detection(0, 0.8, 50, 50, 30, 30),
                detection(1, 0.6, 60, 60, 20, 16),
            ]
        ),
    ),
    Image(np.array([truth(0, 5, 5, 50, 50)]), np.array([detection(0, 0.7, 5, 10, 50, 50)])),
]


def drawn(seed: int, *, images: int = 8, classes: int = 3, flagged: bool = True) -> list[Image]:
    """Return random scenes whose detections are mostly near their boxes."""
    draw = np.random.default_rng(seed)
    scenes = []
    for _ in range(images):
        count = int(draw.integers(0, 5))
        corner, size = draw.uniform(0, 150, (count, 2)), draw.uniform(4, 120, (count, 2))
        labels = draw.integers(0, classes, (count, 1))
        flags = draw.integers(0, 2, (count, 1)) * flagged
        truths = np.hstack([labels, corner, corner + size, size.prod(1, keepdims=True), flags])
        near = np.repeat(truths, 2, axis=0)
        boxes = near[:, 1:5] + draw.normal(0, 6, (len(near), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        wrong = draw.random((len(near), 1)) < 0.2
        label = np.where(wrong, draw.integers(0, classes, (len(near), 1)), near[:, :1])
        scenes.append(Image(truths, np.hstack([label, draw.random((len(near), 1)), boxes])))
    return scenes


def reference(images: list[Image], classes: int) -> NDArray[np.float64]:
    """Return the twelve figures of pycocotools."""
    truths = [
        {
            "image_id": number,
            "category_id": int(row[0]),
            "bbox": [row[1], row[2], row[3] - row[1], row[4] - row[2]],
            "area": row[5],
            "iscrowd": int(row[6] != 0),
        }
        for number, image in enumerate(images)
        for row in image.truths
    ]
    detections = [
        {
            "image_id": number,
            "category_id": int(row[0]),
            "bbox": [row[2], row[3], row[4] - row[2], row[5] - row[3]],
            "score": row[1],
        }
        for number, image in enumerate(images)
        for row in image.detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_index = COCO()
        truth_index.dataset = {
            "images": [{"id": number} for number in range(len(images))],
            "annotations": [{"id": at, **one} for at, one in enumerate(truths, start=1)],
            "categories": [{"id": label} for label in range(classes)],
        }
        truth_index.createIndex()
        evaluation = COCOeval(truth_index, truth_index.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


class TestCoco:
    def test_equals_the_guides_case(self) -> None:
        scores = detection_metrics.coco(TINY, 2).statistics
        expected = {
            "ap": 0.692739,
            "ap50": 0.917492,
            "ap75": 0.917492,
            "ap_small": 0.7,
            "ap_medium": 0.80099,
            "ar1": 0.75,
            "ar10": 0.75,
            "ar100": 0.75,
        }
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert scores["ap_large"] is None

    @pytest.mark.parametrize("seed", range(6))
    def test_equals_pycocotools(self, seed: int) -> None:
        images = drawn(seed)
        scores = detection_metrics.coco(images, 3)
        expected = [None if value < 0 else value for value in reference(images, 3)]
        assert list(scores.statistics.values()) == [
            value if value is None else pytest.approx(value, abs=1e-6) for value in expected
        ]

    def test_the_mean_over_classes_is_ap(self) -> None:
        scores = detection_metrics.coco(drawn(1), 3)
        known = [value for value in scores.by_class if value is not None]
        assert scores.statistics["ap"] == pytest.approx(np.mean(known))

    def test_without_detections_is_zero_where_there_are_boxes(self) -> None:
        images = [Image(image.truths, NOTHING) for image in TINY]
        scores = detection_metrics.coco(images, 3)
        assert scores.statistics["ap"] == scores.statistics["ap_medium"] == 0
        assert scores.statistics["ap_large"] is None
        assert scores.by_class == [0.0, 0.0, None]


class TestAveragePrecision:
    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_equals_the_librarys(self, seed: int) -> None:
        images = drawn(seed, images=5)
        expected = (
            detection_metrics.coco(images, 3).by_class
            if any(len(image.detections) for image in images)
            else [None] * 3
        )
        for label in range(3):
            matches = detection_metrics.Matches.of(
                images, label, thresholds=detection_metrics.IOU_THRESHOLDS, most=100
            )
            own = matches.average_precision(np.ones(len(images)))
            if expected[label] is not None:
                assert own == pytest.approx(expected[label], abs=1e-6)

    def test_an_image_drawn_twice_counts_as_two(self) -> None:
        images = drawn(3)
        twice = [*images, images[0], images[2]]
        weights = np.ones(len(images))
        weights[[0, 2]] = 2
        for label in range(3):
            once, more = (
                detection_metrics.Matches.of(
                    some, label, thresholds=detection_metrics.IOU_THRESHOLDS, most=None
                )
                for some in (images, twice)
            )
            assert once.average_precision(weights) == pytest.approx(
                more.average_precision(np.ones(len(twice)))
            )


class TestInterval:
    def test_holds_the_score_and_is_repeatable(self) -> None:
        images = drawn(5, images=20)
        low, high = detection_metrics.ap_interval(images, 3, resamples=50) or (1.0, 0.0)
        ap = detection_metrics.coco(images, 3).statistics["ap"]
        assert ap is not None
        assert low < ap < high
        assert detection_metrics.ap_interval(images, 3, resamples=50) == (low, high)

    def test_of_images_without_boxes_is_unknown(self) -> None:
        assert detection_metrics.ap_interval([Image(NONE, NOTHING)], 2, resamples=3) is None


class TestVoc:
    def test_is_the_area_under_the_whole_curve(self) -> None:
        # Right at recall 1/2, wrong, right at recall 1: precisions 1 and 2/3.
        images = [
            Image(
                np.array([truth(0, 0, 0, 10, 10), truth(0, 50, 50, 10, 10)]),
                np.array(
                    [
                        detection(0, 0.9, 0, 0, 10, 10),
                        detection(0, 0.8, 90, 90, 10, 10),
                        detection(0, 0.7, 50, 50, 10, 10),
                    ]
                ),
            )
        ]
        assert detection_metrics.voc_ap50(images, 2) == [pytest.approx(0.5 + 0.5 * 2 / 3), None]

    def test_a_difficult_box_counts_for_nothing(self) -> None:
        boxes = [truth(0, 0, 0, 10, 10), truth(0, 50, 50, 10, 10, flag=2)]
        hit = detection(0, 0.5, 0, 0, 10, 10)
        hard = detection(0, 0.9, 50, 50, 10, 10)
        for detections in ([hit], [hard, hit]):
            images = [Image(np.array(boxes), np.array(detections))]
            assert detection_metrics.voc_ap50(images, 1) == [1.0]


class TestAgreement:
    def test_is_one_with_itself_and_zero_with_another(self) -> None:
        boxes = TINY[0].detections
        assert detection_metrics.agreement([Image(NONE, boxes, boxes)]) == 1
        far = boxes + np.array([0, 0, 500, 500, 500, 500])
        assert detection_metrics.agreement([Image(NONE, boxes, far)]) == 0

    def test_counts_only_the_same_class_and_what_is_shown(self) -> None:
        own = np.array([detection(0, 0.9, 0, 0, 9, 9), detection(1, 0.1, 50, 50, 9, 9)])
        other = np.array([detection(1, 0.9, 0, 0, 9, 9)])
        assert detection_metrics.agreement([Image(NONE, own, other)]) == 0
        assert detection_metrics.agreement([Image(NONE, own, own[:1])]) == 1
        assert detection_metrics.agreement([Image(NONE, own)]) is None


class TestErrors:
    def test_are_told_apart(self) -> None:
        truths = np.array([truth(0, 0, 0, 20, 20), truth(1, 100, 100, 20, 20)])
        detections = np.array(
            [
                detection(0, 0.9, 0, 0, 20, 20),
                detection(0, 0.8, 1, 0, 20, 20),
                detection(0, 0.8, 12, 0, 20, 20),
                detection(0, 0.7, 100, 100, 20, 20),
                detection(0, 0.6, 200, 200, 20, 20),
                detection(1, 0.2, 100, 100, 20, 20),
            ]
        )
        counts = detection_metrics.count_errors([Image(truths, detections)])
        assert counts.right == 1
        assert counts.missed == 1
        assert counts.wrong == {"localisation": 1, "class": 1, "duplicate": 1, "background": 1}

    def test_on_a_crowd_are_none(self) -> None:
        truths = np.array([truth(0, 0, 0, 100, 100, flag=1)])
        detections = np.array([detection(0, 0.9, x, 0, 10, 10) for x in (0, 20, 40)])
        counts = detection_metrics.count_errors([Image(truths, detections)])
        assert (counts.right, counts.missed, sum(counts.wrong.values())) == (0, 0, 0)
