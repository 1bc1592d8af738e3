"""CKA in its three equivalent forms, its invariances and bounds; MMD against plain sums."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from hypothesis import given
from hypothesis import strategies as st

from tests.distill import gradients
from tests.distill.golden import CHECKS, DENSE
from workers.distill.functional import kernels


def random_rows(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def orthogonal(width: int) -> torch.Tensor:
    (matrix,) = random_rows(width, (width, width))
    return torch.linalg.qr(matrix)[0]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    return CHECKS.tensor("emb_s"), CHECKS.tensor("emb_t")


class TestHSIC:
    def test_equals_the_published_values(self) -> None:
        expected = CHECKS.expected("cka_linear_centered")
        student, teacher = (kernels.gram(each) for each in rows())
        assert CHECKS.close(kernels.hsic(student, teacher), expected["hsic_st"])
        assert CHECKS.close(kernels.hsic(student, student), expected["hsic_ss"])
        assert CHECKS.close(kernels.hsic(teacher, teacher), expected["hsic_tt"])

    def test_equals_the_trace_with_both_kernels_centred(self) -> None:
        one, other = (kernels.gram(each) for each in random_rows(0, (5, 3), (5, 2)))
        centring = torch.eye(5, dtype=torch.float64) - 1 / 5
        trace = torch.trace(centring @ one @ centring @ centring @ other @ centring)
        assert torch.allclose(kernels.hsic(one, other), trace / 4**2, rtol=1e-9)
        assert torch.allclose(kernels.center(one), centring @ one @ centring, atol=1e-12)

    def test_of_one_row_is_zero(self) -> None:
        assert float(kernels.hsic(torch.ones(1, 1), torch.ones(1, 1))) == 0


class TestCKA:
    @pytest.mark.parametrize(
        ("check", "centered", "row_norm"),
        [
            ("cka_linear_centered", True, False),
            ("cka_linear_uncentered", False, False),
            ("cka_rownorm_uncentered", False, True),
        ],
    )
    def test_equals_the_published_value(self, check: str, centered: bool, row_norm: bool) -> None:
        value = kernels.cka(*rows(), centered=centered, row_norm=row_norm)
        assert CHECKS.close(value, CHECKS.expected(check)["cka"])

    def test_with_both_centres_the_released_kernel(self) -> None:
        pair = random_rows(6, (6, 4), (6, 5))
        count = 6
        projector = torch.eye(count, dtype=torch.float64) - 1 / count

        def by_hand(each: torch.Tensor) -> torch.Tensor:
            released = (each @ each.mT) / torch.linalg.vector_norm(each, dim=1, keepdim=True)
            return (projector @ released @ projector).flatten()

        one, other = (by_hand(each) for each in pair)
        expected = F.cosine_similarity(one, other, dim=0)
        value = kernels.cka(*pair, centered=True, row_norm=True)
        assert torch.allclose(value, expected, rtol=1e-9)
        # Rows and columns of what is compared sum to 0, which divided rows of centred ones do not.
        kernel, _ = kernels._kernel(pair[0], centered=True, row_norm=True)
        assert float(kernel.sum(0).abs().max() + kernel.sum(1).abs().max()) < 1e-9

    def test_has_the_published_invariances(self) -> None:
        student, teacher = rows()
        expected = CHECKS.expected("cka_invariances")
        centered = functools.partial(kernels.cka, centered=True)
        assert CHECKS.close(centered(3 * student, teacher), expected["scaled_student_3x"])
        assert CHECKS.close(centered(student + 1, teacher), expected["shifted_student_plus_1"])
        assert CHECKS.close(centered(student, student), expected["self"])
        value = kernels.cka(student + 1, teacher, centered=False)
        assert CHECKS.close(value, expected["uncentered_shifted_student_plus_1"])

    @given(
        seed=st.integers(0, 10_000),
        count=st.integers(3, 9),
        widths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        centered=st.booleans(),
    )
    def test_has_three_equal_forms(
        self, seed: int, count: int, widths: tuple[int, int], centered: bool
    ) -> None:
        one, other = random_rows(seed, (count, widths[0]), (count, widths[1]))
        grams = [kernels.gram(each) for each in (one, other)]
        if centered:
            grams = [kernels.center(gram) for gram in grams]
        cosine = torch.nn.functional.cosine_similarity(grams[0].flatten(), grams[1].flatten(), 0)
        value = kernels.cka(one, other, centered=centered)
        by_columns = kernels.cka_by_columns(one, other, centered=centered)
        assert torch.allclose(value, cosine, rtol=1e-9)
        assert torch.allclose(value, by_columns, rtol=1e-9)
        if centered:
            ratio = kernels.hsic(*grams) / torch.sqrt(
                kernels.hsic(grams[0], grams[0]) * kernels.hsic(grams[1], grams[1])
            )
            assert torch.allclose(value, ratio, rtol=1e-9)
        assert -1e-12 <= float(value) <= 1 + 1e-12

    @given(seed=st.integers(0, 10_000), centered=st.booleans())
    def test_is_one_less_half_the_squared_distance_of_unit_kernels(
        self, seed: int, centered: bool
    ) -> None:
        one, other = (kernels.gram(each) for each in random_rows(seed, (6, 4), (6, 7)))
        if centered:
            one, other = kernels.center(one), kernels.center(other)
        units = [each / torch.linalg.matrix_norm(each) for each in (one, other)]
        expected = 1 - (units[0] - units[1]).square().sum() / 2
        value = kernels.cka(*random_rows(seed, (6, 4), (6, 7)), centered=centered)
        assert torch.allclose(value, expected, rtol=1e-9)
        # Jensen: E is over all n^2 pairs. Centred kernels have mean 0, so their bound is 1.
        bound = 1 - 6**2 / 2 * (units[0].mean() - units[1].mean()) ** 2
        assert float(value) <= float(bound) + 1e-12
        if centered:
            assert math.isclose(float(bound), 1, rel_tol=1e-12)

    @pytest.mark.parametrize("centered", [True, False])
    def test_of_published_rows_keeps_the_published_bound(self, centered: bool) -> None:
        check = CHECKS.expected(f"cka_linear_{'centered' if centered else 'uncentered'}")
        units = []
        for each in rows():
            gram = kernels.gram(each)
            gram = kernels.center(gram) if centered else gram
            units.append(gram / torch.linalg.matrix_norm(gram))
        half = 1 - (units[0] - units[1]).square().sum() / 2
        assert CHECKS.close(half, check["one_minus_half_sqdist"])
        bound = 1 - 3**2 / 2 * (units[0].mean() - units[1].mean()) ** 2
        assert CHECKS.close(bound, check["mean_gram_bound"])

    def test_equals_the_dense_guides_case(self) -> None:
        wanted, given = DENSE.expected("cka_matrix"), DENSE.inputs("cka_matrix")
        one, other = (torch.tensor(given[name]).double() for name in ("X", "Y"))
        assert DENSE.close(kernels.cka(one, other, centered=False), wanted["uncentred"])
        assert DENSE.close(kernels.cka(one, other, centered=True), wanted["centred"])
        assert DENSE.close(kernels.cka(one, one, centered=False), wanted["self"])
        turned = 3 * one @ orthogonal(2) + 1
        assert DENSE.close(
            kernels.cka(one, turned, centered=True), wanted["invariant_scale_rotation_centred"]
        )

    def test_ignores_orthogonal_maps_and_the_order_of_rows(self) -> None:
        one, other = random_rows(1, (6, 4), (6, 5))
        order = torch.randperm(6)
        for centered in (True, False):
            value = kernels.cka(one, other, centered=centered)
            turned = kernels.cka(one @ orthogonal(4), other @ orthogonal(5), centered=centered)
            mixed = kernels.cka(one[order], other[order], centered=centered)
            assert torch.allclose(value, turned, rtol=1e-9)
            assert torch.allclose(value, mixed, rtol=1e-9)

    def test_takes_each_set_by_itself(self) -> None:
        one, other = random_rows(2, (3, 6, 4), (3, 6, 5))
        together = kernels.cka(one, other, centered=True)
        alone = [
            kernels.cka(left, right, centered=True) for left, right in zip(one, other, strict=True)
        ]
        assert torch.allclose(together, torch.stack(alone), rtol=1e-9)

    @pytest.mark.parametrize("row_norm", [False, True])
    @pytest.mark.parametrize("centered", [False, True])
    def test_has_the_gradient_of_its_value(self, centered: bool, row_norm: bool) -> None:
        one, other = random_rows(3, (5, 3), (5, 4))
        one.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda rows: kernels.cka(rows, other, centered=centered, row_norm=row_norm), (one,)
        )
        if not row_norm:
            assert torch.autograd.gradcheck(
                lambda rows: kernels.cka_by_columns(rows, other, centered=centered), (one,)
            )

    @pytest.mark.parametrize("size", [0.0, 1e-20, 1e20, 1e30])
    @pytest.mark.parametrize("row_norm", [False, True])
    def test_is_finite_for_rows_of_any_size(self, size: float, row_norm: bool) -> None:
        one, other = (each.float() for each in random_rows(4, (5, 3), (5, 4)))
        one = (size * one).requires_grad_()
        value = kernels.cka(one, other, centered=True, row_norm=row_norm)
        assert gradients.is_finite(value, one)

    def test_is_zero_without_a_gradient_where_all_rows_are_equal(self) -> None:
        (other,) = random_rows(5, (5, 4))
        one = torch.full((5, 3), 2.0, dtype=torch.float64, requires_grad=True)
        value = kernels.cka(one, other, centered=True)
        value.backward()
        assert float(value.detach()) == 0
        assert one.grad is not None
        assert not one.grad.any()


class TestCKAGap:
    @pytest.mark.parametrize("count", [1, 2])
    def test_is_zero_without_a_gradient_where_too_few_rows_say_nothing(self, count: int) -> None:
        one, other = random_rows(6, (count, 3), (count, 4))
        one.requires_grad_()
        gap = kernels.cka_gap(one, other, centered=True)
        gap.backward()
        assert float(gap.detach()) == 0
        assert one.grad is not None
        assert not one.grad.any()

    def test_of_two_rows_says_something_only_uncentred(self) -> None:
        one, other = random_rows(7, (2, 3), (2, 4))
        # What the guard returns is what the formula tends to.
        assert torch.allclose(kernels.cka(one, other, centered=True), torch.ones(()).double())
        assert float(kernels.cka_gap(one, other, centered=False)) > 0
        assert float(kernels.cka_gap(one[:1], other[:1], centered=False)) == 0


class TestMMD:
    def test_equals_the_published_values(self) -> None:
        student, teacher = rows()
        teacher = teacher[:, :4]
        expected = CHECKS.expected("mmd2")
        sigma = CHECKS.parameters("mmd2")["rbf_sigma"]
        linear = functools.partial(kernels.polynomial, degree=1, offset=0.0)
        squared = functools.partial(kernels.polynomial, degree=2, offset=0.0)
        gaussian = functools.partial(kernels.gaussian, bandwidth=sigma)
        assert CHECKS.close(kernels.mmd(student, teacher, linear), expected["linear"])
        assert CHECKS.close(kernels.mmd(student, teacher, squared), expected["poly2_c0"])
        assert CHECKS.close(kernels.mmd(student, teacher, gaussian), expected["rbf"])

    def test_takes_the_median_distance_of_all_rows(self) -> None:
        one, other = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
        assert float(kernels.median_bandwidth(one, other)) == 2
        assert float(kernels.median_bandwidth(one[:1], one[:1])) > 0
