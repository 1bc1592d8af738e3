import math

import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods.logit.test_ce import batch, features
from workers.distill import errors
from workers.distill.functional import standardization
from workers.distill.methods.base import Moment
from workers.distill.methods.logit import kd
from workers.distill.networks.interface import Network


def network(classes: int) -> Network:
    built = Network()
    built.classes = classes
    return built


def random_pair(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 3
    return student, teacher


class TestKDLoss:
    @pytest.mark.parametrize("temperature", [1, 4])
    def test_equals_the_published_value(self, temperature: int) -> None:
        loss = kd.kd_loss(
            CHECKS.tensor("logits_s"),
            CHECKS.tensor("logits_t"),
            temperature=float(temperature),
        )
        assert CHECKS.close(loss, CHECKS.expected(f"kd_tau{temperature}")["loss"])

    def test_gradient_equals_the_closed_form(self) -> None:
        student = CHECKS.tensor("logits_s").requires_grad_()
        kd.kd_loss(student, CHECKS.tensor("logits_t"), temperature=4.0).backward()
        assert student.grad is not None
        expected = CHECKS.expected("kd_gradient_tau4")["grad_wrt_student_logits"]
        assert CHECKS.close(student.grad, expected)

    def test_is_zero_when_both_agree(self) -> None:
        _, teacher = random_pair(0, 5, 7)
        assert float(kd.kd_loss(teacher, teacher, temperature=4.0)) == 0

    def test_ignores_a_constant_added_to_a_row(self) -> None:
        student, teacher = random_pair(1, 5, 7)
        shifted = student + torch.arange(5, dtype=torch.float64)[:, None]
        one = kd.kd_loss(student, teacher, temperature=2.0)
        assert torch.allclose(one, kd.kd_loss(shifted, teacher, temperature=2.0), rtol=1e-9)

    def test_tends_to_squared_distance_of_centred_logits_at_high_temperature(self) -> None:
        student, teacher = random_pair(2, 5, 7)
        centred = (student - student.mean(1, keepdim=True)) - (
            teacher - teacher.mean(1, keepdim=True)
        )
        limit = centred.square().sum(1).mean() / (2 * 7)
        # The error falls with 1 / temperature, hence the loose tolerance.
        loss = kd.kd_loss(student, teacher, temperature=1e4)
        assert torch.allclose(loss, limit, rtol=1e-2)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = random_pair(3, 4, 5)
        student.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda logits: kd.kd_loss(logits, teacher, temperature=3.0), (student,)
        )

    def test_is_finite_at_a_gap_of_a_thousand(self) -> None:
        student = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
        loss = kd.kd_loss(student, torch.tensor([[0.0, 1000.0, 0.0]]), temperature=1.0)
        loss.backward()
        assert math.isclose(float(loss.detach()), 1000, rel_tol=1e-6)
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_is_zero_for_one_class(self) -> None:
        assert float(kd.kd_loss(torch.ones(3, 1), torch.zeros(3, 1), temperature=4.0)) == 0


class TestKD:
    def test_total_equals_the_published_value(self) -> None:
        method = kd.KD(kd.KD.Params(), network(3), network(3))
        terms = method.terms(
            features(CHECKS.tensor("logits_s")),
            features(CHECKS.tensor("logits_t")),
            batch(CHECKS.tensor("target")),
            Moment(1, 1, 1),
        )
        total = torch.stack(list(terms.values())).sum()
        assert CHECKS.close(total, CHECKS.expected("kd_total")["loss"])

    def test_leaves_only_the_task_after_its_stop_epoch(self) -> None:
        method = kd.KD(kd.KD.Params(stop_epoch=2), network(3), network(3))
        given = (
            features(CHECKS.tensor("logits_s")),
            features(CHECKS.tensor("logits_t")),
            batch(CHECKS.tensor("target")),
        )
        assert float(method.terms(*given, Moment(2, 2, 1))["kd"]) > 0
        stopped = method.terms(*given, Moment(3, 3, 1))
        assert float(stopped["kd"]) == 0
        assert float(stopped["task"]) > 0

    def test_refuses_different_classes_and_names_both(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"teacher has 5, the student 3"):
            kd.KD(kd.KD.Params(), network(3), network(5))

    def test_refuses_to_work_without_a_teacher(self) -> None:
        with pytest.raises(errors.BadRecipe, match="kd needs a teacher"):
            kd.KD(kd.KD.Params(), network(3), None)

    @pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
    def test_refuses_a_temperature_that_is_not_positive_and_finite(
        self, temperature: float
    ) -> None:
        with pytest.raises(ValueError, match="temperature"):
            kd.KD.Params(temperature=temperature)


class TestStandardizedKD:
    @pytest.mark.parametrize(
        ("by", "check"), [("sample", "lskd_unbiased_code"), ("population", "lskd_biased")]
    )
    def test_equals_the_published_values(self, by: standardization.Deviation, check: str) -> None:
        params = kd.KD.Params(kd_weight=9, temperature=2, standardize=by)
        terms = kd.KD(params, network(3), network(3)).terms(
            features(CHECKS.tensor("logits_s")),
            features(CHECKS.tensor("logits_t")),
            batch(CHECKS.tensor("target")),
            Moment(1, 1, 1),
        )
        expected = CHECKS.expected(check)
        assert CHECKS.close(terms["kd"], expected["loss_w9"])
        assert CHECKS.close(terms["kd"] / 9, expected["loss"])

    @pytest.mark.parametrize("by", ["population", "sample"])
    def test_ignores_scale_and_shift_of_each_sample(self, by: standardization.Deviation) -> None:
        logits, _ = random_pair(8, 4, 5)
        scale = torch.tensor([0.5, 2.0, 30.0, 1.0], dtype=torch.float64)[:, None]
        standardized = standardization.standardized(scale * logits - 3 * scale, by=by)
        # Up to the 1e-7 in the denominator.
        assert torch.allclose(standardized, standardization.standardized(logits, by=by), rtol=1e-6)

    def test_changes_nothing_unless_asked(self) -> None:
        logits, _ = random_pair(9, 4, 5)
        assert standardization.standardized(logits, by="none") is logits

    @pytest.mark.parametrize("by", ["population", "sample"])
    def test_has_the_gradient_of_its_value(self, by: standardization.Deviation) -> None:
        logits, _ = random_pair(10, 3, 4)
        assert torch.autograd.gradcheck(
            lambda given: standardization.standardized(given, by=by), (logits.requires_grad_(),)
        )

    @pytest.mark.parametrize("by", ["population", "sample"])
    @pytest.mark.parametrize("classes", [1, 3])
    def test_is_finite_for_constant_logits_and_for_one_class(
        self, classes: int, by: standardization.Deviation
    ) -> None:
        logits = torch.full((2, classes), 7.0, requires_grad=True)
        teacher = torch.arange(2.0 * classes).reshape(2, classes)
        loss = kd.kd_loss(
            standardization.standardized(logits, by=by),
            standardization.standardized(teacher, by=by),
            temperature=2.0,
        )
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
