import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import CASES
from workers.distill.functional import adversaries

TEACHER = CASES.tensor("inputs", "teacher_logits")
STUDENT = CASES.tensor("inputs", "student_logits")
COMPARISONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "plain": partial(adversaries.discrepancy, masked=False),
    "masked": partial(adversaries.discrepancy, masked=True),
    "difference": adversaries.mean_difference,
    "js": adversaries.clamped_js,
}
comparisons = pytest.mark.parametrize("compare", COMPARISONS.values(), ids=COMPARISONS)


def as_maps(logits: torch.Tensor) -> torch.Tensor:
    return logits.view(2, 1, 2, -1).permute(0, 3, 1, 2)


class TestComparisons:
    @comparisons
    def test_take_positions_for_images(
        self, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        value = compare(as_maps(STUDENT), as_maps(TEACHER))
        assert torch.allclose(value, compare(STUDENT, TEACHER), rtol=1e-12)

    @comparisons
    def test_of_equal_logits_are_zero(
        self, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        assert float(compare(TEACHER, TEACHER)) == 0

    @comparisons
    def test_know_no_order_of_images(
        self, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        order = [2, 0, 3, 1]
        value = compare(STUDENT[order], TEACHER[order])
        assert torch.allclose(value, compare(STUDENT, TEACHER), rtol=1e-12)

    @comparisons
    def test_have_the_gradient_of_their_value(
        self, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        given = [each.clone().requires_grad_() for each in (STUDENT, TEACHER)]
        assert torch.autograd.gradcheck(compare, given)

    @comparisons
    def test_of_extreme_logits_are_finite(
        self, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        student = torch.tensor([[1e4, -1e4, 0.0], [9e3, 1e4, 0.0]], requires_grad=True)
        teacher = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 1e4, -1e4]], requires_grad=True)
        value = compare(student, teacher)
        value.backward()
        assert value.isfinite()
        for each in (student, teacher):
            assert each.grad is not None
            assert each.grad.isfinite().all()


class TestAgreement:
    def test_equals_the_guide(self) -> None:
        assert adversaries.agreement(STUDENT, TEACHER).tolist() == CASES.case("agree_mask")

    def test_has_no_gradient_and_the_type_of_the_logits(self) -> None:
        agreement = adversaries.agreement(STUDENT.clone().requires_grad_(), TEACHER)
        assert not agreement.requires_grad
        assert agreement.dtype == torch.float64

    def test_is_about_each_position(self) -> None:
        agreement = adversaries.agreement(as_maps(STUDENT), as_maps(TEACHER))
        assert agreement.tolist() == CASES.case("agree_mask")


class TestDiscrepancy:
    def test_equals_the_guide(self) -> None:
        plain = adversaries.discrepancy(STUDENT, TEACHER, masked=False)
        masked = adversaries.discrepancy(STUDENT, TEACHER, masked=True)
        assert CASES.close(-plain, CASES.case("adv_loss_plain"))
        assert CASES.close(-masked, CASES.case("adv_loss_masked"))

    def test_divides_by_all_rows_also_where_most_are_masked(self) -> None:
        mask = CASES.tensor("agree_mask").bool()
        agreed = adversaries.discrepancy(STUDENT[mask], TEACHER[mask], masked=False)
        value = adversaries.discrepancy(STUDENT, TEACHER, masked=True)
        assert torch.allclose(value, agreed * 3 / 4, rtol=1e-12)

    def test_gives_masked_rows_no_gradient(self) -> None:
        student = STUDENT.clone().requires_grad_()
        adversaries.discrepancy(student, TEACHER, masked=True).backward()
        assert student.grad is not None
        assert student.grad.any(1).tolist() == [True, False, True, True]


class TestMeanDifference:
    def test_equals_the_guide(self) -> None:
        divergence = adversaries.mean_difference(STUDENT, TEACHER)
        assert CASES.close(-divergence, CASES.case("adv_loss_L1"))
        assert CASES.close(-(divergence + 1).log(), CASES.case("adv_loss_log_L1"))


class TestClampedJS:
    def test_equals_the_guide(self) -> None:
        divergence = adversaries.clamped_js(STUDENT, TEACHER)
        assert CASES.close(divergence, CASES.case("adi_js_T3_clamped"))
        assert CASES.close(1 - divergence, CASES.case("adi_competition_1_minus_js"))

    def test_is_symmetric(self) -> None:
        divergence = adversaries.clamped_js(STUDENT, TEACHER, temperature=1.0)
        other = adversaries.clamped_js(TEACHER, STUDENT, temperature=1.0)
        assert torch.allclose(divergence, other, rtol=1e-12)

    def test_averages_two_divergences_from_the_mean_where_nothing_is_clamped(self) -> None:
        student, teacher = (each.softmax(1) for each in (STUDENT[:3], TEACHER[:3] / 2))
        middle = (student + teacher) / 2
        expected = sum(
            F.kl_div(each.log(), middle, reduction="batchmean") for each in (student, teacher)
        )
        divergence = adversaries.clamped_js(3 * STUDENT[:3], 3 * TEACHER[:3] / 2)
        assert min(student.min(), teacher.min()) > 0.01
        assert torch.allclose(divergence, torch.as_tensor(expected) / 2, rtol=1e-9)

    def test_takes_the_mean_before_it_clamps(self) -> None:
        certain = torch.tensor([[1e4, 0.0]], dtype=torch.float64)
        # The mean of (1, 0) and (1/2, 1/2); only the former is clamped.
        student = 0.75 * math.log(0.75 / 0.99) + 0.25 * math.log(0.25 / 0.01)
        teacher = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
        divergence = adversaries.clamped_js(certain, torch.zeros_like(certain))
        assert float(divergence) == pytest.approx((student + teacher) / 2, rel=1e-9)


class TestClassBalance:
    def test_equals_the_guide(self) -> None:
        assert CASES.close(
            adversaries.class_balance(TEACHER), CASES.case("dafl_balance_natural_log")
        )
        balance = adversaries.class_balance(TEACHER, base_ten=True)
        assert CASES.close(balance, CASES.case("dafl_balance_log10"))

    def test_makes_the_guides_totals_with_the_other_terms(self) -> None:
        onehot = F.cross_entropy(TEACHER, TEACHER.argmax(1))
        activation = -CASES.tensor("dafl_features").abs().mean()
        assert CASES.close(onehot, CASES.case("dafl_onehot"))
        assert CASES.close(activation, CASES.case("dafl_activation"))
        tens = onehot + 5 * adversaries.class_balance(TEACHER, base_ten=True) + 0.1 * activation
        assert CASES.close(tens, CASES.case("dafl_total oh=1 balance(log10)"))
        natural = onehot + 20 * adversaries.class_balance(TEACHER) + 0.001 * activation
        assert CASES.close(natural, CASES.case("dafl_total oh=1 balance(ln)"))

    def test_is_least_where_each_class_is_shown_equally_often(self) -> None:
        balance = adversaries.class_balance(100 * torch.eye(5, dtype=torch.float64))
        assert float(balance) == pytest.approx(-math.log(5), rel=1e-12)

    def test_is_about_zero_where_only_one_class_is_shown(self) -> None:
        logits = torch.zeros(4, 3, dtype=torch.float64)
        logits[:, 1] = 1e4
        # Two classes of probability 0 are clamped to 1e-12.
        balance = float(adversaries.class_balance(logits))
        assert balance == pytest.approx(2e-12 * math.log(1e-12), rel=1e-9)

    def test_takes_positions_for_images(self) -> None:
        balance = adversaries.class_balance(as_maps(TEACHER))
        assert torch.allclose(balance, adversaries.class_balance(TEACHER), rtol=1e-12)

    @pytest.mark.parametrize("base_ten", [False, True])
    def test_has_the_gradient_of_its_value(self, base_ten: bool) -> None:
        assert torch.autograd.gradcheck(
            partial(adversaries.class_balance, base_ten=base_ten), TEACHER.clone().requires_grad_()
        )

    @pytest.mark.parametrize("base_ten", [False, True])
    def test_of_extreme_logits_has_a_finite_gradient(self, base_ten: bool) -> None:
        logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 0.0, -1e4]], requires_grad=True)
        balance = adversaries.class_balance(logits, base_ten=base_ten)
        balance.backward()
        assert balance.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
