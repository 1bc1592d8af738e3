import math

import pytest
import torch
from scipy import special

from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import soft_targets

SCORES = FEDERATED.inputs("dsfl_distill_loss", "student_logits")[None]
ERA = torch.tensor([FEDERATED.expected("sa_era", "era_T0.1")], dtype=torch.float64)
SA = torch.tensor([FEDERATED.expected("sa_era", "sa")], dtype=torch.float64)


class TestCrossEntropies:
    def test_equal_the_guide(self) -> None:
        for target, name in ((ERA, "ce_era"), (SA, "ce_sa")):
            found = soft_targets.cross_entropies(SCORES, target)
            assert FEDERATED.close(found, [FEDERATED.expected("dsfl_distill_loss", name)])

    def test_have_the_gradient_of_the_guide(self) -> None:
        given = SCORES.clone().requires_grad_()
        soft_targets.cross_entropies(given, ERA).sum().backward()
        assert given.grad is not None
        assert FEDERATED.close(given.grad[0], FEDERATED.expected("dsfl_distill_loss", "grad_ce"))

    def test_have_the_gradient_of_their_value(self) -> None:
        given = SCORES.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda s: soft_targets.cross_entropies(s, ERA), given)


class TestKLDivergences:
    def test_equal_the_guide(self) -> None:
        found = soft_targets.kl_divergences(SCORES, ERA)
        assert FEDERATED.close(found, [FEDERATED.expected("dsfl_distill_loss", "kl_era")])

    def test_are_zero_for_the_same_distribution_and_finite_for_a_certain_target(self) -> None:
        same = soft_targets.kl_divergences(SCORES, SCORES.softmax(1))
        assert torch.allclose(same, torch.zeros_like(same), atol=1e-12)
        certain = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
        expected = -SCORES.log_softmax(1)[:, 1]
        assert torch.allclose(soft_targets.kl_divergences(SCORES, certain), expected, rtol=1e-12)

    def test_have_the_gradient_of_their_value(self) -> None:
        given = SCORES.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda s: soft_targets.kl_divergences(s, ERA), given)


class TestEntropies:
    def test_equal_scipy_and_their_bounds(self) -> None:
        probs = torch.rand(5, 4, 7, dtype=torch.float64)
        probs = probs / probs.sum(-1, keepdim=True)
        found = soft_targets.entropies(probs)
        assert torch.allclose(found, torch.tensor(special.entr(probs.numpy()).sum(-1)), rtol=1e-12)
        assert float(soft_targets.entropies(torch.eye(3)).abs().max()) == 0
        assert float(soft_targets.entropies(torch.full((8,), 1 / 8))) == pytest.approx(math.log(8))
