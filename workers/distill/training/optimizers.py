"""How weights move, and at which precision: everything about a step that no loop should know."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.training import DOT, AdamW, Constant, Cosine, Schedule, Step, Training
from workers.distill.methods.base import Moment, Terms
from workers.distill.networks.interface import Features, Network
from workers.distill.training import dot

COMPILE_STEPS = 5_000
"""Compiling takes about a minute; a shorter run does not earn that back."""

Observe = Callable[[Tensor], Features]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """The number format of the networks' arithmetic; weights and losses stay float32."""

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which networks compute at this precision."""
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, dtype=_DTYPES[self.name], enabled=self.name != "float32"
        )
        return context


def choose_precision(training: Training, device: torch.device) -> Precision:
    """Resolve `auto`, and refuse what the device cannot do."""
    name: str = training.precision
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name == "float16" and device.type != "cuda":
        raise errors.BadRecipe(
            "precision float16 needs a CUDA device; choose float32 or bfloat16 on the CPU"
        )
    return Precision(name, device)


def choose_compile(training: Training, device: torch.device, steps: int) -> bool:
    """Resolve `auto`: compile on CUDA when the run is long enough to earn it back."""
    if training.compile == "auto":
        # What compiled code keeps for the way back is gone after the first time; DOT goes twice.
        twice = training.optimizer.name == "dot"
        return device.type == "cuda" and steps >= COMPILE_STEPS and not twice
    return training.compile == "on"


def compiled(network: Network, example: Tensor, precision: Precision) -> Observe:
    """Return a compiled `observe`, tried once forwards and backwards; raises what that raises.

    Weights, statistics and random numbers are the same afterwards.
    """
    observe: Observe = torch.compile(network.observe, dynamic=False)
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        learns = any(parameter.requires_grad for parameter in network.parameters())
        with torch.set_grad_enabled(learns), precision.autocast():
            logits = observe(example).logits
        if learns:
            logits.float().sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
    network.load_state_dict(kept)
    network.zero_grad(set_to_none=True)
    return observe


def rate_factor(schedule: Schedule, moment: Moment, epochs: int) -> float:
    """Return the share of the learning rate that a step uses; it needs no state."""
    warmup = schedule.warmup_epochs * moment.steps_per_epoch
    rising = moment.step / warmup if moment.step < warmup else 1.0
    match schedule:
        case Step():
            # "After epoch 150" means from epoch 151 on: the milestone's own epoch is unchanged.
            passed = sum(moment.epoch > milestone for milestone in schedule.milestones or ())
            return rising * math.pow(schedule.factor, passed)
        case Cosine():
            if moment.step <= warmup:
                return rising
            left = max(epochs * moment.steps_per_epoch - warmup, 1)
            done = min((moment.step - 1 - warmup) / left, 1.0)
            final = schedule.final_factor
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * max(done, 0.0)))
        case Constant():
            return rising


class Stepper:
    """Moves weights: optimizer, schedule, clipping and loss scaling behind one verb."""

    def __init__(self, modules: Iterable[nn.Module], training: Training, precision: Precision):
        self._training = training
        self._parameters = learned(modules)
        self._optimizer = _optimizer(training, self._parameters)
        self._scaler = torch.amp.GradScaler(
            precision.device.type, enabled=precision.name == "float16"
        )

    def step_on(self, terms: Terms, moment: Moment) -> Tensor:
        """Move the weights against the gradient of the terms' sum, and return that sum."""
        total = torch.stack(list(terms.values())).sum()
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate_at(moment)
        if isinstance(self._optimizer, dot.DOT):
            self._move_by_two(self._optimizer, terms)
        else:
            self._move_by_one(total)
        return total.detach()

    def _move_by_one(self, total: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]  # torch's stub
        if self._training.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._training.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _move_by_two(self, optimizer: dot.DOT, terms: Terms) -> None:
        if "task" not in terms:
            raise errors.BadRecipe(
                "optimizer dot weighs the task against the teacher, and the method has no task "
                f"term (only {', '.join(terms)}); choose optimizer sgd or adamw"
            )
        others = [value for name, value in terms.items() if name != "task"]
        task = self._gradients(terms["task"], again=bool(others))
        rest = self._gradients(torch.stack(others).sum() if others else None, again=False)
        if self._training.clip_norm is not None:
            shrink(task, rest, self._training.clip_norm)
        optimizer.move(task, rest)

    def _gradients(self, loss: Tensor | None, *, again: bool) -> list[Tensor | None]:
        if loss is None or not loss.requires_grad:
            return [None] * len(self._parameters)
        found = torch.autograd.grad(loss, self._parameters, retain_graph=again, allow_unused=True)
        return list(found)

    def rate_at(self, moment: Moment) -> float:
        """Return the learning rate of a step."""
        factor = rate_factor(self._training.schedule, moment, self._training.epochs)
        return self._training.optimizer.learning_rate * factor

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def shrink(task: dot.Gradients, rest: dot.Gradients, limit: float) -> None:
    """Scale two gradients alike, in place, so that their sum has at most this norm."""
    present = [gradient for gradient in (*task, *rest) if gradient is not None]
    sums = [
        one if other is None else other if one is None else one + other
        for one, other in zip(task, rest, strict=True)
    ]
    norm = nn.utils.get_total_norm([total for total in sums if total is not None])
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # as the library clips
    torch._foreach_mul_(present, factor)


def learned(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return each parameter that wants a gradient once, in order."""
    found: dict[int, nn.Parameter] = {}
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                found.setdefault(id(parameter), parameter)
    return list(found.values())


def _optimizer(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    choice = training.optimizer
    if isinstance(choice, AdamW):
        return torch.optim.AdamW(
            parameters,
            lr=choice.learning_rate,
            betas=(choice.beta1, choice.beta2),
            weight_decay=choice.weight_decay,
            fused=True,
        )
    if isinstance(choice, DOT):
        return dot.DOT(
            parameters,
            lr=choice.learning_rate,
            momentum=choice.momentum,
            delta=choice.delta,
            weight_decay=choice.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=choice.learning_rate,
        momentum=choice.momentum,
        weight_decay=choice.weight_decay,
        nesterov=choice.nesterov,
        fused=True,
    )
