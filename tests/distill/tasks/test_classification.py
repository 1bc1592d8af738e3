import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from torch import Tensor, nn

from tests.distill.data.test_dataset import a_record, some_splits
from workers.distill import errors
from workers.distill.config import training
from workers.distill.data import dataset
from workers.distill.data.types import Batch, Mixed
from workers.distill.networks.interface import Features
from workers.distill.tasks import classification
from workers.distill.tasks.catalog import TASKS

TASK = TASKS["classification"]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 4, generator=GENERATOR) * 2
LABELS = torch.randint(0, 4, (60,), generator=GENERATOR)
OUTPUT, TEACHER_OUT = Features.from_logits(LOGITS), Features.from_logits(LOGITS.flip(0))


def rows(count: int = 12, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, classes, generator=generator), torch.arange(count) % classes


class TestScores:
    def test_accuracy_is_the_share_of_right_answers(self) -> None:
        logits, labels = rows()
        wanted = sum(
            int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)
        )
        assert classification.scores(logits, labels)["accuracy"] == wanted / 12

    def test_calibration_error_is_the_gap_between_confidence_and_accuracy_by_bin(self) -> None:
        logits, labels = rows(200)
        confidence, answer = logits.softmax(1).max(1)
        right = (answer == labels).double()
        bins = (confidence * 15).ceil().long() - 1
        wanted = sum(
            float((bins == number).double().mean())
            * abs(float(confidence[bins == number].mean() - right[bins == number].mean()))
            for number in bins.unique().tolist()
        )
        # The library sums in float32.
        assert classification.scores(logits, labels)["ece"] == pytest.approx(wanted, rel=1e-4)

    def test_loss_is_the_mean_negative_log_likelihood(self) -> None:
        logits, labels = rows()
        wanted = -sum(
            math.log(float(row.double().softmax(0)[label]))
            for row, label in zip(logits, labels.tolist(), strict=True)
        )
        assert classification.scores(logits, labels)["loss"] == pytest.approx(wanted / 12, rel=1e-9)

    def test_agreement_counts_equal_answers_right_or_wrong(self) -> None:
        logits, labels = rows()
        teacher = logits.clone()
        teacher[0] = -teacher[0]
        assert classification.scores(logits, labels, teacher)["agreement"] == pytest.approx(11 / 12)
        assert "agreement" not in classification.scores(logits, labels)

    @pytest.mark.parametrize("classes", [2, 3])
    def test_all_right_and_all_wrong_are_fine(self, classes: int) -> None:
        labels = torch.arange(6) % classes
        right = nn.functional.one_hot(labels, classes).float()
        assert classification.scores(right, labels)["accuracy"] == 1
        assert classification.scores(-right, labels)["accuracy"] == 0


class TestWilson:
    def test_equals_the_textbooks_value(self) -> None:
        # 80 of 100, from the closed form by hand.
        low, high = classification.wilson_interval(80, 100)
        assert (low, high) == pytest.approx((0.711170, 0.866633), abs=1e-6)

    @pytest.mark.parametrize("correct", [0, 1, 9, 10])
    def test_holds_the_share_and_stays_within_zero_and_one(self, correct: int) -> None:
        low, high = classification.wilson_interval(correct, 10)
        assert 0 <= low <= correct / 10 <= high <= 1
        assert high - low > 0.1


class TestConfusion:
    def test_equals_another_librarys(self) -> None:
        from sklearn import metrics  # takes every process that collects tests a second

        expected = metrics.confusion_matrix(LABELS, LOGITS.argmax(1), labels=range(4))
        assert np.array_equal(classification.confusion(LOGITS, LABELS).numpy(), expected)

    def test_has_a_row_for_a_class_without_images(self) -> None:
        counts = classification.confusion(LOGITS[:3], torch.zeros(3, dtype=torch.int64))
        assert counts.shape == (4, 4)
        assert counts[1:].sum() == 0


class TestMetrics:
    def test_of_batches_are_those_of_the_split(self) -> None:
        whole, parts = (TASK.metrics(4, torch.device("cpu")) for _ in range(2))
        whole.update(OUTPUT, LABELS, TEACHER_OUT)
        for rows in (slice(0, 7), slice(7, 60)):
            parts.update(
                Features.from_logits(LOGITS[rows]),
                LABELS[rows],
                Features.from_logits(LOGITS.flip(0)[rows]),
            )
        assert parts.test_scores() == whole.test_scores()
        assert parts.validation_scores() == whole.validation_scores()
        scores = parts.validation_scores()
        assert list(scores) == ["accuracy", "loss"]
        assert scores["accuracy"] == parts.correct / 60
        counts = parts.confusion()
        assert counts is not None
        assert int(counts.trace()) == parts.correct


class TestLoss:
    def test_of_mixed_images_counts_both_labels_by_their_shares(self) -> None:
        share = torch.rand(60, generator=torch.Generator().manual_seed(1))
        others = LABELS.flip(0)
        images, index = torch.zeros(60, 1, 1, 1), torch.arange(60)
        plain = Batch(images, LABELS, index)
        mixed = Batch(images, LABELS, index, mixed=Mixed(others, share))
        log_probabilities = LOGITS.log_softmax(1)
        first, second = (-log_probabilities[index, labels] for labels in (LABELS, others))
        assert float(TASK.loss(OUTPUT, plain)) == pytest.approx(float(first.mean()), rel=1e-5)
        expected = (share * first + (1 - share) * second).mean()
        assert float(TASK.loss(OUTPUT, mixed)) == pytest.approx(float(expected), rel=1e-5)


class TestBinaryCrossEntropy:
    @pytest.mark.parametrize("threshold", [None, 0.2, 0.5])
    @pytest.mark.parametrize("is_mixed", [False, True])
    def test_is_that_of_timm(self, threshold: float | None, is_mixed: bool) -> None:
        share = torch.linspace(0.05, 0.95, 60)
        targets, mixed = nn.functional.one_hot(LABELS, 4).float(), None
        if is_mixed:
            other = LABELS.flip(0)
            targets = share[:, None] * targets
            targets = targets + (1 - share)[:, None] * nn.functional.one_hot(other, 4)
            mixed = Mixed(other, share)
        theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)(LOGITS, targets)
        ours = TASK.loss(OUTPUT, self.batch(LABELS, threshold, mixed=mixed))
        assert torch.allclose(ours, theirs, rtol=1e-6)

    def test_leaves_out_what_has_no_label(self) -> None:
        labels, other = LABELS.clone(), LABELS.flip(0)
        labels[:20] = dataset.UNLABELLED
        other[10:30] = dataset.UNLABELLED
        share = torch.full((60,), 0.75)
        mixed = Mixed(other, share)
        found = TASK.loss(OUTPUT, self.batch(labels, 0.2, mixed=mixed, has_all_labels=False))
        total, counted = 0.0, 0.0
        for row in range(60):
            shares = {int(labels[row]): 0.75, int(other[row]): 0.25}
            if labels[row] == other[row]:
                shares = {int(labels[row]): 1.0}
            known = {label: part for label, part in shares.items() if label >= 0}
            weight = sum(known.values())
            if weight:
                target = torch.tensor([float(label in known) for label in range(4)])
                loss = nn.functional.binary_cross_entropy_with_logits(LOGITS[row], target)
                total, counted = total + weight * float(loss), counted + weight
        assert float(found) == pytest.approx(total / counted, rel=1e-5)

    def test_of_a_batch_without_labels_is_0(self) -> None:
        nothing = torch.full((60,), dataset.UNLABELLED)
        assert float(TASK.loss(OUTPUT, self.batch(nothing, None, has_all_labels=False))) == 0

    def batch(self, labels: Tensor, threshold: float | None, **fields: Any) -> Batch:
        asked = training.BinaryCrossEntropy(target_threshold=threshold)
        pictures = torch.zeros(60, 1, 1, 1, dtype=torch.uint8)
        return Batch(pictures, labels, torch.arange(60), task_loss=asked, **fields)


class TestTargets:
    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            (torch.zeros(4, 1, dtype=torch.int64), r"should be int64 \[4\]"),
            (torch.zeros(4), "should be int64"),
            (torch.tensor([0, 1, 2, 0]), "0 to 2, but there are 2 classes"),
            (torch.tensor([0, 1, -1, 0]), "-1 to 1"),
        ],
    )
    def test_that_are_not_as_recorded_are_a_bad_data_set(
        self, tmp_path: Path, labels: Tensor, words: str
    ) -> None:
        splits = some_splits()
        dataset.write(tmp_path, a_record(), {**splits, "train": (splits["train"][0], labels)})
        with pytest.raises(errors.BadDataset, match=words):
            TASK.read_split(dataset.load(tmp_path), "train")


class TestLabelNoise:
    @given(share=st.floats(0, 1), seed=st.integers(0, 5))
    def test_replaces_exactly_this_share_by_another_class(self, share: float, seed: int) -> None:
        labels = torch.arange(200) % 7
        noisy = TASK.add_label_noise(labels, share, classes=7, seed=seed)
        assert int((noisy != labels).sum()) == round(share * 200)
        assert 0 <= int(noisy.min()) <= int(noisy.max()) < 7

    def test_is_fixed_by_the_seed_and_spreads_over_all_other_classes(self) -> None:
        labels = torch.zeros(3000, dtype=torch.int64)
        one, again, other = (
            TASK.add_label_noise(labels, 1.0, classes=4, seed=seed) for seed in (1, 1, 2)
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert one.bincount().tolist() == pytest.approx([0, 1000, 1000, 1000], abs=120)

    def test_needs_a_second_class(self) -> None:
        with pytest.raises(errors.BadRecipe, match="second class"):
            TASK.add_label_noise(torch.zeros(4, dtype=torch.int64), 0.5, classes=1, seed=0)


class TestEvaluationBatch:
    @pytest.mark.parametrize(
        ("side", "expected"), [(8, 256), (224, 256), (448, 64), (1024, 12), (8192, 1)]
    )
    def test_holds_fewer_images_where_they_are_large(self, side: int, expected: int) -> None:
        assert TASKS["classification"].evaluation_batch_size(10, side * side) == expected
