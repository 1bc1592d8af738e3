import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.logit.test_ce import NOTHING
from tests.distill.methods.logit.test_kd import random_pair
from workers.distill.data.types import Batch, Mixed
from workers.distill.methods.logit import labelsmoothing
from workers.distill.networks.interface import Network


def loss(logits: torch.Tensor, batch: Batch, smoothing: float) -> torch.Tensor:
    params = labelsmoothing.LabelSmoothing.Params(smoothing=smoothing)
    method = labelsmoothing.LabelSmoothing(params, Network(), None)
    terms = method.terms(scenes.features(logits), NOTHING, batch, scenes.MOMENT)
    assert list(terms) == ["task"]
    return terms["task"]


class TestLabelSmoothing:
    def test_equals_the_published_value(self) -> None:
        actual = loss(CHECKS.tensor("logits_s"), scenes.batch(CHECKS.tensor("target")), 0.1)
        assert CHECKS.close(actual, CHECKS.expected("label_smoothing")["loss"])

    def test_is_cross_entropy_without_smoothing(self) -> None:
        actual = loss(CHECKS.tensor("logits_s"), scenes.batch(CHECKS.tensor("target")), 0)
        assert CHECKS.close(actual, CHECKS.expected("ce")["loss"])

    def test_equals_the_cross_entropy_with_the_spread_label(self) -> None:
        logits, _ = random_pair(1, 4, 5)
        labels = torch.tensor([0, 4, 2, 2])
        spread = 0.7 * torch.eye(5, dtype=torch.float64)[labels] + 0.3 / 5
        by_hand = -(spread * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()
        actual = loss(logits, scenes.batch(labels), 0.3)
        assert torch.allclose(actual, by_hand, rtol=1e-12)

    def test_learns_both_labels_of_a_mixed_image(self) -> None:
        logits, _ = random_pair(2, 1, 5)
        plain = scenes.batch([3])
        mixed = Batch(
            images=plain.images,
            labels=plain.labels,
            index=plain.index,
            mixed=Mixed(labels=torch.tensor([1]), share=torch.tensor([0.25])),
        )
        first, second = (loss(logits, scenes.batch([label]), 0.1) for label in (3, 1))
        actual = loss(logits, mixed, 0.1)
        assert torch.allclose(actual, 0.25 * first + 0.75 * second, rtol=1e-12)

    def test_ignores_a_constant_added_to_a_row(self) -> None:
        logits, _ = random_pair(3, 3, 5)
        labels = scenes.batch([0, 1, 2])
        shifted = logits + torch.arange(3, dtype=torch.float64)[:, None]
        assert torch.allclose(loss(logits, labels, 0.1), loss(shifted, labels, 0.1), rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        logits, _ = random_pair(4, 3, 5)
        labels = scenes.batch([0, 1, 2])
        assert torch.autograd.gradcheck(
            lambda given: loss(given, labels, 0.1), (logits.requires_grad_(),)
        )

    def test_is_finite_at_a_gap_of_a_thousand(self) -> None:
        logits = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
        actual = loss(logits, scenes.batch([2]), 0.1)
        actual.backward()
        assert actual.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    @pytest.mark.parametrize("smoothing", [-0.1, 1.1])
    def test_refuses_a_share_that_is_none(self, smoothing: float) -> None:
        with pytest.raises(ValueError, match="smoothing"):
            labelsmoothing.LabelSmoothing.Params(smoothing=smoothing)
