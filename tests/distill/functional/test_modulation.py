import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import CASES
from workers.distill.functional import adversaries, modulation
from workers.distill.functional.rows import per_image

TEACHER = CASES.tensor("inputs", "teacher_logits")
SHARES = CASES.tensor("buffer_class_fraction")


def as_maps(logits: torch.Tensor) -> torch.Tensor:
    return logits.view(2, 1, 2, -1).permute(0, 3, 1, 2)


def close(actual: torch.Tensor, *keys: str) -> bool:
    return torch.allclose(actual, CASES.tensor(*keys), rtol=0, atol=CASES.tolerance)


class TestConfidence:
    def test_equals_the_guide(self) -> None:
        largest, predicted = modulation.confidence(TEACHER)
        assert close(largest, "teacher_conf")
        assert predicted.tolist() == CASES.case("teacher_argmax")
        assert close(TEACHER.softmax(1), "teacher_softmax")

    def test_averaged_over_the_pixels_of_an_image_equals_the_guide(self) -> None:
        largest, _ = modulation.confidence(as_maps(TEACHER))
        images = per_image(largest, 2)
        assert close(images, "seg", "phi_image", "conf")
        majority = modulation.class_shares(as_maps(TEACHER)).argmax(1)
        assert majority.tolist() == CASES.case("seg", "phi_image", "class")
        weights = (1 - SHARES[majority]) * (1 - images).square()
        assert close(weights, "seg", "phi_image", "phi")

    def test_has_the_gradient_of_its_value(self) -> None:
        assert torch.autograd.gradcheck(
            lambda logits: modulation.confidence(logits)[0], TEACHER.clone().requires_grad_()
        )


class TestModulation:
    @pytest.mark.parametrize("gamma", [0, 1, 2, 5])
    def test_equals_the_guide(self, gamma: int) -> None:
        phi = modulation.modulation(TEACHER, SHARES, gamma=float(gamma))
        assert close(phi, f"phi_gamma_{gamma}")

    def test_of_either_factor_alone_equals_the_guide(self) -> None:
        diversity = modulation.modulation(TEACHER, SHARES, gamma=0.0)
        assert close(diversity, "phi_gamma_2_diversity_only")
        difficulty = modulation.modulation(TEACHER, SHARES, gamma=2.0, diversity=False)
        assert close(difficulty, "phi_gamma_2_difficulty_only")

    def test_with_the_batch_as_buffer_equals_the_guide(self) -> None:
        shares = modulation.class_shares(TEACHER).mean(0)
        phi = modulation.modulation(TEACHER, shares, gamma=2.0)
        assert close(phi, "phi_gamma_2_buffer_is_batch")

    def test_of_pixels_equals_the_guide(self) -> None:
        phi = modulation.modulation(as_maps(TEACHER), SHARES, gamma=2.0)
        assert close(per_image(phi, 2), "seg", "phi_per_pixel_gamma2_then_mean")

    def test_of_the_task_loss_equals_the_guide(self) -> None:
        targets = torch.tensor(CASES.case("random_targets"))
        _, predicted = modulation.confidence(TEACHER)
        given = F.cross_entropy(TEACHER, targets, reduction="none")
        own = F.cross_entropy(TEACHER, predicted, reduction="none")
        assert close(given, "ce_to_targets_each")
        assert close(given.mean(), "ce_to_targets_mean")
        assert close(own, "ce_to_argmax_each")
        assert close(own.mean(), "ce_to_argmax_mean")
        weights = modulation.modulation(TEACHER, SHARES, gamma=2.0)
        assert close((weights * given).mean(), "modulated_task_loss_targets")
        assert close((weights * own).mean(), "modulated_task_loss_argmax")
        apart = adversaries.discrepancy(
            CASES.tensor("inputs", "student_logits"), TEACHER, masked=True
        )
        total = 10 * CASES.case("bn_loss_l2norm_var") + 0.5 * (weights * given).mean() - 1.1 * apart
        # Ten times a number that is written with six decimals.
        expected = CASES.tensor("combined_generator_loss")
        assert torch.allclose(total, expected, rtol=0, atol=10 * CASES.tolerance)

    def test_is_zero_at_gamma_zero_where_the_buffer_has_one_class(self) -> None:
        shares = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        phi = modulation.modulation(TEACHER, shares, gamma=0.0)
        assert phi.tolist() == [1.0, 1.0, 0.0, 1.0]

    def test_is_one_everywhere_without_both_factors(self) -> None:
        phi = modulation.modulation(1e4 * TEACHER, SHARES, gamma=0.0, diversity=False)
        assert phi.tolist() == [1.0] * 4

    @pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
    def test_falls_with_confidence(self, gamma: float) -> None:
        logits = torch.zeros(6, 3, dtype=torch.float64)
        logits[:, 1] = torch.arange(1, 7)
        phi = modulation.modulation(logits, SHARES, gamma=gamma)
        assert (phi.diff() < 0).all()

    def test_falls_with_how_frequent_the_class_is(self) -> None:
        shares = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
        phi = modulation.modulation(torch.eye(3, dtype=torch.float64), shares, gamma=2.0)
        assert (phi.diff() < 0).all()

    @pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
    def test_stays_between_zero_and_that_of_an_unsure_row(self, gamma: float) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
        shares = torch.zeros(4, dtype=torch.float64)
        phi = modulation.modulation(logits, shares, gamma=gamma)
        assert phi.min() >= 0
        assert phi.max() <= (1 - 1 / 4) ** gamma + 1e-12

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    @pytest.mark.parametrize("diversity", [True, False])
    def test_has_the_gradient_of_its_value(self, gamma: float, diversity: bool) -> None:
        assert torch.autograd.gradcheck(
            lambda logits: modulation.modulation(logits, SHARES, gamma=gamma, diversity=diversity),
            as_maps(TEACHER).clone().requires_grad_(),
        )

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_of_extreme_logits_is_finite(self, gamma: float) -> None:
        logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 0.0]], requires_grad=True)
        phi = modulation.modulation(logits, SHARES.float(), gamma=gamma)
        phi.sum().backward()
        assert torch.allclose(phi, torch.tensor([0.5 * 0.0**gamma, 0.5 * 0.5**gamma]))
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    def test_keeps_small_doubts_that_one_less_a_probability_loses(self) -> None:
        logits = torch.tensor([[30.0, 0.0]])
        phi = modulation.modulation(logits, torch.zeros(2), gamma=1.0)
        assert float(phi) == pytest.approx(float(torch.tensor(-30.0).double().exp()), rel=1e-4)


class TestClassShares:
    def test_are_one_hot_without_positions(self) -> None:
        expected = F.one_hot(torch.tensor(CASES.case("teacher_argmax")), 3).double()
        assert torch.equal(modulation.class_shares(TEACHER), expected)

    def test_count_the_pixels_of_each_image(self) -> None:
        predicted = torch.tensor([[[0, 0], [1, 0]], [[2, 2], [2, 2]]])
        logits = F.one_hot(predicted, 3).permute(0, 3, 1, 2).double()
        shares = modulation.class_shares(logits)
        assert shares.tolist() == [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]

    def test_of_the_guides_buffer_are_the_guides(self) -> None:
        logits = F.one_hot(torch.tensor(CASES.case("buffer_predicted_classes")), 3).double()
        assert torch.equal(modulation.class_shares(logits).mean(0), SHARES)

    def test_carry_no_gradient(self) -> None:
        assert not modulation.class_shares(TEACHER.clone().requires_grad_()).requires_grad
