import functools

import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.logit.test_kd import random_pair
from workers.distill import errors
from workers.distill.methods.relation import mmd

KERNELS: list[mmd.KernelName] = ["linear", "polynomial", "rbf"]


class TestMMDLoss:
    @pytest.mark.parametrize(
        ("kernel", "key"), [("linear", "linear"), ("polynomial", "poly2_c0"), ("rbf", "rbf")]
    )
    def test_equals_the_published_value(self, kernel: mmd.KernelName, key: str) -> None:
        loss = mmd.mmd_loss(
            CHECKS.tensor("emb_s"),
            CHECKS.tensor("emb_t")[:, :4],
            kernel=kernel,
            bandwidth=CHECKS.parameters("mmd2")["rbf_sigma"],
        )
        assert CHECKS.close(loss, CHECKS.expected("mmd2")[key])

    def test_equals_the_sum_over_all_pairs(self) -> None:
        student, teacher = random_pair(0, 4, 3)

        def mean(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            pairs = [(a @ b + 0.5) ** 3 for a in one for b in other]
            return torch.stack(pairs).mean()

        expected = mean(student, student) + mean(teacher, teacher) - 2 * mean(student, teacher)
        loss = mmd.mmd_loss(student, teacher, kernel="polynomial", degree=3, offset=0.5)
        assert torch.allclose(loss, expected, rtol=1e-9)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_is_zero_for_equal_rows_in_any_order(self, kernel: mmd.KernelName) -> None:
        _, teacher = random_pair(1, 6, 4)
        loss = mmd.mmd_loss(teacher[torch.randperm(6)], teacher, kernel=kernel)
        # A difference of means near 100 for the polynomial.
        assert abs(float(loss)) < 1e-10

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_ignores_orthogonal_maps_of_both(self, kernel: mmd.KernelName) -> None:
        student, teacher = random_pair(2, 6, 4)
        turn = torch.linalg.qr(random_pair(3, 4, 4)[0])[0]
        one = mmd.mmd_loss(student, teacher, kernel=kernel)
        other = mmd.mmd_loss(student @ turn, teacher @ turn, kernel=kernel)
        assert torch.allclose(one, other, rtol=1e-9)

    def test_with_a_median_bandwidth_ignores_scale(self) -> None:
        student, teacher = random_pair(4, 6, 4)
        one = mmd.mmd_loss(student, teacher, kernel="rbf")
        other = mmd.mmd_loss(1000 * student, 1000 * teacher, kernel="rbf")
        assert torch.allclose(one, other, rtol=1e-9)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_has_the_gradient_of_its_value(self, kernel: mmd.KernelName) -> None:
        student, teacher = random_pair(5, 4, 3)
        student.requires_grad_()
        loss = functools.partial(
            mmd.mmd_loss, teacher_rows=teacher, kernel=kernel, bandwidth=3.0, offset=1.0
        )
        assert torch.autograd.gradcheck(lambda rows: loss(rows), (student,))

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("images", [1, 2])
    def test_is_finite_for_the_smallest_batches_and_for_zeros(
        self, kernel: mmd.KernelName, images: int
    ) -> None:
        for size in (0.0, 1.0, 1e6):
            student, teacher = (size * rows.float() for rows in random_pair(6, images, 3))
            student.requires_grad_()
            loss = mmd.mmd_loss(student, teacher, kernel=kernel)
            loss.backward()
            assert loss.isfinite()
            assert student.grad is not None
            assert student.grad.isfinite().all()


class TestMMD:
    def test_projects_embeddings_where_widths_differ(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = mmd.MMD(mmd.MMD.Params(mmd_weight=2.0), student, teacher)
        assert method.projection is not None
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(5))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0, 1]), scenes.MOMENT)
        expected = mmd.mmd_loss(
            method.projection(student_out.pooled), teacher_out.pooled, kernel="rbf"
        )
        assert torch.allclose(terms["mmd"], 2 * expected)
        terms["mmd"].backward()
        assert method.projection.weight.grad is not None
        assert method.projection.weight.grad.any()

    def test_has_nothing_to_learn_where_widths_are_equal_or_logits_are_compared(self) -> None:
        equal = mmd.MMD(mmd.MMD.Params(), scenes.network(), scenes.network(2))
        logits = mmd.MMD(
            mmd.MMD.Params(compare="logits", kernel="linear"),
            scenes.network(),
            scenes.other_network(),
        )
        assert not list(equal.parameters())
        assert not list(logits.parameters())
        student, teacher = CHECKS.tensor("logits4_s"), CHECKS.tensor("logits4_t")
        terms = logits.terms(
            scenes.features(student),
            scenes.features(teacher),
            scenes.batch([0, 1, 2, 0]),
            scenes.MOMENT,
        )
        by_hand = (student.mean(0) - teacher.mean(0)).square().sum()
        assert torch.allclose(terms["mmd"], by_hand, rtol=1e-9)

    def test_compares_embeddings_of_any_classes_but_logits_of_equal_ones(self) -> None:
        student, teacher = scenes.network(), scenes.other_network(classes=5)
        mmd.MMD(mmd.MMD.Params(), student, teacher)
        with pytest.raises(errors.IncompatibleNetworks, match="teacher has 5, the student 3"):
            mmd.MMD(mmd.MMD.Params(compare="logits"), student, teacher)
