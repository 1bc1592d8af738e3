import numpy as np
import pytest
import torch

from tests.distill.evaluation.test_evaluate import CPU, a_dense_network, a_view, masks
from workers.distill.evaluation import evaluate, examples
from workers.distill.tasks import segmentation
from workers.distill.tasks.catalog import TASKS
from workers.distill.tasks.comparisons import MaskComparison


class TestChoose:
    def test_takes_the_worst_and_those_near_the_median(self) -> None:
        scores = {place: place / 20 for place in range(21)}
        assert examples.choose(scores) == ([0, 1, 2, 3], [8, 9, 10, 11])

    def test_takes_the_first_of_equal_images(self) -> None:
        assert examples.choose(dict.fromkeys(range(12), 1.0)) == ([0, 1, 2, 3], [4, 5, 6, 7])

    def test_leaves_out_images_where_nothing_can_be_compared(self) -> None:
        assert examples.choose({0: None, 1: 0.5, 2: None}) == ([1], [])
        assert examples.choose(dict.fromkeys(range(6))) == ([], [0, 1, 2, 3])


class TestCollect:
    def test_shows_the_answers_of_all_networks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, truth = masks(12)
        networks = {
            "teacher": (a_dense_network(2).train(), a_view()),
            "student": (a_dense_network(1), a_view()),
        }
        split = evaluate.LabelledImages(images, truth)
        # Two images at a time.
        monkeypatch.setattr(segmentation, "BATCH_LOGITS", 2 * 2 * 64)
        found = examples.collect(TASKS["segmentation"], networks, split, classes=2)
        assert found is not None
        assert found.candidates == 12
        assert [example.kind for example in found.shown] == ["worst"] * 4 + ["typical"] * 4
        assert networks["teacher"][0].training
        answers = [example.answers["student"].score for example in found.shown]
        scores = [score for score in answers if score is not None]
        assert len(scores) == 8
        assert max(scores[:4]) <= min(scores[4:])
        for example in found.shown:
            assert list(example.answers) == ["teacher", "student"]
            np.testing.assert_array_equal(example.image, images[example.place])
            answer = example.answers["student"]
            assert isinstance(answer, MaskComparison)
            np.testing.assert_array_equal(answer.truth, truth[example.place])
            with torch.inference_mode():
                logits = networks["student"][0].eval()(a_view()(images[[example.place]]))
            np.testing.assert_array_equal(answer.predicted, logits.argmax(1)[0])

    def test_looks_at_a_part_of_a_large_split(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(examples, "CANDIDATES", 3)
        images, truth = masks(9)
        split = evaluate.LabelledImages(images, truth)
        networks = {"student": (a_dense_network(1), a_view())}
        found = examples.collect(TASKS["segmentation"], networks, split, classes=2)
        assert found is not None
        assert {example.place for example in found.shown} == {0, 4, 8}

    def test_of_a_task_that_shows_none_is_nothing(self) -> None:
        split = evaluate.LabelledImages(
            torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, device=CPU)
        )
        assert examples.collect(TASKS["classification"], {}, split, classes=2) is None
