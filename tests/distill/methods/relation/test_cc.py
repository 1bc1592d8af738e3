import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.relation.rows import rows
from workers.distill import errors
from workers.distill.methods.relation import cc


class TestCCLoss:
    def test_equals_the_published_value(self) -> None:
        loss = cc.cc_loss(CHECKS.tensor("emb_s"), CHECKS.tensor("emb_t")[:, :4])
        assert CHECKS.close(loss, CHECKS.expected("cc_repdistiller")["loss"])

    def test_is_zero_when_both_agree(self) -> None:
        same = rows(0, 5, 4)
        assert float(cc.cc_loss(same, same)) == 0

    def test_depends_on_who_stands_beside_whom(self) -> None:
        student, teacher = rows(1, 6, 4), rows(2, 6, 4)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        one, other = cc.cc_loss(student, teacher), cc.cc_loss(student[order], teacher[order])
        assert not torch.allclose(one, other, rtol=1e-3)

    def test_reading_the_batch_backwards_changes_nothing(self) -> None:
        student, teacher = rows(3, 6, 4), rows(4, 6, 4)
        one, other = cc.cc_loss(student, teacher), cc.cc_loss(student.flip(0), teacher.flip(0))
        assert torch.allclose(one, other, rtol=1e-12)

    def test_has_the_gradient_of_its_value_on_both_sides(self) -> None:
        student, teacher = rows(5, 4, 3), rows(6, 4, 3)
        assert torch.autograd.gradcheck(
            cc.cc_loss, (student.requires_grad_(), teacher.requires_grad_())
        )

    @pytest.mark.parametrize("count", [1, 2])
    def test_is_finite_for_the_smallest_batches(self, count: int) -> None:
        student = rows(7, count, 3).requires_grad_()
        loss = cc.cc_loss(student, rows(8, count, 3))
        loss.backward()
        assert loss.isfinite()
        assert count > 1 or float(loss.detach()) == 0
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_is_finite_for_equal_and_for_zero_rows(self) -> None:
        student = torch.zeros(3, 4, requires_grad=True)
        loss = cc.cc_loss(student, torch.zeros(3, 4))
        loss.backward()
        assert float(loss.detach()) == 0
        assert student.grad is not None
        assert student.grad.isfinite().all()


class TestCC:
    def test_learns_both_projections_and_leaves_the_teacher_alone(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = cc.CC(cc.CC.Params(), student, teacher)
        outputs = scenes.observed(student, teacher, scenes.pictures(4))
        terms = method.terms(*outputs, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert list(terms) == ["task", "cc"]
        terms["cc"].backward()
        shapes = {name: tuple(value.shape) for name, value in method.named_parameters()}
        assert shapes == {
            "projections.student.weight": (128, 8),
            "projections.student.bias": (128,),
            "projections.teacher.weight": (128, 9),
            "projections.teacher.bias": (128,),
        }
        assert all(parameter.grad is not None for parameter in method.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_weighs_the_products(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        torch.manual_seed(0)
        method = cc.CC(cc.CC.Params(width=5), student, teacher)
        outputs = scenes.observed(student, teacher, scenes.pictures(4))
        term = method.terms(*outputs, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)["cc"]
        projected = [
            method.projections[role](features.pooled)
            for role, features in zip(("student", "teacher"), outputs, strict=True)
        ]
        assert torch.allclose(term, 0.02 * cc.cc_loss(*projected), rtol=1e-6)

    def test_refuses_to_work_without_a_teacher(self) -> None:
        with pytest.raises(errors.BadRecipe, match="cc needs a teacher"):
            cc.CC(cc.CC.Params(), scenes.network(), None)
