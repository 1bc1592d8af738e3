import math
from typing import Literal

import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.logit.test_kd import network, random_pair
from workers.distill.methods.base import Moment
from workers.distill.methods.logit import ctkd, kd

Scope = Literal["global", "instance"]


def method(scope: Scope = "global", classes: int = 3) -> ctkd.CTKD:
    torch.manual_seed(0)
    params = ctkd.CTKD.Params(scope=scope)
    return ctkd.CTKD(params, network(classes), network(classes)).double()


class TestCurriculumLoss:
    def test_equals_kd_at_one_temperature(self) -> None:
        student, teacher = random_pair(0, 4, 5)
        loss = ctkd.curriculum_loss(student, teacher, torch.full((4,), 3.0, dtype=torch.float64))
        assert torch.allclose(loss, kd.kd_loss(student, teacher, temperature=3.0), rtol=1e-12)

    def test_takes_each_sample_at_its_own_temperature(self) -> None:
        student, teacher = random_pair(1, 2, 5)
        temperatures = torch.tensor([2.0, 7.0], dtype=torch.float64)
        alone = [
            kd.kd_loss(student[[n]], teacher[[n]], temperature=float(temperatures[n]))
            for n in range(2)
        ]
        loss = ctkd.curriculum_loss(student, teacher, temperatures)
        assert torch.allclose(loss, torch.stack(alone).mean(), rtol=1e-12)

    def test_has_the_gradient_of_its_value_for_logits_and_temperatures(self) -> None:
        student, teacher = random_pair(2, 3, 4)
        temperatures = torch.tensor([1.5, 4.0, 15.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda logits, own: ctkd.curriculum_loss(logits, teacher, own),
            (student.requires_grad_(), temperatures),
        )


class TestCurriculum:
    @pytest.mark.parametrize(("epoch", "place"), [(0, 0), (1, 1), (5, 2), (10, 3), (240, 4)])
    def test_opposition_equals_the_published_values(self, epoch: int, place: int) -> None:
        expected = CHECKS.expected("ctkd_temperature")["lambda_epoch_0_1_5_10_240"][place]
        assert math.isclose(ctkd.adversity(epoch, epochs=10), expected, abs_tol=1e-8)

    def test_opposition_is_full_at_once_without_a_curriculum(self) -> None:
        assert ctkd.adversity(1, epochs=0) == -1

    def test_scaling_a_gradient_leaves_the_value(self) -> None:
        values = torch.tensor([0.1, -3.0], requires_grad=True)
        scaled = ctkd.scale_gradient(values, -0.25)
        assert torch.equal(scaled, values)
        scaled.sum().backward()
        assert values.grad is not None
        assert torch.equal(values.grad, torch.tensor([-0.25, -0.25]))


class TestCTKD:
    def test_first_temperature_equals_the_published_value(self) -> None:
        logits, _ = random_pair(3, 2, 3)
        expected = CHECKS.expected("ctkd_temperature")["T_initial"]
        assert CHECKS.close(method().temperatures(logits, logits), [expected, expected])

    @pytest.mark.parametrize("scope", ["global", "instance"])
    def test_temperature_learns_to_raise_the_loss(self, scope: Scope) -> None:
        built = method(scope, classes=5)
        student, teacher = random_pair(4, 6, 5)
        given = (
            scenes.features(student),
            scenes.features(teacher),
            scenes.batch([0, 1, 2, 3, 4, 0]),
            Moment(epoch=20, step=20, steps_per_epoch=1),
        )
        before = built.terms(*given)["ctkd"]
        before.backward()
        with torch.no_grad():
            for parameter in built.parameters():
                assert parameter.grad is not None
                parameter.sub_(1e-4 * parameter.grad)  # a step of plain descent
        assert float(built.terms(*given)["ctkd"].detach()) > float(before.detach())

    @pytest.mark.parametrize("scope", ["global", "instance"])
    def test_student_learns_at_the_given_temperatures_as_if_they_were_fixed(
        self, scope: Scope
    ) -> None:
        built = method(scope, classes=5)
        student, teacher = random_pair(5, 4, 5)
        student.requires_grad_()
        terms = built.terms(
            scenes.features(student),
            scenes.features(teacher),
            scenes.batch([0, 1, 2, 3]),
            scenes.MOMENT,
        )
        gradient = torch.autograd.grad(terms["ctkd"], student)[0]
        fixed = built.temperatures(student, teacher).detach()
        expected = torch.autograd.grad(ctkd.curriculum_loss(student, teacher, fixed), student)[0]
        assert torch.allclose(gradient, 0.9 * expected, rtol=1e-9)

    def test_each_sample_has_its_own_temperature_within_the_bounds(self) -> None:
        logits, other = random_pair(6, 8, 3)
        temperatures = method("instance").temperatures(logits * 100, other * 100)
        assert temperatures.unique().numel() > 1
        assert float(temperatures.detach().min()) >= 1
        assert float(temperatures.detach().max()) <= 21

    def test_is_zero_when_both_agree(self) -> None:
        _, teacher = random_pair(7, 3, 3)
        terms = method().terms(
            scenes.features(teacher),
            scenes.features(teacher),
            scenes.batch([0, 1, 2]),
            scenes.MOMENT,
        )
        assert float(terms["ctkd"].detach()) == 0

    @pytest.mark.parametrize("scope", ["global", "instance"])
    def test_is_finite_at_extreme_logits(self, scope: Scope) -> None:
        student = torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.float64, requires_grad=True)
        terms = method(scope).terms(
            scenes.features(student),
            scenes.features(-student.detach()),
            scenes.batch([2]),
            scenes.MOMENT,
        )
        terms["ctkd"].backward()
        assert terms["ctkd"].isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()
