import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.distill import folders
from tests.distill.golden import CHECKS
from workers.distill import errors
from workers.distill.config.training import Constant, Cosine, Poly, Schedule, Step, Training, expand
from workers.distill.methods.base import Moment
from workers.distill.runtime.precision import Precision, choose_precision
from workers.distill.training.compilation import choose_compile
from workers.distill.training.optimizers import TrainOptimizer, trainable_parameters
from workers.distill.training.schedules import rate_factor

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", CPU)


def moment(step: int, per_epoch: int = 10) -> Moment:
    return Moment(epoch=(step - 1) // per_epoch + 1, step=step, steps_per_epoch=per_epoch)


def quadratic(training: Training, steps: int) -> torch.Tensor:
    module = nn.Linear(3, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    optimizer = TrainOptimizer((module,), training, FLOAT32)
    for step in range(1, steps + 1):
        optimizer.step({"task": module.weight.square().sum() / 2}, moment(step))
    return module.weight.detach()


class TestPrecision:
    def test_auto_is_float32_on_the_cpu(self) -> None:
        assert choose_precision(expand({}), CPU).name == "float32"

    def test_auto_is_bfloat16_on_cuda(self) -> None:
        chosen = choose_precision(expand({}), torch.device("cuda"))
        assert chosen.name == "bfloat16"

    def test_float16_is_refused_on_the_cpu(self) -> None:
        with pytest.raises(errors.BadRecipe, match="float16 needs a CUDA device"):
            choose_precision(expand({"precision": "float16"}), CPU)

    def test_bfloat16_computes_in_bfloat16(self) -> None:
        with Precision("bfloat16", CPU).autocast():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


class TestCompile:
    def test_auto_is_off_on_the_cpu_and_for_short_runs(self) -> None:
        training, cuda = expand({}), torch.device("cuda")
        assert not choose_compile(training, CPU, 10**6)
        assert not choose_compile(training, cuda, 100)
        assert choose_compile(training, cuda, 10**6)

    def test_auto_is_off_for_an_optimizer_that_goes_backwards_twice(self) -> None:
        training = expand({"optimizer": {"name": "dot"}})
        assert not choose_compile(training, torch.device("cuda"), 10**6)

    def test_on_and_off_are_obeyed(self) -> None:
        on, off = (expand({"compile": word}) for word in ("on", "off"))
        assert choose_compile(on, CPU, 1)
        assert not choose_compile(off, torch.device("cuda"), 10**6)


class TestRateFactor:
    def test_step_drops_after_its_milestone(self) -> None:
        schedule = Step(milestones=[1, 2], factor=0.1)
        factors = [rate_factor(schedule, moment(step), 3) for step in (10, 11, 20, 21)]
        assert factors == pytest.approx([1, 0.1, 0.1, 0.01])

    def test_cosine_warms_up_and_falls_to_its_end(self) -> None:
        schedule = Cosine(warmup_epochs=1, final_factor=0.1)
        factors = [rate_factor(schedule, moment(step), 4) for step in range(1, 41)]
        assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert factors[10] == 1
        assert factors[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert 0.1 < factors[-1] < 0.11

    def test_poly_falls_as_a_power_of_what_is_left(self) -> None:
        schedule = Poly(warmup_epochs=1, power=0.9, final_factor=0.1)
        factors = [rate_factor(schedule, moment(step), 4) for step in range(1, 41)]
        assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert factors[25] == pytest.approx(0.1 + 0.9 * 0.5**0.9)
        assert factors[10:] == sorted(factors[10:], reverse=True)

    def test_constant_stays(self) -> None:
        assert rate_factor(Constant(), moment(999), 5) == 1.0

    @pytest.mark.parametrize(
        "schedule",
        [
            Constant(warmup_epochs=2),
            Step(milestones=[3], warmup_epochs=2),
            Cosine(final_factor=1.0, warmup_epochs=2),
            Poly(final_factor=1.0, warmup_epochs=2),
        ],
    )
    def test_every_schedule_rises_in_a_straight_line(self, schedule: Schedule) -> None:
        factors = [rate_factor(schedule, moment(step), 4) for step in range(1, 31)]
        assert factors == pytest.approx([min(step / 20, 1) for step in range(1, 31)])

    def test_follows_the_published_sequence(self) -> None:
        given = CHECKS.parameters("lr_schedule")
        schedule = Step(milestones=given["milestones"], factor=given["gamma"])
        rates = [
            given["base"] * rate_factor(schedule, moment(10 * epoch), 240)
            for epoch in given["epochs_1_based"]
        ]
        assert rates == pytest.approx(CHECKS.expected("lr_schedule")["lr"], rel=1e-12)


class TestStepper:
    def test_moves_as_momentum_prescribes(self) -> None:
        training = expand(
            {
                "optimizer": {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.0},
                "schedule": {"name": "constant"},
            }
        )
        # By hand: 1 - 0.1 = 0.9; speed 0.5 * 1 + 0.9 = 1.4; 0.9 - 0.14 = 0.76.
        assert torch.allclose(quadratic(training, 2), torch.full((1, 3), 0.76))

    def test_clips_the_norm_of_the_gradient(self) -> None:
        training = expand(
            {
                "optimizer": {"learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0},
                "schedule": {"name": "constant"},
                "clip_norm": 0.3,
            }
        )
        moved = torch.ones(1, 3) - quadratic(training, 1)
        # The library divides by the norm plus 1e-6.
        assert float(moved.norm()) == pytest.approx(0.3, rel=1e-5)

    @pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
    def test_continues_from_its_state(self, name: str) -> None:
        training = expand({"optimizer": {"name": name}})
        whole = nn.Linear(3, 1)
        torch.manual_seed(1)
        loss = [torch.randn(5, 3) for _ in range(4)]
        optimizer = TrainOptimizer((whole,), training, FLOAT32)
        for step in (1, 2):
            optimizer.step({"task": whole(loss[step]).square().sum()}, moment(step))
        other = nn.Linear(3, 1)
        other.load_state_dict(whole.state_dict())
        continued = TrainOptimizer((other,), training, FLOAT32)
        continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step({"task": whole(loss[3]).square().sum()}, moment(3))
        continued.step({"task": other(loss[3]).square().sum()}, moment(3))
        assert torch.equal(whole.weight, other.weight)

    def test_learns_a_shared_parameter_once(self) -> None:
        one = nn.Linear(2, 2)
        assert len(trainable_parameters((one, one))) == 2

    def test_leaves_frozen_parameters_out(self) -> None:
        frozen = nn.Linear(2, 2).requires_grad_(False)
        assert trainable_parameters((frozen,)) == []


COMPILES = """
import functools
import torch
from torch import nn
from workers.distill.networks.interface import Features, Network
from workers.distill.runtime.precision import Precision
from workers.distill.training import compilation

class Small(Network):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.fc = nn.Linear(64, 3)

    def observe(self, images):
        pooled = self.norm(images).relu().flatten(1)
        return Features(logits=self.fc(pooled), pooled=pooled)

# What PyTorch makes of the graph is PyTorch's affair; to have C++ compiled takes half a minute.
torch.compile = functools.partial(torch.compile, backend="aot_eager")
torch.manual_seed(0)
network = Small()
before = {name: value.clone() for name, value in network.state_dict().items()}
example = torch.randn(4, 1, 8, 8)
random_before = torch.get_rng_state()
precision = Precision("float32", torch.device("cpu"))
observe = compilation.compile_network(network, example, precision)
assert torch.equal(random_before, torch.get_rng_state())
assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
assert all(parameter.grad is None for parameter in network.parameters())
network.train()
compiled = observe(example).logits
network.load_state_dict(before)
# Compiled sums run in another order.
assert torch.allclose(compiled, network.observe(example).logits, rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
class TestCompiled:
    def test_shows_the_same_and_leaves_the_network_as_it_was(self) -> None:
        # Another process, because code that checks shapes while it runs cannot be compiled.
        subprocess.run([sys.executable, "-c", COMPILES], check=True, env=folders.ENVIRONMENT)
