import itertools

import pytest
import torch

from tests.distill.golden import CASES
from workers.distill.functional.divergences import softened_kl
from workers.distill.functional.priorities import importance, probabilities

TEACHER = CASES.tensor("inputs", "teacher_logits")
APART = softened_kl(CASES.tensor("inputs", "student_logits"), TEACHER, temperature=1.0)
LATER = softened_kl(CASES.tensor("student_logits_step1"), TEACHER, temperature=1.0)
RECURSION = "priority_recursion_fixed_student"


def close(actual: torch.Tensor, *keys: str) -> bool:
    return torch.allclose(actual, CASES.tensor(*keys), rtol=0, atol=CASES.tolerance)


def many(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def recursion(beta: float, steps: int) -> list[torch.Tensor]:
    """Return the shares at each step of members that the student never learns from."""
    weights, shares = torch.ones_like(APART), []
    for _ in range(steps):
        shares.append(probabilities(weights * APART, alpha=1.0, epsilon=0.0))
        weights = importance(shares[-1], beta=beta)
    return shares


class TestProbabilities:
    def test_equal_the_guide(self) -> None:
        assert close(APART, "delta_step0")
        shares = probabilities(APART, alpha=1.0, epsilon=1e-6)
        assert close(shares, "P_step0_alpha_1_eps_1e-6")
        shares = probabilities(APART, alpha=0.6, epsilon=1e-6)
        assert close(shares, "P_step0_alpha_0.6_eps_1e-6")

    def test_of_members_that_matter_nothing_equal_the_guide(self) -> None:
        delta = CASES.tensor("P_with_zero_priorities", "delta")
        epsilon = CASES.case("P_with_zero_priorities", "epsilon")
        shares = probabilities(delta, alpha=1.0, epsilon=epsilon)
        assert close(shares, "P_with_zero_priorities", "P")

    @pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_sum_to_one_and_are_positive(self, alpha: float, dtype: torch.dtype) -> None:
        delta = many(5000).to(dtype)
        delta[:10] = 0
        shares = probabilities(delta, alpha=alpha, epsilon=1e-6)
        assert float(shares.sum()) == pytest.approx(
            1, rel=1e-5 if dtype is torch.float32 else 1e-12
        )
        assert (shares > 0).all()

    def test_are_the_plain_shares_at_alpha_one(self) -> None:
        delta = many(50)
        shares = probabilities(delta, alpha=1.0, epsilon=0.0)
        assert torch.allclose(shares, delta / delta.sum(), rtol=1e-12)

    def test_are_even_at_alpha_zero_and_for_equal_members(self) -> None:
        even = torch.full((50,), 0.02, dtype=torch.float64)
        shares = probabilities(many(50), alpha=0.0, epsilon=1e-6)
        assert torch.allclose(shares, even, rtol=1e-12)
        shares = probabilities(torch.zeros(50, dtype=torch.float64), alpha=1.0, epsilon=1e-6)
        assert torch.allclose(shares, even, rtol=1e-12)

    def test_follow_the_order_of_members(self) -> None:
        delta, order = many(50), torch.randperm(50)
        shares = probabilities(delta[order], alpha=0.6, epsilon=1e-6)
        whole = probabilities(delta, alpha=0.6, epsilon=1e-6)
        assert torch.allclose(shares, whole[order], rtol=1e-12)

    def test_know_no_signs(self) -> None:
        delta = many(50)
        shares = probabilities(-delta, alpha=1.0, epsilon=1e-6)
        assert torch.equal(shares, probabilities(delta, alpha=1.0, epsilon=1e-6))

    @pytest.mark.parametrize("alpha", [0.6, 1.0, 2.0])
    def test_have_the_gradient_of_their_value(self, alpha: float) -> None:
        assert torch.autograd.gradcheck(
            lambda delta: probabilities(delta, alpha=alpha, epsilon=1e-6),
            APART.clone().requires_grad_(),
        )

    def test_of_extreme_members_are_finite(self) -> None:
        delta = torch.tensor([0.0, 1e-30, 1e4, 1e30], requires_grad=True)
        shares = probabilities(delta, alpha=2.0, epsilon=1e-6)
        shares[2].backward()
        assert shares.tolist() == [0.0, 0.0, 0.0, 1.0]
        assert delta.grad is not None
        assert delta.grad.isfinite().all()


class TestImportance:
    @pytest.mark.parametrize("beta", ["0", "0.4", "1"])
    def test_equals_the_guide(self, beta: str) -> None:
        weights = importance(probabilities(APART, alpha=1.0, epsilon=1e-6), beta=float(beta))
        assert close(weights, f"w_step0_beta_{beta}_raw")
        assert close(weights / weights.max(), f"w_step0_beta_{beta}_max_normalised")

    def test_in_the_loss_equals_the_guide(self) -> None:
        weights = importance(probabilities(APART, alpha=1.0, epsilon=1e-6), beta=0.4)
        assert close((weights * APART).mean(), "is_weighted_kd_loss_step0")

    def test_is_one_at_beta_zero(self) -> None:
        shares = probabilities(many(50), alpha=1.0, epsilon=1e-6)
        assert importance(shares, beta=0.0).tolist() == [1.0] * 50

    def test_undoes_the_draw_at_beta_one(self) -> None:
        shares = probabilities(many(50), alpha=1.0, epsilon=1e-6)
        weights = importance(shares, beta=1.0) * 50 * shares
        assert torch.allclose(weights, torch.ones_like(weights), rtol=1e-12)

    def test_is_one_for_even_shares(self) -> None:
        even = torch.full((8,), 1 / 8, dtype=torch.float64)
        assert importance(even, beta=0.4).tolist() == [1.0] * 8

    def test_follows_the_order_of_members(self) -> None:
        shares = probabilities(many(50), alpha=1.0, epsilon=1e-6)
        order = torch.randperm(50)
        weights = importance(shares[order], beta=0.4)
        assert torch.equal(weights, importance(shares, beta=0.4)[order])

    def test_has_the_gradient_of_its_value(self) -> None:
        shares = probabilities(APART, alpha=1.0, epsilon=1e-6).requires_grad_()
        assert torch.autograd.gradcheck(lambda given: importance(given, beta=0.4), shares)


class TestRecursion:
    def test_of_a_student_that_learns_equals_the_guide(self) -> None:
        before = importance(probabilities(APART, alpha=1.0, epsilon=1e-6), beta=0.4)
        delta = before * LATER
        shares = probabilities(delta, alpha=1.0, epsilon=1e-6)
        assert close(delta, "delta_step1 (raw")
        assert close(shares, "P_step1")
        assert close(importance(shares, beta=0.4), "w_step1_beta_0.4_raw")

    def test_with_normalised_weights_equals_the_guide(self) -> None:
        before = importance(probabilities(APART, alpha=1.0, epsilon=1e-6), beta=0.4)
        delta = before / before.max() * LATER
        assert close(delta, "delta_step1 (max")
        assert close(probabilities(delta, alpha=1.0, epsilon=1e-6), "P_step1 (max")

    def test_of_a_fixed_student_equals_the_guide(self) -> None:
        values = recursion(0.4, 60)
        for step in range(3):
            assert close(values[step], RECURSION, f"P_step{step}")
        assert close(values[-1], RECURSION, "P_limit")

    @pytest.mark.parametrize("beta", [0.0, 0.4, 0.7])
    def test_settles_at_a_power_of_the_divergence(self, beta: float) -> None:
        limit = APART.pow(1 / (1 + beta))
        limit = limit / limit.sum()
        assert torch.allclose(recursion(beta, 200)[-1], limit, rtol=1e-9)
        if beta == 0.4:
            assert close(limit, RECURSION, "closed_form")

    def test_closes_in_from_both_sides(self) -> None:
        limit = APART.pow(1 / 1.4)
        gaps = [(values / (limit / limit.sum())).log() for values in recursion(0.4, 8)]
        # Up to a constant, which normalises, each gap is -beta times the one before.
        for before, after in itertools.pairwise(gaps):
            assert torch.allclose(after - after.mean(), -0.4 * (before - before.mean()), rtol=1e-9)

    def test_never_settles_at_beta_one(self) -> None:
        values = recursion(1.0, 40)
        assert torch.allclose(values[-1], values[-3], rtol=1e-9)
        assert not torch.allclose(values[-1], values[-2], rtol=0.1)
