import numpy as np
import pytest

from workers.distill.tasks.comparisons import BoxComparison, MaskComparison


def boxes(truths: list[list[float]], detections: list[list[float]]) -> BoxComparison:
    return BoxComparison(np.array(truths).reshape(-1, 7), np.array(detections).reshape(-1, 6))


BOX = [0.0, 0, 0, 10, 10, 100, 0]
CROWD = [1.0, 20, 20, 30, 30, 100, 1]


class TestBoxes:
    def test_score_is_f1_of_shown_detections(self) -> None:
        right, wrong, faint = (
            [0, 0.9, 0, 0, 10, 9],
            [1, 0.8, 0, 0, 10, 10],
            [0, 0.2, 50, 50, 60, 60],
        )
        assert boxes([BOX], [right, wrong, faint]).score == pytest.approx(2 / 3)
        assert boxes([BOX], []).score == 0
        assert boxes([], [faint]).score is None

    def test_of_the_same_class_the_surer_one_is_right(self) -> None:
        unsure, other, sure = [0, 0.5, 0, 0, 10, 10], [1, 0.7, 0, 0, 10, 10], [0, 0.9, 0, 0, 10, 9]
        compared = boxes([BOX, CROWD], [unsure, other, sure, [1, 0.4, 21, 21, 29, 29]])
        assert [box.state for box in compared.detected_boxes] == [
            "wrong",
            "wrong",
            "right",
            "right",
        ]
        assert [box.state for box in compared.true_boxes] == ["right", "ignored"]


class TestMasks:
    def test_score_is_the_mean_over_classes_of_judged_pixels(self) -> None:
        true = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
        predicted = np.array([[0, 1, 1], [1, 2, 2]])
        assert MaskComparison(true, predicted, 3).score == pytest.approx((1 / 2 + 2 / 3) / 2)
        assert MaskComparison(np.full((1, 2), 255), np.zeros((1, 2), int), 3).score is None
