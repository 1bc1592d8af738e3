"""Curriculum temperature: the temperature is trained to make distillation harder.

The temperature is trained with the student, but to maximise the loss: its gradient is reversed. The
factor of the reversed gradient grows from 0 to 1 over the first epochs, which is the curriculum.

Source: Li et al., AAAI 2023, arXiv:2211.16231.
Differs: one temperature per sample comes from a perceptron on both networks' logits, as in the
paper, but its hidden width and first temperature are ours, since that part of the authors' code is
not public; its student input is detached, so that it gives the student no gradient. The teacher's
probabilities get no 1e-7 added: its logarithm is taken before the exponential, and is finite.
Checked against: zhengli97/CTKD, models/temp_global.py and train_student.py (published values).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.config import chosen
from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.methods.parameters import Epochs, KDWeight, TaskWeight, Temperature, Width
from workers.distill.networks.interface import Features, Network

FIRST = 1.0
"""The learned number before training; with the default bounds, temperature 15.62."""
CURRICULUM_SHARE = 10 / 240


def curriculum_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    temperatures: Float[Tensor, " N"],
) -> Float[Tensor, ""]:
    """Return the KL divergence at each sample's own temperature, averaged over the batch.

    Units: nats times temperature squared; the temperature's gradient includes that factor.
    """
    divergence = divergences.softened_kl(
        student_logits / temperatures[:, None],
        teacher_logits / temperatures[:, None],
        temperature=1.0,
    )
    return (temperatures**2 * divergence).mean()


def adversity(epoch: int, *, epochs: int) -> float:
    """Return the factor of the temperature's gradient: from 0 to -1 along half a cosine."""
    passed = min(epoch / epochs, 1.0) if epochs > 0 else 1.0
    return (1 + math.cos(math.pi * passed)) / 2 - 1


def scale_gradient(values: Float[Tensor, "..."], factor: float) -> Float[Tensor, "..."]:
    """Return the values unchanged; their gradient is multiplied by `factor`."""
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
    """A learned number for each sample, from both networks' logits."""

    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * classes, width)
        self.last = nn.Linear(width, 1)
        nn.init.constant_(self.last.bias, FIRST)

    def forward(
        self, student_logits: Float[Tensor, "N C"], teacher_logits: Float[Tensor, "N C"]
    ) -> Float[Tensor, " N"]:
        """Return the numbers; they give the student no gradient."""
        both = torch.cat([student_logits.detach(), teacher_logits], dim=1)
        numbers: Tensor = self.last(self.hidden(both).relu())
        return numbers.squeeze(1)


class CTKD(LogitMethod):
    """Imitate the teacher at a temperature that is trained to maximise the loss."""

    name = "ctkd"
    title = "Curriculum temperature for knowledge distillation"
    source = Source(
        "Curriculum Temperature for Knowledge Distillation", venue="AAAI 2023", arxiv="2211.16231"
    )

    class Params(LogitMethod.Params):
        """Two weights, the bounds of the temperature, and its curriculum."""

        task_weight: TaskWeight = 0.1
        kd_weight: KDWeight = 0.9
        scope: Literal["global", "instance"] = Field(
            "global",
            description="global: one temperature for all samples. instance: a small perceptron on "
            "both networks' logits gives each sample its own.",
        )
        lowest_temperature: Temperature = Field(1.0, description="Lower bound of the temperature.")
        temperature_range: float = Field(
            20.0, ge=0, le=1e4, description="Largest temperature minus the lowest one."
        )
        curriculum_epochs: Epochs | None = Field(
            None,
            description="Epochs over which the factor of the temperature's reversed gradient grows "
            "to 1; 0 starts with 1. Null takes the published share of `epochs`, 10 of 240, rounded "
            "up.",
            json_schema_extra={chosen.SHARE: CURRICULUM_SHARE},
        )
        hidden_width: Width = Field(
            128, description="Width of the perceptron, for scope instance only."
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
        """Return the task term and the divergence, whose gradient the temperature reverses."""
        params = self.params
        epochs = moment.given_or_share(params.curriculum_epochs, CURRICULUM_SHARE)
        factor = adversity(moment.epoch, epochs=epochs)
        temperatures = self.temperatures(student.logits, teacher.logits)
        loss = curriculum_loss(student.logits, teacher.logits, scale_gradient(temperatures, factor))
        return {**self.task(student, batch), "ctkd": params.kd_weight * loss}
