"""Curriculum temperature: distillation whose temperature makes the task harder as it is learned.

The temperature is learned with the student, but against it: its gradient is turned round, so it
moves to where the student still errs most. How strongly grows over the first epochs, from nothing
to full, which is the curriculum.

Source: Li et al., AAAI 2023, arXiv:2211.16231.
Differs: one temperature per sample comes from a perceptron on both networks' logits, as in the
paper, but its hidden width and first temperature are ours, since that part of the authors' code is
not public; its view of the student is detached, so that the student is not pushed towards logits
that ask for a harder temperature. The teacher's probabilities get no 1e-7 added: its logarithm is
taken before the exponential, and is finite.
Checked against: zhengli97/CTKD, models/temp_global.py and train_student.py (published values).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.networks.interface import Features, Network

FIRST = 1.0
"""The learned number before training; with the default bounds, temperature 15.62."""


def curriculum_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    temperatures: Float[Tensor, " N"],
) -> Float[Tensor, ""]:
    """Return the KL divergence at each sample's own temperature, averaged over the batch.

    Units: nats times temperature squared; the gradient of the temperature sees that factor, too.
    """
    divergence = divergences.softened_kl(
        student_logits / temperatures[:, None],
        teacher_logits / temperatures[:, None],
        temperature=1.0,
    )
    return (temperatures**2 * divergence).mean()


def adversity(epoch: int, *, epochs: int) -> float:
    """Return what the temperature's gradient is multiplied by: from 0 to -1 along half a cosine."""
    passed = min(epoch / epochs, 1.0) if epochs > 0 else 1.0
    return (1 + math.cos(math.pi * passed)) / 2 - 1


def scale_gradient(values: Float[Tensor, "..."], factor: float) -> Float[Tensor, "..."]:
    """Return the values unchanged; what flows back through them is multiplied by `factor`."""
    fixed = values.detach()
    return fixed + factor * (values - fixed)


class Shared(nn.Module):
    """One learned number for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.full((1,), FIRST))

    def forward(
        self, student_logits: Float[Tensor, "N C"], teacher_logits: Float[Tensor, "N C"]
    ) -> Float[Tensor, " N"]:
        """Return the number, once for each sample."""
        return self.number.expand(len(student_logits))


class PerSample(nn.Module):
    """A learned number for each sample, from what both networks make of it."""

    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * classes, width)
        self.last = nn.Linear(width, 1)
        nn.init.constant_(self.last.bias, FIRST)

    def forward(
        self, student_logits: Float[Tensor, "N C"], teacher_logits: Float[Tensor, "N C"]
    ) -> Float[Tensor, " N"]:
        """Return the numbers; none of their gradient reaches the student."""
        both = torch.cat([student_logits.detach(), teacher_logits], dim=1)
        numbers: Tensor = self.last(self.hidden(both).relu())
        return numbers.squeeze(1)


class CTKD(LogitMethod):
    """Imitate the teacher at a temperature that learns to make it hard."""

    name = "ctkd"
    title = "Curriculum temperature for knowledge distillation"
    source = Source(
        "Curriculum Temperature for Knowledge Distillation", venue="AAAI 2023", arxiv="2211.16231"
    )

    class Params(LogitMethod.Params):
        """Two weights, the bounds of the temperature, and its curriculum."""

        task_weight: float = Field(
            0.1, ge=0, le=1e6, description="Weight of cross-entropy with the true labels."
        )
        kd_weight: float = Field(
            0.9, ge=0, le=1e6, description="Weight of the imitation of the teacher."
        )
        scope: Literal["global", "instance"] = Field(
            "global",
            description="global: one temperature for all samples. instance: a small perceptron on "
            "both networks' logits gives each sample its own.",
        )
        lowest_temperature: float = Field(
            1.0, gt=0, le=1e4, description="The temperature never falls below this."
        )
        temperature_range: float = Field(
            20.0, ge=0, le=1e4, description="How far above the lowest the temperature may rise."
        )
        curriculum_epochs: int = Field(
            10,
            ge=0,
            le=100_000,
            description="Epochs over which the temperature's opposition grows to full strength; 0 "
            "starts at full strength.",
        )
        hidden_width: int = Field(
            128, ge=1, le=65_536, description="Width of the perceptron, for scope instance only."
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.learned = (
            Shared()
            if params.scope == "global"
            else PerSample(student.classes, width=params.hidden_width)
        )

    def temperatures(
        self, student_logits: Float[Tensor, "N C"], teacher_logits: Float[Tensor, "N C"]
    ) -> Float[Tensor, " N"]:
        """Return the temperature of each sample."""
        raw: Tensor = self.learned(student_logits, teacher_logits)
        return self.params.lowest_temperature + self.params.temperature_range * raw.sigmoid()

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the imitation, which the temperature resists."""
        factor = adversity(moment.epoch, epochs=self.params.curriculum_epochs)
        temperatures = self.temperatures(student.logits, teacher.logits)
        loss = curriculum_loss(student.logits, teacher.logits, scale_gradient(temperatures, factor))
        return {**self.task(student, batch), "ctkd": self.params.kd_weight * loss}
