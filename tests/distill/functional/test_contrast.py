import pytest
import torch

from tests.distill.golden import CASES
from workers.distill.functional.contrast import bank_contrast

LOCAL = CASES.tensor("cmi", "local_raw")
OTHER = CASES.tensor("cmi", "global_raw")
TEMPERATURE: float = CASES.case("cmi", "tau")


def loss(local: torch.Tensor, other: torch.Tensor, current: int) -> torch.Tensor:
    return bank_contrast(local, other, temperature=TEMPERATURE, current=current)


class TestBankContrast:
    def test_equals_the_guide(self) -> None:
        with_bank, without = loss(LOCAL, OTHER, 2), loss(LOCAL, OTHER, 3)
        expected = CASES.case("cmi", "loss_with_bank")
        assert float(with_bank) == pytest.approx(expected, abs=CASES.tolerance)
        expected = CASES.case("cmi", "loss_without_bank")
        assert float(without) == pytest.approx(expected, abs=CASES.tolerance)

    def test_adds_the_mean_of_the_bank_to_that_of_the_batch(self) -> None:
        each = CASES.tensor("cmi", "per_row")
        expected = float(each[0] + each[1:].mean())
        # Two rounded numbers are added.
        assert float(loss(LOCAL, OTHER, 1)) == pytest.approx(expected, abs=2 * CASES.tolerance)

    def test_knows_no_lengths_of_rows(self) -> None:
        lengths = torch.tensor([[0.1], [3.0], [40.0]], dtype=torch.float64)
        actual = loss(lengths * LOCAL, lengths.flip(0) * OTHER, 2)
        assert torch.allclose(actual, loss(LOCAL, OTHER, 2), rtol=1e-12)

    def test_knows_no_order_within_the_batch(self) -> None:
        order = [1, 0, 2]
        actual = loss(LOCAL[order], OTHER[order], 2)
        assert torch.allclose(actual, loss(LOCAL, OTHER, 2), rtol=1e-12)

    def test_of_one_image_alone_is_zero(self) -> None:
        assert float(loss(LOCAL[:1], OTHER[:1], 1)) == 0

    def test_grows_when_views_are_mixed_up(self) -> None:
        assert float(loss(LOCAL, OTHER.roll(1, 0), 3)) > float(loss(LOCAL, OTHER, 3))

    def test_moves_the_local_views_only(self) -> None:
        local, other = LOCAL.clone().requires_grad_(), OTHER.clone().requires_grad_()
        loss(local, other, 2).backward()
        assert other.grad is None
        assert local.grad is not None
        assert local.grad.any(1).all()

    @pytest.mark.parametrize("current", [1, 2, 3])
    def test_has_the_gradient_of_its_value(self, current: int) -> None:
        assert torch.autograd.gradcheck(
            lambda local: loss(local, OTHER, current), LOCAL.clone().requires_grad_()
        )

    @pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
    def test_is_finite_for_rows_of_any_length(self, scale: float) -> None:
        local = (scale * LOCAL.float()).requires_grad_()
        actual = loss(local, scale * OTHER.float(), 2)
        actual.backward()
        assert actual.isfinite()
        assert local.grad is not None
        assert local.grad.isfinite().all()
