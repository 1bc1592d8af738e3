"""The distillation-oriented trainer: two gradients, each with a momentum of its own.

The gradients of the distillation and task losses conflict, and the task's dominates where both
share a momentum; a larger momentum for the distillation loss balances them.

Source: Zhao et al., DOT: A Distillation-Oriented Trainer, ICCV 2023, arXiv 2307.08436.
Checked against: megvii-research/mdistiller (a sequence of three steps).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Gradients = Sequence[Tensor | None]
"""One gradient a parameter; None where the loss does not depend on it, which a zero would hide."""


@dataclass(frozen=True)
class Push:
    """Gradients, momentum and weight decay of one loss."""

    parameter: nn.Parameter
    gradient: Tensor
    momentum: float
    decays: bool


class DOT(torch.optim.Optimizer):
    """SGD with one momentum buffer for the task and one for everything else.

    A parameter with a gradient of only one loss is updated as by SGD. Weight decay is added to the
    task's gradient; where there is none, it starts with the second step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        delta: float,
        weight_decay: float,
    ) -> None:
        fixed = {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        super().__init__(parameters, fixed)

    @torch.no_grad()
    def move(self, task: Gradients, rest: Gradients) -> None:
        """Update all parameters by one step; gradients are in the parameters' order."""
        group = self.param_groups[0]
        own, delta = group["momentum"], group["delta"]
        steps = list(zip(group["params"], task, rest, strict=True))
        self._push(
            "task",
            [
                Push(parameter, one, own if other is None else own - delta, decays=True)
                for parameter, one, other in steps
                if one is not None
            ],
        )
        self._push(
            "rest",
            [
                Push(
                    parameter,
                    other,
                    own if one is None else own + delta,
                    decays=one is None and "rest" in self.state[parameter],
                )
                for parameter, one, other in steps
                if other is not None
            ],
        )

    def _push(self, side: str, pushes: list[Push]) -> None:
        if not pushes:
            return
        group = self.param_groups[0]
        parameters: list[Tensor] = [push.parameter for push in pushes]
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if side not in state:  # from zero, the first step leaves the gradient itself there
                state[side] = torch.zeros_like(parameter)
            buffers.append(state[side])
        decays = [group["weight_decay"] if push.decays else 0.0 for push in pushes]
        gradients = list(torch._foreach_mul(parameters, decays))
        torch._foreach_add_(gradients, [push.gradient for push in pushes])
        torch._foreach_mul_(buffers, [push.momentum for push in pushes])
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])
