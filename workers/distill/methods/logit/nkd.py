"""NKD: the teacher weighs the true class and is a distribution over the others.

The teacher's probability of the true class weighs the student's cross-entropy there; the other
classes are normalised among themselves before they are compared, as their sums differ. Both parts
are cross-entropies: the smallest value is not zero.

Source: Yang et al., ICCV 2023, arXiv:2303.13005.
Checked against: yzd-v/cls_KD, mmcls/distillation/losses/nkd.py (published values).
"""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.methods.parameters import Temperature, Weight
from workers.distill.networks.interface import Features


def target_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the true class, weighted by the teacher's probability of it."""
    weight = teacher_logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return (weight * F.cross_entropy(student_logits, labels, reduction="none")).mean()


def non_target_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the cross-entropy between the distributions over all classes but the true one.

    Units: nats times temperature squared, so gradients keep their size.
    """
    student = divergences.non_target(student_logits, labels) / temperature
    teacher = divergences.non_target(teacher_logits, labels) / temperature
    return -(temperature**2) * (teacher.softmax(1) * F.log_softmax(student, dim=1)).sum(1).mean()


class NKD(LogitMethod):
    """Weigh the true class by the teacher's probability; match the normalised others."""

    name = "nkd"
    auto_balanced = True  # weights that were tuned for one number of classes
    title = "Normalized knowledge distillation"
    source = Source(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with "
        "Normalized Loss and Customized Soft Labels",
        venue="ICCV 2023",
        arxiv="2303.13005",
    )
    accepts_mixed = False  # the parts are split at one true class
    smallest_classes = 2
    reads_labels = True

    class Params(LogitMethod.Params):
        """The weight and the temperature of the other classes."""

        gamma: Weight = Field(
            3.5,
            description="Weight of the classes other than the true one; the authors use 3.5 for "
            "CIFAR-100 and 1.5 for ImageNet.",
        )
        temperature: Temperature = Field(
            3.0,
            description="Divides the other classes' logits of both networks before softmax; the "
            "authors use 3 for CIFAR-100 and 1 for ImageNet.",
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the two parts."""
        pair = (student.logits, teacher.logits, batch.labels)
        others = non_target_loss(*pair, temperature=self.params.temperature)
        return {
            **self.task(student, batch),
            "target": target_loss(*pair),
            "non_target": self.params.gamma * others,
        }
