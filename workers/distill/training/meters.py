"""Loss and accuracy sums kept on the device; reading them is the only host synchronisation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from workers.distill import errors
from workers.distill.methods.base import Terms
from workers.distill.networks.interface import Features
from workers.distill.runtime.ranks import ALONE, Ranks

CountCorrect: TypeAlias = Callable[[Features, Tensor], tuple[Tensor, int | Tensor]]
"""Takes a network's output and labels; returns the number of right answers, and of all."""


@dataclass(frozen=True)
class EpochAverages:
    """An epoch's share of correct answers, and its mean losses up to the last reading.

    The share is None where the task counts no answers.
    """

    accuracy: float | None
    losses: dict[str, float]


class LossMeter:
    """Sums of losses and of correct answers, and the first step whose loss was not finite."""

    def __init__(
        self,
        device: torch.device,
        count_correct: CountCorrect | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Count on a device; several `ranks` each count a slice, and read what all have.

        Without `count_correct` no answers are counted.
        """
        self._ranks = ranks
        self._count_correct = count_correct
        self._names: list[str] = []
        self._sums = torch.zeros(0, device=device)
        self._steps = 0
        self._epoch_sums: list[float] = []
        self._epoch_steps = 0
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._samples: int | Tensor = 0
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad = torch.zeros(0, device=device)

    @torch.no_grad()
    def update(
        self,
        step: int,
        total: Tensor,
        terms: Terms,
        output: Features | None = None,
        labels: Shaped[Tensor, "N *T"] | None = None,
    ) -> None:
        """Add one step, and its answers where output and labels are given."""
        values = torch.stack([total, *terms.values()]).float()
        correct: int | Tensor = 0
        answers: int | Tensor = 0
        if self._count_correct and output is not None and labels is not None:
            correct, answers = self._count_correct(output, labels)
        if self._ranks.count > 1:
            values, correct, answers = self._of_all(values, correct, answers)
        if not self._names:
            self._names = ["total", *terms]
            self._sums = torch.zeros_like(values)
            self._bad = torch.zeros_like(values)
        self._sums += values
        self._steps += 1
        self._correct += correct
        self._samples = self._samples + answers
        broke = ~values.isfinite().all() & (self._bad_step < 0)
        self._bad = torch.where(broke, values, self._bad)
        self._bad_step = torch.where(broke, step, self._bad_step)

    def _of_all(
        self, values: Tensor, correct: int | Tensor, answers: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the means of the losses over the ranks, and the sums of the counts."""
        counts = [torch.as_tensor(one, device=values.device).double() for one in (correct, answers)]
        sums = self._ranks.sums(torch.cat([values.double(), torch.stack(counts)]))
        return (sums[:-2] / self._ranks.count).float(), sums[-2].long(), sums[-1].long()

    def compute_and_reset(self) -> dict[str, float]:
        """Return mean losses since the last reading, `total` first; waits for the device."""
        sums, steps = self._sums.tolist(), max(self._steps, 1)
        before = self._epoch_sums or [0.0] * len(sums)
        self._epoch_sums = [one + other for one, other in zip(before, sums, strict=True)]
        self._epoch_steps += self._steps
        self._sums.zero_()
        self._steps = 0
        return {name: value / steps for name, value in zip(self._names, sums, strict=True)}

    def compute_and_reset_epoch(self) -> EpochAverages:
        """Return the epoch's averages and start a new epoch; waits for the device."""
        samples = int(self._samples)
        share = int(self._correct) / samples if samples else None
        pairs = zip(self._names, self._epoch_sums, strict=False)  # no sums before the first reading
        losses = {name: value / max(self._epoch_steps, 1) for name, value in pairs}
        self._correct.zero_()
        self._samples = 0
        self._epoch_sums, self._epoch_steps = [], 0
        return EpochAverages(share, losses)

    def check_finite(
        self,
        work: str = "",
        advice: str = "lower training.optimizer.learning_rate, set training.clip_norm, or lower "
        "the method's weights",
    ) -> None:
        """Raise `Diverged` with all terms if the loss of some step was not finite.

        `work` names what was trained, for the message; waits for the device.
        """
        step = int(self._bad_step)
        if step < 0:
            return
        terms = dict(zip(self._names, self._bad.tolist(), strict=True))
        listed = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        raise errors.Diverged(
            f"the loss{work and f' of {work}'} was not finite at step {step} ({listed}); {advice}",
            step=step,
            terms=terms,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "names": list(self._names),
            "sums": self._sums,
            "steps": self._steps,
            "epoch_sums": list(self._epoch_sums),
            "epoch_steps": self._epoch_steps,
            "correct": self._correct,
            "samples": int(self._samples),
            "bad_step": self._bad_step,
            "bad": self._bad,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        device = self._sums.device
        self._names, self._steps, self._samples = state["names"], state["steps"], state["samples"]
        self._sums, self._correct = state["sums"].to(device), state["correct"].to(device)
        self._epoch_sums = list(state["epoch_sums"])
        self._epoch_steps = state["epoch_steps"]
        self._bad_step, self._bad = state["bad_step"].to(device), state["bad"].to(device)
