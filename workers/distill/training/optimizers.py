"""How weights are updated: optimizer, schedule, clipping and loss scaling behind one `step`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.training import DOT, LAMB, AdamW, Training
from workers.distill.methods.base import Moment, Terms
from workers.distill.runtime.precision import Precision
from workers.distill.runtime.ranks import ALONE, Ranks
from workers.distill.training import dot, lamb
from workers.distill.training.schedules import rate_factor


class TrainOptimizer:
    """Updates the trainable parameters of some modules, each parameter once.

    Gradients are averaged over the ranks before anything reads them.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        training: Training,
        precision: Precision,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._training = training
        self._parameters = trainable_parameters(modules)
        self._optimizer = make_optimizer(training, self._parameters)
        self._scaler = torch.amp.GradScaler(
            precision.device.type, enabled=precision.name == "float16"
        )

    def step(self, terms: Terms, moment: Moment) -> Tensor:
        """Update the weights by the gradient of the terms' sum, and return that sum, detached."""
        total = torch.stack(list(terms.values())).sum()
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(moment)
        if isinstance(self._optimizer, dot.DOT):
            self._step_on_two_sums(self._optimizer, terms)
        else:
            self._step_on_sum(total)
        return total.detach()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss times what keeps its gradient representable; itself but in float16."""
        multiplied: Tensor = self._scaler.scale(loss)
        return multiplied

    def _step_on_sum(self, total: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self.scaled(total).backward()  # type: ignore[no-untyped-call]  # torch's stub
        self._ranks.average([one.grad for one in self._parameters if one.grad is not None])
        if self._training.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._training.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _step_on_two_sums(self, optimizer: dot.DOT, terms: Terms) -> None:
        if "task" not in terms:
            raise errors.BadRecipe(
                "optimizer dot weighs the task against the teacher, and the method has no task "
                f"term (only {', '.join(terms)}); choose optimizer sgd, adamw or lamb"
            )
        others = [value for name, value in terms.items() if name != "task"]
        task = self._gradients(terms["task"], again=bool(others))
        rest = self._gradients(torch.stack(others).sum() if others else None, again=False)
        if self._training.clip_norm is not None:
            clip_both(task, rest, self._training.clip_norm)
        optimizer.move(task, rest)

    def _gradients(self, loss: Tensor | None, *, again: bool) -> list[Tensor | None]:
        if loss is None or not loss.requires_grad:
            return [None] * len(self._parameters)
        gradients = torch.autograd.grad(
            loss, self._parameters, retain_graph=again, allow_unused=True
        )
        self._ranks.average([one for one in gradients if one is not None])
        return list(gradients)

    def learning_rate(self, moment: Moment) -> float:
        """Return the learning rate of a step."""
        factor = rate_factor(self._training.schedule, moment, self._training.epochs)
        return self._training.optimizer.learning_rate * factor

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def clip_both(task: dot.Gradients, rest: dot.Gradients, limit: float) -> None:
    """Scale two gradients alike, in place, so that their sum has at most this norm."""
    present = [gradient for gradient in (*task, *rest) if gradient is not None]
    sums = [
        one if other is None else other if one is None else one + other
        for one, other in zip(task, rest, strict=True)
    ]
    norm = nn.utils.get_total_norm([total for total in sums if total is not None])
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # as the library clips
    torch._foreach_mul_(present, factor)


def trainable_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return each parameter that wants a gradient once, in order."""
    parameters: dict[int, nn.Parameter] = {}
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameters.setdefault(id(parameter), parameter)
    return list(parameters.values())


def make_optimizer(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that a training asks for, at its rate before the schedule."""
    choice = training.optimizer
    if isinstance(choice, AdamW):
        return torch.optim.AdamW(
            parameters,
            lr=choice.learning_rate,
            betas=(choice.beta1, choice.beta2),
            weight_decay=choice.weight_decay,
            fused=True,
        )
    if isinstance(choice, LAMB):
        return lamb.LAMB(
            parameters,
            lr=choice.learning_rate,
            betas=(choice.beta1, choice.beta2),
            weight_decay=choice.weight_decay,
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
