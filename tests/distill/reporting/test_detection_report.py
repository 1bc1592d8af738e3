import numpy as np
import pytest

from tests.distill.functional.test_detection_metrics import NONE, NOTHING, TINY
from workers.distill.functional.detection_metrics import Detections, Image
from workers.distill.reporting import detection_report

CLASSES = ["cat", "dog", "nowhere"]
BLIND = [Image(image.truths, NOTHING) for image in TINY]
"""The same pictures, where a network found nothing."""


def assessed(**networks: list[Image]) -> dict[str, detection_report.Assessment]:
    return {
        name: detection_report.assess(Detections(images, 3)) for name, images in networks.items()
    }


class TestNumbers:
    def test_hold_what_the_pictures_show(self) -> None:
        told = detection_report.numbers(assessed(teacher=TINY, student=BLIND), CLASSES)
        assert (told["boxes"], told["classes"]) == (3, CLASSES)
        assert told["students_lowest_classes"] == ["cat", "dog"]
        teacher, student = told["networks"]["teacher"], told["networks"]["student"]
        # Of two cats one is found first, then comes an error, then the other cat.
        cat = [1.0] * 51 + [2 / 3] * 50
        assert teacher["ap50_by_class"] == [pytest.approx(np.mean(cat), abs=1e-6), 1.0, None]
        mean = [(value + 1) / 2 for value in cat]
        assert teacher["mean_precision_at_recalls"] == pytest.approx(mean, abs=1e-6)
        assert teacher["precision_at_recalls_by_class"][2] is None
        assert teacher["ap"] == pytest.approx(np.mean(teacher["ap_by_class"][:2]), abs=1e-6)
        assert teacher["detections"] == {
            "right": 3,
            "localisation": 0,
            "class": 0,
            "duplicate": 0,
            "background": 1,
            "missed": 0,
        }
        assert (student["ap"], student["ap_by_class"]) == (0.0, [0.0, 0.0, None])
        assert student["detections"]["missed"] == 3


class TestPictures:
    def test_are_one_of_each_question(self) -> None:
        found = detection_report.pictures(assessed(student=TINY, baseline=BLIND), CLASSES)
        assert list(found) == [
            *("precision-recall", "average-precision"),
            *("average-precision-by-size", "detection-errors"),
        ]
        assert all(about.endswith(".") for _, about in found.values())

    def test_name_the_classes_that_are_found_worst(self) -> None:
        images = [Image(TINY[0].truths, TINY[0].detections[:2]), TINY[1]]
        _, right = detection_report.pictures(assessed(student=images), CLASSES)["precision-recall"][
            0
        ].axes
        legend = right.get_legend()
        assert legend is not None
        names = [text.get_text() for text in legend.get_texts()]
        assert names == ["dog (0.0 %)", "cat (83.5 %)"]

    def test_of_one_class_show_it_once(self) -> None:
        alone = [Image(image.truths[image.truths[:, 0] == 0], image.detections) for image in TINY]
        picture, _ = detection_report.pictures(assessed(student=alone), CLASSES)["precision-recall"]
        assert len(picture.axes) == 1

    def test_without_true_boxes_are_the_errors_alone(self) -> None:
        empty = [Image(NONE, TINY[0].detections)]
        assert list(detection_report.pictures(assessed(student=empty), CLASSES)) == [
            "detection-errors"
        ]
