import pytest
import torch

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill.methods.feature import nst


def by_loops(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the discrepancy as it is defined, one pair of channels after the other."""

    def kernel(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        products = [
            torch.dot(a.flatten() / a.norm(), b.flatten() / b.norm()) ** 2
            for a_image, b_image in zip(one, other, strict=True)
            for a in a_image
            for b in b_image
        ]
        return torch.stack(products).mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestNSTLoss:
    def test_equals_the_published_value(self) -> None:
        expected = CHECKS.expected("nst")
        loss = nst.nst_loss([CHECKS.tensor("map_s")], [CHECKS.tensor("map_t")])
        assert CHECKS.close(loss, expected["loss"])
        assert CHECKS.close(50 * loss, expected["loss_w50"])

    @pytest.mark.parametrize("side", [1, 2, 3])
    def test_equals_its_definition_with_few_positions_and_with_many(self, side: int) -> None:
        student, teacher = random_maps(2, 4, side, side), random_maps(2, 6, side, side, seed=1)
        loss = nst.nst_loss([student], [teacher])
        # One position makes every normalised channel 1 or -1: the loss is zero up to rounding.
        assert torch.allclose(loss, by_loops(student, teacher), rtol=1e-9, atol=1e-14)

    @pytest.mark.parametrize("side", [2, 4])
    def test_ignores_order_and_scale_of_channels(self, side: int) -> None:
        student, teacher = random_maps(2, 5, side, side), random_maps(2, 5, side, side, seed=1)
        moved = 3 * teacher[:, [4, 2, 0, 1, 3]]
        one, other = (nst.nst_loss([student], [maps]) for maps in (teacher, moved))
        assert torch.allclose(one, other, rtol=1e-9)
        assert nst.nst_loss([moved], [teacher]).abs() < 1e-12

    def test_ignores_the_order_of_the_batch(self) -> None:
        student, teacher = CHECKS.tensor("map_s"), CHECKS.tensor("map_t")
        other = nst.nst_loss([student.flip(0)], [teacher.flip(0)])
        assert torch.allclose(nst.nst_loss([student], [teacher]), other, rtol=1e-9)

    @pytest.mark.parametrize("side", [2, 4])
    def test_has_the_gradient_of_its_value(self, side: int) -> None:
        student = random_maps(2, 5, 4, 4).requires_grad_()
        teacher = random_maps(2, 4, side, side, seed=1)
        assert torch.autograd.gradcheck(
            lambda given: nst.nst_loss([given], [teacher]), (student,), fast_mode=True
        )

    @pytest.mark.parametrize("side", [1, 4])
    def test_is_finite_for_maps_of_zeros(self, side: int) -> None:
        student = torch.zeros(2, 3, side, side, requires_grad=True)
        loss = nst.nst_loss([student], [torch.zeros(2, 4, side, side)])
        assert gradients.is_finite(loss, student)
        assert float(loss.detach()) == 0


class TestNST:
    def test_weighs_its_term(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        method = nst.NST(nst.NST.Params(), student, teacher)
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert list(terms) == ["task", "nst"]
        assert torch.allclose(
            terms["nst"], 50 * nst.nst_loss(student_out.stages, teacher_out.stages)
        )

    def test_pairs_stages_of_one_size_where_networks_differ(self) -> None:
        teacher = scenes.Pyramid([(2, 6, 6), (3, 8, 8), (4, 4, 4), (5, 2, 2)])
        method = nst.NST(nst.NST.Params(), scenes.network(), teacher)
        assert method.pairs == ((0, 1), (1, 2), (2, 3))
