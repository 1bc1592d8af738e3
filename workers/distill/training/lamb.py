"""LAMB: Adam's step, scaled for each weight so that its length is a share of the weight's own.

Large batches need large rates, at which Adam's steps are too long for some layers and too short for
others. Here the step of a weight has the weight's norm times the rate, whatever its gradient was.

Source: You et al., Large Batch Optimization for Deep Learning, ICLR 2020, arXiv 1904.00962,
algorithm 2, with phi(z) = z and Adam's correction of the first steps. Biases, and scales and shifts
of norms (parameters of at most one dimension), neither decay nor are scaled, as the authors' code
for BERT leaves them out of both.
Checked against: timm.optim.Lamb without its own clipping (`training.clip_norm` clips).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-6


class LAMB(torch.optim.Optimizer):
    """Adam with decoupled weight decay, whose step for a weight is as long as the weight."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        weights = [one for one in parameters if one.dim() > 1]
        others = [one for one in parameters if one.dim() <= 1]
        groups = [
            {"params": weights, "adapts": True, "weight_decay": weight_decay},
            {"params": others, "adapts": False, "weight_decay": 0.0},
        ]
        super().__init__(
            [group for group in groups if group["params"]], {"lr": lr, "betas": betas, "step": 0}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing is recomputed
        """Update all parameters that have a gradient by one step."""
        for group in self.param_groups:
            group["step"] += 1
            self._move(group, [one for one in group["params"] if one.grad is not None])

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        first, second = group["betas"]
        means, squares = self._moments(parameters)
        gradients = [one.grad for one in parameters if one.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        divisors = list(torch._foreach_sqrt(squares))
        torch._foreach_div_(divisors, (1 - second ** group["step"]) ** 0.5)
        torch._foreach_add_(divisors, EPS)
        steps = list(torch._foreach_div(means, 1 - first ** group["step"]))
        torch._foreach_div_(steps, divisors)
        if group["adapts"]:
            torch._foreach_add_(steps, parameters, alpha=group["weight_decay"])
            norms = zip(torch._foreach_norm(parameters), torch._foreach_norm(steps), strict=True)
            torch._foreach_mul_(steps, [_ratio(weight, step) for weight, step in norms])
        torch._foreach_add_(parameters, steps, alpha=-group["lr"])

    def _moments(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the running means of gradients and of their squares."""
        for one in parameters:
            if not self.state[one]:
                self.state[one] = {
                    "mean": torch.zeros_like(one),
                    "square": torch.zeros_like(one),
                }
        states = [self.state[one] for one in parameters]
        return [one["mean"] for one in states], [one["square"] for one in states]


def _ratio(weight: Tensor, step: Tensor) -> Tensor:
    """Return weight over step, both norms; 1 where one of them is 0. It waits for no device."""
    return torch.where((weight > 0) & (step > 0), weight / step, torch.ones_like(weight))
