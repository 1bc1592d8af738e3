import copy

import pytest
import torch
from torch import nn

from tests.distill.golden import CHECKS
from workers.distill import errors
from workers.distill.config.training import Training, expand
from workers.distill.methods.base import Moment, Terms
from workers.distill.runtime.precision import Precision
from workers.distill.training import dot
from workers.distill.training.optimizers import TrainOptimizer

FLOAT32 = Precision("float32", torch.device("cpu"))
CHECK = CHECKS.parameters("dot_scalar")


class Learner(nn.Module):
    """Parameters that both losses know, and some that only one does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.shared = nn.Parameter(torch.randn(4, 2, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(2, dtype=torch.float64))
        self.adapter = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))

    def terms(self, step: int) -> Terms:
        images = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).double()
        hidden = (images @ self.shared).tanh()
        return {
            "task": (hidden * self.head).square().sum(),
            "far": (hidden @ self.adapter - 1).square().mean(),
            "near": hidden.abs().mean(),
            "off": hidden.new_zeros(()),
        }


def training(name: str, **fields: object) -> Training:
    extra = {key: fields.pop(key) for key in ("clip_norm",) if key in fields}
    return expand(
        {
            "optimizer": {"name": name, "learning_rate": 0.1, "weight_decay": 0.01, **fields},
            "schedule": {"name": "constant"},
            **extra,
        }
    )


def trained(training: Training, without: str = "") -> Learner:
    learner = Learner()
    optimizer = TrainOptimizer((learner,), training, FLOAT32)
    for step in range(1, 7):
        terms = {name: term for name, term in learner.terms(step).items() if name != without}
        optimizer.step(terms, Moment(1, step, 10))
    return learner


class TestDOT:
    def test_follows_the_published_sequence(self) -> None:
        parameter = nn.Parameter(torch.tensor(CHECK["p0"], dtype=torch.float64))
        optimizer = dot.DOT(
            [parameter],
            lr=CHECK["lr"],
            momentum=CHECK["momentum"],
            delta=CHECK["delta"],
            weight_decay=CHECK["weight_decay"],
        )
        expected = CHECKS.expected("dot_scalar")["p_after_each_step"]
        for task, rest, value in zip(CHECK["grad_task"], CHECK["grad_kd"], expected, strict=True):
            gradients = (torch.tensor(number, dtype=torch.float64) for number in (task, rest))
            optimizer.move(*([gradient] for gradient in gradients))
            assert CHECKS.close(parameter.detach(), value)

    def test_follows_the_published_sequence_of_sgd_without_delta(self) -> None:
        parameter = nn.Parameter(torch.tensor(CHECK["p0"], dtype=torch.float64))
        optimizer = dot.DOT([parameter], lr=0.1, momentum=0.9, delta=0.0, weight_decay=0.01)
        expected = CHECKS.expected("dot_scalar")["p_sgd_reference"]
        for task, rest, value in zip(CHECK["grad_task"], CHECK["grad_kd"], expected, strict=True):
            gradients = (torch.tensor(number, dtype=torch.float64) for number in (task, rest))
            optimizer.move(*([gradient] for gradient in gradients))
            assert CHECKS.close(parameter.detach(), value)

    def test_one_sided_gradients_have_one_buffer_of_the_plain_momentum(self) -> None:
        task_only, rest_only, both = (
            nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(3)
        )
        optimizer = dot.DOT(
            [task_only, rest_only, both], lr=0.1, momentum=0.5, delta=0.25, weight_decay=0.1
        )
        one = torch.ones((), dtype=torch.float64)
        optimizer.move([one, None, one], [None, one, one])
        # By hand. Task: 1 + 0.1 * 1 = 1.1. Rest: no decay yet, 1. Both: 1.1 and 1.
        assert float(task_only.detach()) == pytest.approx(1 - 0.11)
        assert float(rest_only.detach()) == pytest.approx(1 - 0.1)
        assert float(both.detach()) == pytest.approx(1 - 0.21)
        optimizer.move([one, None, one], [None, one, one])
        # Task: 0.5 * 1.1 + 1 + 0.089. Rest: 0.5 * 1 + 1 + 0.09. Both: 0.25 * 1.1 + 1 + 0.079,
        # and 0.75 * 1 + 1.
        assert float(task_only.detach()) == pytest.approx(0.89 - 0.1 * 1.639)
        assert float(rest_only.detach()) == pytest.approx(0.9 - 0.1 * 1.59)
        assert float(both.detach()) == pytest.approx(0.79 - 0.1 * (1.354 + 1.75))

    def test_a_parameter_that_neither_knows_stays(self) -> None:
        parameter = nn.Parameter(torch.ones(2))
        optimizer = dot.DOT([parameter], lr=1.0, momentum=0.9, delta=0.05, weight_decay=0.5)
        optimizer.move([None], [None])
        assert torch.equal(parameter, torch.ones(2))

    def test_a_zero_is_not_an_absent_gradient(self) -> None:
        moved = []
        for rest in (None, torch.zeros(())):
            parameter = nn.Parameter(torch.ones(()))
            optimizer = dot.DOT([parameter], lr=0.1, momentum=0.5, delta=0.25, weight_decay=0.0)
            for _ in range(2):
                optimizer.move([torch.ones(())], [rest])
            moved.append(float(parameter.detach()))
        assert moved[0] == pytest.approx(1 - 0.1 - 0.15)
        assert moved[1] == pytest.approx(1 - 0.1 - 0.125)


class TestStepper:
    def test_without_delta_it_is_sgd_on_the_sum(self) -> None:
        apart = trained(training("dot", delta=0.0), without="far")
        together = trained(training("sgd"), without="far")
        for actual, expected in zip(apart.parameters(), together.parameters(), strict=True):
            assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)

    def test_without_delta_and_decay_adapters_follow_sgd_as_well(self) -> None:
        # With decay they do not: what only the teacher moves decays from its second step on.
        apart = trained(training("dot", delta=0.0, weight_decay=0.0))
        together = trained(training("sgd", weight_decay=0.0))
        for actual, expected in zip(apart.parameters(), together.parameters(), strict=True):
            assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)

    def test_clips_what_sgd_would_clip(self) -> None:
        limit = {"clip_norm": 0.2, "weight_decay": 0.0}
        apart, together = (
            trained(training("dot", delta=0.0, **limit)),
            trained(training("sgd", **limit)),
        )
        for actual, expected in zip(apart.parameters(), together.parameters(), strict=True):
            assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)

    def test_delta_changes_where_training_goes(self) -> None:
        one, other = trained(training("dot")), trained(training("dot", delta=0.0))
        assert not torch.allclose(one.shared, other.shared)

    def test_a_method_with_the_task_alone_is_trained_by_sgd(self) -> None:
        moved = []
        for name in ("dot", "sgd"):
            learner = Learner()
            optimizer = TrainOptimizer((learner,), training(name), FLOAT32)
            for step in (1, 2, 3):
                task = {"task": learner.terms(step)["task"]}
                optimizer.step(task, Moment(1, step, 10))
            moved.append(learner)
        assert torch.allclose(moved[0].shared, moved[1].shared, rtol=1e-12, atol=1e-12)
        assert torch.equal(moved[0].adapter, Learner().adapter)

    def test_refuses_a_method_without_a_task(self) -> None:
        learner = Learner()
        optimizer = TrainOptimizer((learner,), training("dot"), FLOAT32)
        with pytest.raises(errors.BadRecipe, match=r"no task term \(only far\).*sgd"):
            optimizer.step({"far": learner.terms(1)["far"]}, Moment(1, 1, 10))

    def test_returns_the_sum_of_all_terms(self) -> None:
        learner = Learner()
        optimizer = TrainOptimizer((learner,), training("dot"), FLOAT32)
        terms = learner.terms(1)
        total = optimizer.step(terms, Moment(1, 1, 10))
        assert torch.equal(total, torch.stack(list(terms.values())).sum())
        assert not total.requires_grad

    def test_continues_from_its_state(self) -> None:
        whole = Learner()
        optimizer = TrainOptimizer((whole,), training("dot"), FLOAT32)
        for step in (1, 2):
            optimizer.step(whole.terms(step), Moment(1, step, 10))
        other = Learner()
        other.load_state_dict(whole.state_dict())
        continued = TrainOptimizer((other,), training("dot"), FLOAT32)
        continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step(whole.terms(3), Moment(1, 3, 10))
        continued.step(other.terms(3), Moment(1, 3, 10))
        for actual, expected in zip(other.parameters(), whole.parameters(), strict=True):
            assert torch.equal(actual, expected)
