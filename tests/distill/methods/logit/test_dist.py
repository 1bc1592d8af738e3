import pytest
import torch

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.logit.test_kd import network, random_pair
from workers.distill.functional import relations
from workers.distill.methods.logit import dist


def total(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    return torch.stack(relations.correlation_gaps(student, teacher, temperature=temperature)).sum()


class TestDISTLoss:
    @pytest.mark.parametrize("temperature", [1, 4])
    def test_equals_the_published_values(self, temperature: int) -> None:
        expected = CHECKS.expected(f"dist_tau{temperature}")
        loss = relations.correlation_gaps(
            CHECKS.tensor("logits4_s"),
            CHECKS.tensor("logits4_t"),
            temperature=float(temperature),
        )
        assert CHECKS.close(loss.inter, expected["inter"])
        assert CHECKS.close(loss.intra, expected["intra"])

    def test_equals_the_correlations_of_the_standard_library(self) -> None:
        student, teacher = random_pair(0, 5, 4)
        one, other = (logits.softmax(1) for logits in (student, teacher))
        rows = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(one, other, strict=True)]
        loss = relations.correlation_gaps(student, teacher, temperature=1.0)
        # The authors' 1e-8 in the denominator.
        assert torch.allclose(loss.inter, 1 - torch.stack(rows).mean(), atol=1e-6)

    def test_is_zero_when_both_agree(self) -> None:
        _, teacher = random_pair(1, 6, 5)
        # The authors' 1e-8 in the denominator keeps it from being exact.
        assert float(total(teacher, teacher)) < 1e-5

    def test_ignores_a_constant_added_to_a_row(self) -> None:
        student, teacher = random_pair(2, 4, 5)
        shifted = student + torch.arange(4, dtype=torch.float64)[:, None]
        assert torch.allclose(total(student, teacher), total(shifted, teacher), rtol=1e-9)

    def test_ignores_the_order_of_samples_and_of_classes(self) -> None:
        student, teacher = random_pair(3, 6, 5)
        for order in (torch.randperm(6), torch.randperm(6)):
            one, other = student[order], teacher[order]
            assert torch.allclose(total(student, teacher), total(one, other), rtol=1e-9)
        order = torch.randperm(5)
        one, other = student[:, order], teacher[:, order]
        assert torch.allclose(total(student, teacher), total(one, other), rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = random_pair(4, 4, 5)
        student.requires_grad_()
        assert torch.autograd.gradcheck(lambda logits: total(logits, teacher), (student,))

    @pytest.mark.parametrize("samples", [1, 2])
    def test_is_finite_for_the_smallest_batches(self, samples: int) -> None:
        student, teacher = random_pair(5, samples, 5)
        student.requires_grad_()
        loss = relations.correlation_gaps(student, teacher, temperature=4.0)
        total(student, teacher).backward()
        assert loss.inter.isfinite()
        assert loss.intra.isfinite()
        assert loss.intra.requires_grad
        assert samples > 1 or float(loss.intra.detach()) == 0
        assert student.grad is not None
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize("gap", [0.0, 1000.0, 50_000.0])
    def test_is_finite_however_far_apart_the_logits_are(self, gap: float) -> None:
        student = torch.tensor([[gap, 0.0, -gap], [gap, 0.0, -gap]], requires_grad=True)
        teacher = torch.tensor([[-gap, gap, 0.0], [1.0, 2.0, 0.5]])
        loss = total(student, teacher, 1.0)
        assert gradients.is_finite(loss, student)


class TestDIST:
    def test_weighs_both_relations(self) -> None:
        params = dist.DIST.Params(beta=3, gamma=5, temperature=1)
        terms = dist.DIST(params, network(3), network(3)).terms(
            scenes.features(CHECKS.tensor("logits4_s")),
            scenes.features(CHECKS.tensor("logits4_t")),
            scenes.batch([0, 1, 2, 0]),
            scenes.MOMENT,
        )
        expected = CHECKS.expected("dist_tau1")
        assert list(terms) == ["task", "inter", "intra"]
        assert CHECKS.close(terms["inter"], 2 * 3 * expected["inter"])
        assert CHECKS.close(terms["intra"], 2 * 5 * expected["intra"])
