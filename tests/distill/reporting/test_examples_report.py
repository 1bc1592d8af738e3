import numpy as np

from tests.distill.functional.test_detection_metrics import NOTHING, TINY
from workers.distill.config.report import SHOW_IMAGES
from workers.distill.evaluation.examples import Example, Examples
from workers.distill.reporting import examples_report
from workers.distill.tasks.comparisons import BoxComparison


def some_examples() -> Examples:
    answers = {
        "teacher": BoxComparison(TINY[0].truths, TINY[0].detections),
        "student": BoxComparison(TINY[0].truths, NOTHING),
    }
    empty = {name: BoxComparison(NOTHING[:, [0] * 7], NOTHING) for name in answers}
    image = np.zeros((1, 100, 100), np.uint8)
    return Examples(20, [Example(7, "worst", image, answers), Example(9, "typical", image, empty)])


class TestNumbers:
    def test_say_which_images_are_shown(self) -> None:
        told = examples_report.numbers(some_examples())
        assert (told["candidates"], told["measure"]) == (20, "F1 of boxes")
        assert told["images"] == [
            {"test_image": 7, "kind": "worst", "scores": {"teacher": 0.8, "student": 0.0}},
            {"test_image": 9, "kind": "typical", "scores": {"teacher": None, "student": None}},
        ]


class TestPictures:
    def test_are_one_sheet_with_the_choice_in_words(self) -> None:
        found = examples_report.pictures(some_examples(), ["cat", "dog"])
        # Else an erasure of the data set would leave them.
        assert set(found) == SHOW_IMAGES
        (figure, about) = found["examples"]
        assert about.startswith("Of 20 test images")
        assert about.endswith(".")
        labels = {text.get_text() for text in figure.texts}
        assert "test image 7\namong the worst\nteacher 0.80\nstudent 0.00" in labels
        assert "test image 9\ntypical\nteacher –\nstudent –" in labels
