import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.logit.test_kd import network, random_pair
from workers.distill import errors
from workers.distill.methods.logit import nkd

LABELS = torch.tensor([0, 4, 2, 2])


def loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    others = nkd.non_target_loss(student, teacher, labels, temperature=2.0)
    return nkd.target_loss(student, teacher, labels) + others


class TestNKDLoss:
    def test_equals_the_published_values(self) -> None:
        expected = CHECKS.expected("nkd_g1.5_tau1")
        given = (
            CHECKS.tensor("logits_s"),
            CHECKS.tensor("logits_t"),
            CHECKS.tensor("target"),
        )
        others = 1.5 * nkd.non_target_loss(*given, temperature=1.0)
        assert CHECKS.close(nkd.target_loss(*given), expected["target_term"])
        assert CHECKS.close(others, expected["non_target_term"])
        assert CHECKS.close(nkd.target_loss(*given) + others, expected["loss"])

    def test_other_classes_reach_their_floor_when_both_agree(self) -> None:
        _, teacher = random_pair(0, 4, 5)
        kept = torch.stack(
            [
                torch.cat([row[:label], row[label + 1 :]])
                for row, label in zip(teacher, LABELS.tolist(), strict=True)
            ]
        )
        shares = (kept / 2).softmax(1)
        entropy = -(shares * shares.log()).sum(1).mean()
        loss = nkd.non_target_loss(teacher, teacher, LABELS, temperature=2.0)
        assert torch.allclose(loss, 4 * entropy, rtol=1e-9)

    def test_other_classes_pull_no_further_when_both_agree(self) -> None:
        _, teacher = random_pair(1, 4, 5)
        student = teacher.clone().requires_grad_()
        nkd.non_target_loss(student, teacher, LABELS, temperature=2.0).backward()
        assert student.grad is not None
        assert torch.allclose(student.grad, torch.zeros_like(student), atol=1e-15)

    def test_ignores_a_constant_added_to_a_row(self) -> None:
        student, teacher = random_pair(2, 4, 5)
        shifted = student + torch.arange(4, dtype=torch.float64)[:, None]
        one, other = (loss(logits, teacher, LABELS) for logits in (student, shifted))
        assert torch.allclose(one, other, rtol=1e-9)

    def test_two_classes_leave_only_the_true_one(self) -> None:
        pair = (CHECKS.tensor("logits2_s"), CHECKS.tensor("logits2_t"))
        labels = CHECKS.tensor("target2")
        assert float(nkd.non_target_loss(*pair, labels, temperature=2.0)) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = random_pair(3, 4, 5)
        student.requires_grad_()
        assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher, LABELS), (student,))

    @pytest.mark.parametrize("label", [0, 1])
    def test_is_finite_however_far_apart_the_logits_are(self, label: int) -> None:
        student = torch.tensor([[50_000.0, 0.0, -50_000.0]], requires_grad=True)
        actual = loss(student, torch.tensor([[-50_000.0, 50_000.0, 0.0]]), torch.tensor([label]))
        actual.backward()
        assert actual.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


class TestNKD:
    def test_adds_both_parts_to_the_task(self) -> None:
        params = nkd.NKD.Params(gamma=1.5, temperature=1)
        terms = nkd.NKD(params, network(3), network(3)).terms(
            scenes.features(CHECKS.tensor("logits_s")),
            scenes.features(CHECKS.tensor("logits_t")),
            scenes.batch(CHECKS.tensor("target")),
            scenes.MOMENT,
        )
        assert list(terms) == ["task", "target", "non_target"]
        assert CHECKS.close(terms["task"], CHECKS.expected("ce")["loss"])
        parts = terms["target"] + terms["non_target"]
        assert CHECKS.close(parts, CHECKS.expected("nkd_g1.5_tau1")["loss"])

    def test_wants_one_true_class_for_each_image(self) -> None:
        assert not nkd.NKD.accepts_mixed

    def test_refuses_one_class(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="at least 2 classes, got 1"):
            nkd.NKD(nkd.NKD.Params(), network(1), network(1))
