"""How strong a method pulls beside the labels: gradients compared, and kept in proportion.

Published weights were tuned for one data set and one pair of networks; elsewhere the gradient of
the distillation terms may be hundreds of times that of the task, and the student then never learns
its labels. Measured are the norms of both gradients on the student's parameters, at every one of
the first steps and at every `EVERY`th afterwards, as running means. The task counts at weight 1,
whatever its `task_weight`: a method that leaves it a tenth, as published for KD, would otherwise
have to learn at a tenth of the rate. Where a limit is set, the
distillation terms are multiplied by the largest factor of at most 1 that keeps the ratio of the
means within it.

Source: the ratio of gradient norms is that of GradNorm (Chen et al., ICML 2018, arXiv:1711.02257).
Differs: nothing is learned, and nothing is ever made stronger than its published weight. See
decision 0019 for what was tried beside it.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill.methods.base import (
    Method,
    Moment,
    SupervisedMethod,
    Terms,
    distillation_terms,
)
from workers.distill.networks.interface import Network
from workers.distill.runtime.ranks import ALONE, Ranks

FIRST = 5
"""Steps at the start that are all measured: there the ratio is largest and changes fastest."""
EVERY = 40
"""Steps between two later measurements. One is two more backward passes, 0.6 of a step's time
(`benchmarks.balance`): a long training takes 1.5 % longer, one of 300 steps 2.5 %."""
MEMORY = 5
"""Measurements that a running mean remembers; the first ones are averaged plainly."""
AUTO_LIMIT = 1.0
"""Largest ratio under `auto`: the labels are heard at least as well as the teacher."""
DOMINATES = 10.0
"""Ratio from which the labels are hardly heard."""

Choose = Callable[[Terms], Collection[str]]
Scale = Callable[[Tensor], Tensor]
"""Multiplies a loss by what keeps its gradient representable, such as a scaler of float16."""


def of_method(
    method: Method,
    student: Network,
    device: torch.device,
    *,
    has_labels: bool = True,
    ranks: Ranks = ALONE,
) -> "GradientBalance | None":
    """Return what a method's `balance` asks for; None where there is nothing to measure.

    So it is without labels, since nothing then stands beside the teacher.
    """
    if not isinstance(method, SupervisedMethod) or not has_labels:
        return None
    choice = method.params.balance
    if choice is None or method.params.task_weight == 0:
        return None
    if isinstance(choice, str):
        if not method.is_auto_balanced:
            return None
        limit, chosen = (AUTO_LIMIT if choice == "auto" else None), method.auto_balanced_terms
    else:
        limit, chosen = choice, distillation_terms
    return GradientBalance(
        student.parameters(),
        device,
        task_weight=method.params.task_weight,
        limit=limit,
        chosen=chosen,
        ranks=ranks,
    )


class GradientBalance:
    """Measures both gradients of one student, and weighs the distillation terms by them."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        device: torch.device,
        *,
        task_weight: float,
        limit: float | None,
        chosen: Choose,
        ranks: Ranks = ALONE,
    ) -> None:
        """Measure on `parameters`.

        `task_weight`, above 0, is what the task term was multiplied by. `limit` is the largest
        ratio of both norms, None to measure only. `chosen` returns the names of the terms that
        are measured and weighed. Gradients are means over the ranks.
        """
        self._ranks = ranks
        self._parameters = [one for one in parameters if one.requires_grad]
        self._weights = torch.tensor([task_weight, 1.0], device=device)
        self._limit = limit
        self._chosen = chosen
        self._norms = torch.zeros(2, device=device)
        """Running means: of the task, of the distillation terms."""
        self._factor = torch.ones((), device=device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)
        """Measurements in all, and those in which the distillation terms dominated."""

    def __call__(self, terms: Terms, moment: Moment, scale: Scale) -> Terms:
        """Measure if it is time, and return the terms as they are to be minimised."""
        chosen = self._chosen(terms)
        if moment.step <= FIRST or moment.step % EVERY == 0:
            self._measure(terms["task"], [terms[name] for name in terms if name in chosen], scale)
        if self._limit is None:
            return terms
        return {
            name: self._factor * term if name in chosen else term for name, term in terms.items()
        }

    @property
    def limit(self) -> float | None:
        """Return the largest ratio of both norms, None where they are measured only."""
        return self._limit

    def metrics(self) -> dict[str, float]:
        """Return the ratio of both norms at published weights, and the factor that is applied.

        Waits for the device. A task without a gradient has no ratio.
        """
        task, rest = self._norms.tolist()
        found = {"balance/ratio": rest / task} if task > 0 else {}
        return found if self._limit is None else {**found, "balance/factor": float(self._factor)}

    def dominated_share(self) -> float:
        """Return the share of measurements in which the ratio was above `DOMINATES`."""
        measured, dominated = self._counts.tolist()
        return dominated / measured if measured else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"norms": self._norms, "factor": self._factor, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._norms = state["norms"].to(self._norms.device)
        self._factor = state["factor"].to(self._factor.device)
        self._counts = state["counts"].to(self._counts.device)

    def _measure(self, task: Tensor, rest: Sequence[Tensor], scale: Scale) -> None:
        scaled = torch.stack([self._norm([task], scale), self._norm(rest, scale)])
        norms = scaled / (scale(torch.ones_like(self._factor)) * self._weights)
        # The scale of float16 may be too large for a step, which its optimizer then leaves out.
        # And a batch without any label has no task.
        counts = norms.isfinite().all() & (norms[0] > 0)
        share = 1.0 / (self._counts[0] + 1).clamp(max=MEMORY)
        norms = torch.where(counts, norms, self._norms)
        self._norms = self._norms + share * (norms - self._norms)
        dominated = norms[1] > DOMINATES * norms[0]
        self._counts = self._counts + counts * torch.stack([counts, dominated])
        if self._limit is not None:
            task, distilled = self._norms
            smallest = torch.finfo(distilled.dtype).tiny
            factor = (self._limit * task / distilled.clamp(min=smallest)).clamp(max=1.0)
            self._factor = torch.where(self._counts[0] > 0, factor, self._factor)

    def _norm(self, terms: Iterable[Tensor], scale: Scale) -> Tensor:
        """Return the norm of the gradient of the terms' sum, times the scale."""
        losses = [term for term in terms if term.requires_grad]
        if not losses:
            return torch.zeros_like(self._factor)
        gradients = torch.autograd.grad(
            scale(torch.stack(losses).sum()),
            self._parameters,
            retain_graph=True,
            allow_unused=True,
        )
        present = [one.float() for one in gradients if one is not None]
        self._ranks.average(present)
        return nn.utils.get_total_norm(present) if present else torch.zeros_like(self._factor)
