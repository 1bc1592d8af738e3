"""How the two gradients of a student are measured and kept in proportion."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distill import folders
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment, Terms, distillation_terms
from workers.distill.networks import catalog as networks
from workers.distill.training import balance
from workers.distill.training.balance import EVERY, FIRST, MEMORY, GradientBalance

CPU = torch.device("cpu")


def moment(step: int) -> Moment:
    return Moment(epoch=1, step=step, steps_per_epoch=100)


def plain(loss: Tensor) -> Tensor:
    return loss


class Student(nn.Module):
    """Parameters whose gradients by term are known: 3 and 4 for the task make a norm of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.zeros(()))
        self.other = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)

    def terms(self, strength: float, **more: Tensor) -> Terms:
        task = 3 * self.one + 4 * self.other
        return {"task": task, "far": strength * self.one, **more}


def made(student: Student, limit: float | None = 1.0, **changes: Any) -> GradientBalance:
    given: dict[str, Any] = {"task_weight": 1.0, "chosen": distillation_terms} | changes
    return GradientBalance(student.parameters(), CPU, limit=limit, **given)


def gradient(terms: Terms, parameter: nn.Parameter, name: str) -> float:
    found = torch.autograd.grad(terms[name], parameter, retain_graph=True, allow_unused=True)[0]
    return 0.0 if found is None else float(found)


class TestGradientBalance:
    @pytest.mark.parametrize(
        ("strength", "limit", "left"), [(50, 1.0, 5.0), (50, 2.0, 10.0), (4, 1.0, 4.0)]
    )
    def test_keeps_the_gradient_within_the_limit_and_never_raises_it(
        self, strength: float, limit: float, left: float
    ) -> None:
        student = Student()
        terms = made(student, limit)(student.terms(strength), moment(1), plain)
        assert gradient(terms, student.one, "far") == pytest.approx(left)
        assert gradient(terms, student.one, "task") == 3

    def test_without_a_limit_the_terms_are_the_same_objects(self) -> None:
        student, measured = Student(), None
        measured = made(student, None)
        terms = student.terms(100)
        assert measured(terms, moment(1), plain) is terms
        assert measured.metrics() == {"balance/ratio": pytest.approx(20)}

    def test_compares_with_the_task_at_weight_one(self) -> None:
        student = Student()
        terms = student.terms(50)
        terms["task"] = 0.1 * terms["task"]
        balanced = made(student, task_weight=0.1)(terms, moment(1), plain)
        assert gradient(balanced, student.one, "far") == pytest.approx(5)

    def test_weighs_and_measures_only_the_chosen_terms(self) -> None:
        student = Student()
        terms = student.terms(10, near=1000 * student.other)
        balanced = made(student, chosen=lambda _: {"far"})(terms, moment(1), plain)
        assert gradient(balanced, student.one, "far") == pytest.approx(5)
        assert balanced["near"] is terms["near"]

    def test_measures_each_of_the_first_steps_and_then_every_so_many(self) -> None:
        student, counted = Student(), 0
        measured = made(student)
        for step in range(1, 2 * EVERY + 1):
            measured(student.terms(1), moment(step), plain)
            counted = int(measured.state_dict()["counts"][0])
        assert counted == FIRST + 2

    def test_means_are_plain_at_first_and_then_forget(self) -> None:
        student = Student()
        measured = made(student)
        strengths = [float(10 * step) for step in range(1, MEMORY + 3)]
        steps = [*range(1, FIRST + 1), EVERY, 2 * EVERY]
        for step, strength in zip(steps, strengths, strict=True):
            measured(student.terms(strength), moment(step), plain)
        mean = sum(strengths[:MEMORY]) / MEMORY
        for strength in strengths[MEMORY:]:
            mean += (strength - mean) / MEMORY
        assert measured.metrics()["balance/ratio"] == pytest.approx(mean / 5)

    def test_a_term_without_gradient_counts_as_nothing(self) -> None:
        student = Student()
        measured = made(student)
        off = {"task": student.terms(1)["task"], "far": torch.zeros(())}
        assert float(measured(off, moment(1), plain)["far"]) == 0
        assert measured.metrics() == {"balance/ratio": 0.0, "balance/factor": 1.0}

    def test_the_scale_of_float16_cancels_and_an_overflow_is_not_counted(self) -> None:
        student = Student()
        measured = made(student)
        measured(student.terms(50), moment(1), lambda loss: loss * 1024)
        measured(student.terms(50), moment(2), lambda loss: loss * float("inf"))
        measured(student.terms(50), moment(3), lambda loss: loss * 256)
        assert measured.metrics()["balance/ratio"] == pytest.approx(10)
        assert int(measured.state_dict()["counts"][0]) == 2

    def test_until_something_was_measured_nothing_is_changed(self) -> None:
        student = Student()
        terms = made(student)(student.terms(50), moment(1), lambda loss: loss * float("inf"))
        assert gradient(terms, student.one, "far") == 50

    def test_tells_in_which_share_of_the_measurements_the_labels_were_drowned(self) -> None:
        student = Student()
        measured = made(student, None)
        for step, strength in enumerate((60.0, 60.0, 60.0, 40.0), start=1):
            measured(student.terms(strength), moment(step), plain)
        assert measured.dominated_share() == 0.75

    def test_continues_from_its_state(self) -> None:
        student = Student()
        whole, first, second = (made(student) for _ in range(3))
        for step in range(1, 4):
            whole(student.terms(10.0 * step), moment(step), plain)
            if step < 3:
                first(student.terms(10.0 * step), moment(step), plain)
        second.load_state_dict(first.state_dict())
        second(student.terms(30.0), moment(3), plain)
        assert second.metrics() == whole.metrics()

    def test_the_gradients_of_the_step_itself_stay_as_they_were(self) -> None:
        student, alone = Student(), Student()
        terms = made(student, None)(student.terms(7), moment(1), plain)
        torch.stack(list(terms.values())).sum().backward()
        torch.stack(list(alone.terms(7).values())).sum().backward()
        assert student.one.grad is not None
        assert torch.equal(student.one.grad, torch.tensor(10.0))
        assert [p.grad for p in student.parameters()] == [p.grad for p in alone.parameters()]


class TestOfMethod:
    @pytest.mark.parametrize(
        ("method", "limit"),
        [
            ({"name": "at", "balance": "auto"}, 1.0),
            ({"name": "rkd", "balance": "auto"}, 1.0),
            ({"name": "dist", "balance": "auto"}, 1.0),
            ({"name": "dkd", "balance": "auto"}, 1.0),
            ({"name": "kd", "standardize": "population", "balance": "auto"}, 1.0),
            ({"name": "at", "balance": "published"}, None),
            ({"name": "kd", "balance": 2}, 2.0),
            (
                {"name": "combine", "methods": [{"name": "kd"}, {"name": "at"}], "balance": "auto"},
                1,
            ),
        ],
    )
    def test_measures_what_is_asked_for(self, method: dict[str, Any], limit: float | None) -> None:
        found = of(method)
        assert found is not None
        assert found.limit == limit

    @pytest.mark.parametrize(
        "method",
        [
            {"name": "at"},  # a config of an earlier version
            {"name": "at", "balance": "auto", "task_weight": 0},
            {"name": "kd", "balance": "auto"},
            {"name": "kd", "balance": "published"},
            {"name": "combine", "methods": [{"name": "kd"}, {"name": "ctkd"}], "balance": "auto"},
            {"name": "ce"},
        ],
    )
    def test_costs_nothing_where_there_is_nothing_to_keep(self, method: dict[str, Any]) -> None:
        assert of(method) is None


def of(choice: dict[str, Any]) -> GradientBalance | None:
    student, teacher = (
        networks.build(folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={})
        for _ in range(2)
    )
    return balance.of_method(catalog.build(choice, student, teacher), student, CPU)
