import math

import pytest
import torch

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.relation.rows import rows, turn
from workers.distill.functional import relations
from workers.distill.methods.relation import rkd
from workers.distill.networks.interface import Network


def losses(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return torch.stack([rkd.distance_loss(student, teacher), rkd.angle_loss(student, teacher)])


class TestRKDLosses:
    def test_equal_the_published_values(self) -> None:
        expected = CHECKS.expected("rkd")
        loss = losses(CHECKS.tensor("emb_s"), CHECKS.tensor("emb_t"))
        assert CHECKS.close(loss, [expected["distance"], expected["angle"]])

    def test_angles_equal_those_of_a_triangle(self) -> None:
        corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
        cosines = relations.pairwise_angles(corners)
        assert math.isclose(float(cosines[0, 1, 2]), 0, abs_tol=1e-15)
        assert math.isclose(float(cosines[1, 0, 2]), 2 / math.hypot(2, 5), rel_tol=1e-12)
        assert math.isclose(float(cosines[2, 0, 1]), 5 / math.hypot(2, 5), rel_tol=1e-12)
        assert float(cosines[0, 0, 1]) == 0
        assert math.isclose(float(cosines[0, 1, 1]), 1, rel_tol=1e-12)

    def test_are_zero_when_both_agree(self) -> None:
        same = rows(0, 5, 4)
        assert losses(same, same).tolist() == [0, 0]

    def test_ignore_turning_moving_and_scaling_the_embeddings(self) -> None:
        student, teacher = rows(1, 5, 4), rows(2, 5, 6)
        moved = 7 * student @ turn(3, 4) + rows(4, 1, 4)
        assert torch.allclose(losses(moved, teacher), losses(student, teacher), rtol=1e-9)

    def test_ignore_the_order_of_the_batch(self) -> None:
        student, teacher = rows(5, 6, 4), rows(6, 6, 3)
        order = torch.randperm(6)
        one, other = losses(student, teacher), losses(student[order], teacher[order])
        assert torch.allclose(one, other, rtol=1e-9)

    def test_have_the_gradient_of_their_value(self) -> None:
        student, teacher = rows(7, 4, 3), rows(8, 4, 5)
        assert torch.autograd.gradcheck(
            lambda given: losses(given, teacher).sum(), (student.requires_grad_(),)
        )

    @pytest.mark.parametrize("count", [1, 2])
    def test_are_zero_for_the_smallest_batches(self, count: int) -> None:
        student = rows(9, count, 3).requires_grad_()
        loss = losses(student, rows(10, count, 5))
        loss.sum().backward()
        assert torch.allclose(loss, torch.zeros(2, dtype=torch.float64), atol=1e-15)
        assert student.grad is not None
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize("kind", ["zero", "equal", "two equal", "near", "large"])
    def test_are_finite_for_degenerate_rows(self, kind: str) -> None:
        two_equal = rows(11, 4, 3).float()
        two_equal[1] = two_equal[0]
        made = {
            "zero": torch.zeros(4, 3),
            "equal": torch.ones(4, 3),
            "two equal": two_equal,
            "near": 100 + 1e-6 * rows(12, 4, 3).float(),
            "large": 1e15 * rows(13, 4, 3).float(),
        }[kind].requires_grad_()
        loss = losses(made, rows(14, 4, 5).float())
        assert gradients.is_finite(loss, made)

    def test_equal_rows_pass_no_gradient_between_them(self) -> None:
        student = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 5.0]], requires_grad=True)
        losses(student, rows(15, 3, 2).float()).sum().backward()
        assert student.grad is not None
        # Division by a tiny length instead would make gradients of the order of 1e12.
        assert float(student.grad.abs().max()) < 10


class TestRKD:
    def test_total_equals_the_published_value(self) -> None:
        teacher = Network()
        teacher.pooled_width = 1
        terms = rkd.RKD(rkd.RKD.Params(), Network(), teacher).terms(
            scenes.features(pooled=CHECKS.tensor("emb_s")),
            scenes.features(pooled=CHECKS.tensor("emb_t")),
            scenes.batch([0, 1, 2]),
            scenes.MOMENT,
        )
        assert list(terms) == ["task", "distance", "angle"]
        assert CHECKS.close(terms["distance"] + terms["angle"], CHECKS.expected("rkd")["loss"])
