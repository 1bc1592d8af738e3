"""Counts of pixels give the published scores, however the split is cut into batches."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.distill.golden import CASES, DENSE
from workers.distill.functional import bootstrap, segmentation_metrics

CPU = torch.device("cpu")
CASE = CASES.case("seg", "miou")


def decided(answers: Tensor, classes: int = 3) -> Tensor:
    """Return logits that are highest at the answers."""
    return functional.one_hot(answers, classes).movedim(-1, 1).double()


def the_case() -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(CASE["pred"]).reshape(1, 2, 4),
        torch.tensor(CASE["gt"], dtype=torch.uint8).reshape(1, 2, 4),
    )


def scene(seed: int, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, 5, 7, generator=draw)
    teacher_logits = torch.randn(count, 4, 5, 7, generator=draw)
    masks = torch.randint(0, 5, (count, 5, 7), generator=draw)
    masks[masks == 4] = 255
    return logits, teacher_logits, masks


class TestCounts:
    def test_equals_the_guides_case(self) -> None:
        answers, masks = the_case()
        counts = segmentation_metrics.Counts(3, CPU, 255)
        counts.add(decided(answers), masks)
        assert counts.confusion.tolist() == CASE["confusion[gt][pred]"]
        assert segmentation_metrics.iou(counts.confusion) == pytest.approx(
            CASE["iou"], abs=CASES.tolerance
        )
        assert segmentation_metrics.miou(counts.confusion) == pytest.approx(
            CASE["miou"], abs=CASES.tolerance
        )
        assert segmentation_metrics.accuracy(counts.confusion) == pytest.approx(
            CASE["pixel_acc"], abs=CASES.tolerance
        )
        assert CASE["ignore"] == 255

    def test_batches_add_up(self) -> None:
        logits, teacher_logits, masks = scene(0)
        whole, parts = (
            segmentation_metrics.Counts(4, CPU, 255),
            segmentation_metrics.Counts(4, CPU, 255),
        )
        whole.add(logits, masks, teacher_logits)
        for first in (0, 1, 4):
            here = slice(first, {0: 1, 1: 4, 4: 6}[first])
            parts.add(logits[here], masks[here], teacher_logits[here])
        assert torch.equal(whole.confusion, parts.confusion)
        assert whole.agreement == parts.agreement
        assert whole.loss == pytest.approx(parts.loss, rel=1e-12)
        assert whole.miou_interval() == parts.miou_interval()

    def test_loss_is_the_mean_over_judged_pixels(self) -> None:
        logits, _, masks = scene(1)
        counts = segmentation_metrics.Counts(4, CPU, 255)
        counts.add(logits, masks)
        likely = logits.double().log_softmax(1).numpy()
        judged = np.argwhere(masks.numpy() != 255)
        losses = [-likely[n, int(masks[n, y, x]), y, x] for n, y, x in judged]
        # Each pixel's loss is a float32.
        assert counts.loss == pytest.approx(np.mean(losses), rel=1e-6)

    def test_agreement_counts_equal_answers_on_judged_pixels(self) -> None:
        logits, teacher_logits, masks = scene(2)
        counts = segmentation_metrics.Counts(4, CPU, 255)
        counts.add(logits, masks, teacher_logits)
        same = (logits.argmax(1) == teacher_logits.argmax(1))[masks != 255]
        assert counts.agreement == int(same.sum()) / len(same)

    def test_says_nothing_of_agreement_without_a_teacher(self) -> None:
        logits, _, masks = scene(2)
        counts = segmentation_metrics.Counts(4, CPU, 255)
        counts.add(logits, masks)
        assert counts.agreement is None

    def test_ignored_pixels_change_nothing(self) -> None:
        logits, teacher_logits, masks = scene(3)
        other = torch.where((masks == 255)[:, None], -logits, logits)
        totals = []
        for one in (logits, other):
            counts = segmentation_metrics.Counts(4, CPU, 255)
            counts.add(one, masks.to(torch.uint8), teacher_logits)
            totals.append((counts.confusion.tolist(), counts.loss, counts.agreement))
        assert totals[0] == totals[1]

    def test_logits_of_another_size_are_interpolated(self) -> None:
        coarse = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[None, None]
        logits = torch.cat([torch.full_like(coarse, 0.5), coarse], dim=1)
        masks = torch.tensor([[0, 0, 1, 1]] * 4)[None]
        counts = segmentation_metrics.Counts(2, CPU, 255)
        counts.add(logits, masks, -logits)
        # At pixel centres the second class has 0, 1/4, 3/4 and 1.
        assert counts.confusion.tolist() == [[8, 0], [0, 8]]
        assert counts.agreement == 0


class TestInterval:
    def test_is_that_of_the_counts_of_the_images_that_were_drawn(self) -> None:
        logits, _, masks = scene(5, count=9)
        counts = segmentation_metrics.Counts(4, CPU, 255)
        counts.add(logits, masks)
        draw, scores = np.random.default_rng(bootstrap.SEED), []
        for _ in range(bootstrap.RESAMPLES):
            chosen = torch.from_numpy(draw.integers(0, 9, 9))
            drawn = segmentation_metrics.Counts(4, CPU, 255)
            drawn.add(logits[chosen], masks[chosen])
            scores.append(segmentation_metrics.miou(drawn.confusion))
        found = counts.miou_interval()
        assert found is not None
        assert found == pytest.approx(np.percentile(scores, [2.5, 97.5]), rel=1e-12)
        assert found[0] < segmentation_metrics.miou(counts.confusion) < found[1]

    def test_of_one_image_is_its_score_and_of_none_unknown(self) -> None:
        logits, _, masks = scene(6, count=1)
        counts = segmentation_metrics.Counts(4, CPU, 255)
        assert counts.miou_interval() is None
        counts.add(logits, torch.full_like(masks, 255))
        assert counts.miou_interval() is None
        counts = segmentation_metrics.Counts(4, CPU, 255)
        counts.add(logits, masks)
        score = segmentation_metrics.miou(counts.confusion)
        assert counts.miou_interval() == pytest.approx((score, score), rel=1e-12)


class TestIoU:
    def test_equals_the_dense_guides_case(self) -> None:
        counted = torch.tensor(DENSE.inputs("miou")["confusion_rows_truth_cols_pred"]).long()
        wanted = DENSE.expected("miou")
        found = segmentation_metrics.iou(counted)
        assert found == pytest.approx(wanted["iou"], abs=DENSE.tolerance)
        assert segmentation_metrics.miou(counted) == pytest.approx(
            wanted["miou"], abs=DENSE.tolerance
        )
        assert segmentation_metrics.accuracy(counted) == wanted["pixel_acc"]

    def test_absent_classes_are_skipped(self) -> None:
        confusion = torch.tensor([[3, 0, 1], [0, 0, 0], [0, 0, 0]])
        assert segmentation_metrics.iou(confusion) == [0.75, None, 0.0]
        assert segmentation_metrics.miou(confusion) == 0.375

    def test_right_answers_everywhere_are_one(self) -> None:
        assert segmentation_metrics.miou(torch.diag(torch.tensor([4, 0, 7]))) == 1.0
        assert segmentation_metrics.accuracy(torch.diag(torch.tensor([4, 0, 7]))) == 1.0

    def test_a_class_that_is_only_answered_counts_as_missed(self) -> None:
        assert segmentation_metrics.iou(torch.tensor([[2, 2], [0, 0]])) == [0.5, 0.0]
