import pytest
import torch

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.relation.rows import rows, turn
from workers.distill.methods.relation import pkt
from workers.distill.networks.interface import Network


class TestPKTLoss:
    def test_equals_the_published_value(self) -> None:
        loss = pkt.pkt_loss(CHECKS.tensor("emb_s"), CHECKS.tensor("emb_t"))
        assert CHECKS.close(loss, CHECKS.expected("pkt")["loss"])

    def test_is_zero_when_both_agree(self) -> None:
        same = rows(0, 5, 4)
        assert float(pkt.pkt_loss(same, same)) == 0

    def test_ignores_turning_and_scaling_the_embeddings(self) -> None:
        student, teacher = rows(1, 5, 4), rows(2, 5, 6)
        turned = pkt.pkt_loss(3 * student @ turn(3, 4), teacher)
        # Scale is ignored up to the 1e-7 added to lengths.
        assert torch.allclose(turned, pkt.pkt_loss(student, teacher), rtol=1e-5)

    def test_ignores_the_order_of_the_batch(self) -> None:
        student, teacher = rows(4, 6, 4), rows(5, 6, 3)
        order = torch.randperm(6)
        one, other = pkt.pkt_loss(student, teacher), pkt.pkt_loss(student[order], teacher[order])
        assert torch.allclose(one, other, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = rows(6, 4, 3), rows(7, 4, 5)
        assert torch.autograd.gradcheck(
            lambda given: pkt.pkt_loss(given, teacher), (student.requires_grad_(),)
        )

    @pytest.mark.parametrize("count", [1, 2])
    def test_is_finite_for_the_smallest_batches(self, count: int) -> None:
        student = rows(8, count, 3).requires_grad_()
        loss = pkt.pkt_loss(student, rows(9, count, 5))
        assert gradients.is_finite(loss, student)
        assert count > 1 or float(loss.detach()) == 0

    @pytest.mark.parametrize("kind", ["zero", "equal", "opposite", "large"])
    def test_is_finite_for_degenerate_rows(self, kind: str) -> None:
        made = {
            "zero": torch.zeros(3, 4),
            "equal": torch.ones(3, 4),
            "opposite": torch.tensor([[1.0], [-1.0], [0.0]]).expand(3, 4).clone(),
            "large": 1e15 * rows(10, 3, 4).float(),
        }[kind].requires_grad_()
        loss = pkt.pkt_loss(made, rows(11, 3, 5).float())
        assert gradients.is_finite(loss, made)


class TestPKT:
    def test_weighs_the_mean_over_all_pairs(self) -> None:
        teacher = Network()
        teacher.pooled_width = 1
        terms = pkt.PKT(pkt.PKT.Params(), Network(), teacher).terms(
            scenes.features(pooled=CHECKS.tensor("emb_s")),
            scenes.features(pooled=CHECKS.tensor("emb_t")),
            scenes.batch([0, 1, 2]),
            scenes.MOMENT,
        )
        assert list(terms) == ["task", "pkt"]
        assert CHECKS.close(terms["pkt"], CHECKS.expected("pkt")["loss_w30000"])
