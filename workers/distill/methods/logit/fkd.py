"""Fast distillation from stored soft labels.

The teacher's outputs for a fixed number of views of each image are computed and stored before
training, a few classes per view; training then costs as much as without a teacher. The stored
probabilities are the only target. This needs `teacher_cache` in the training; without one the
teacher runs on every new view, and its outputs are reduced to what would be stored, which is
slower.

Source: Shen & Xing, ECCV 2022, arXiv:2112.01528, section 3.
Differs: a view is drawn from seed, image and number instead of being stored as coordinates; views
are those of the training's augmentation, where the paper draws 500 random resized crops. Values are
kept as computed, not rounded to half precision.
Checked against: szq0214/FKD (published values of marginal smoothing and renormalisation).
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, Integer
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.methods.parameters import TaskWeight, Temperature, Weight
from workers.distill.networks.interface import Features, Network

Storage = Literal["hard", "smoothing", "marginal_smoothing", "marginal_renorm"]


def fkd_loss(
    student_logits: Float[Tensor, "N C"], soft_labels: Float[Tensor, "N C"]
) -> Float[Tensor, ""]:
    """Return the cross-entropy with soft labels, averaged over the batch, in nats."""
    return -(soft_labels * F.log_softmax(student_logits, dim=1)).sum(1).mean()


def strongest(
    logits: Float[Tensor, "N C"], *, count: int, temperature: float
) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """Return the `count` largest softened probabilities, the largest first, and their classes."""
    values, classes = F.softmax(logits / temperature, dim=1).topk(count, dim=1)
    return values, classes


def recovered(
    values: Float[Tensor, "N K"], index: Integer[Tensor, "N K"], *, classes: int, renormalise: bool
) -> Float[Tensor, "N C"]:
    """Return distributions over all classes, of which only the largest probabilities are known.

    The rest up to 1 is shared evenly by the other classes; with `renormalise` they get 0, and the
    known ones are divided by their sum.
    """
    known = values.sum(1, keepdim=True)
    if renormalise:
        spread, values = torch.zeros_like(known), values / known
    else:
        spread = (1 - known).clamp(min=0) / max(classes - values.shape[1], 1)
    return spread.expand(-1, classes).scatter(1, index.long(), values)


def narrowest(classes: int) -> torch.dtype:
    """Return the smallest integer type that holds every class index."""
    if classes <= 2**8:
        return torch.uint8
    return torch.int16 if classes <= 2**15 else torch.int32


class FKD(LogitMethod):
    """Train on a few stored probabilities per view."""

    name = "fkd"
    title = "Fast distillation from stored soft labels"
    source = Source(
        "A Fast Knowledge Distillation Framework for Visual Recognition",
        venue="ECCV 2022",
        arxiv="2112.01528",
    )

    class Params(LogitMethod.Params):
        """What is stored of the teacher's probabilities for a view."""

        task_weight: TaskWeight = 0.0
        fkd_weight: Weight = Field(
            1.0, description="Weight of cross-entropy with the stored soft labels."
        )
        storage: Storage = Field(
            "marginal_smoothing",
            description="hard: the first class alone. smoothing: its probability too, the rest "
            "spread evenly over all others. marginal_smoothing: the same with the first `top_k` "
            "classes. marginal_renorm: those, divided by their sum, and 0 for the others.",
        )
        top_k: int = Field(
            5,
            ge=1,
            le=1000,
            description="Classes that the two marginal storages keep; all, if there are fewer.",
        )
        temperature: Temperature = Field(
            1.0,
            description="Divides the teacher's logits before softmax, not the student's.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self._classes = student.classes
        marginal = params.storage in ("marginal_smoothing", "marginal_renorm")
        self._count = min(params.top_k, self._classes) if marginal else 1

    def store(self, teacher: Features) -> dict[str, Tensor]:
        """Return each view's largest classes, in the smallest integer type, and probabilities."""
        values, index = self._strongest(teacher.logits)
        entries = {"index": index.to(narrowest(self._classes))}
        return entries if self.params.storage == "hard" else {**entries, "value": values}

    def recall(self, stored: dict[str, Tensor]) -> Features:
        """Return logits whose softened softmax is the stored distribution; all are finite."""
        index = stored["index"]
        values = stored["value"] if "value" in stored else torch.ones_like(index, dtype=torch.float)
        soft = self._recovered(values, index)
        logits = self.params.temperature * soft.clamp(min=torch.finfo(soft.dtype).tiny).log()
        return Features(logits=logits, pooled=logits.new_empty(len(logits), 0))

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and cross-entropy with what is, or would be, stored."""
        # A stored distribution passes unchanged: its largest entries are those that were kept.
        soft = self._recovered(*self._strongest(teacher.logits))
        loss = fkd_loss(student.logits, soft)
        return {**self.task(student, batch), "fkd": self.params.fkd_weight * loss}

    def _strongest(
        self, logits: Float[Tensor, "N C"]
    ) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
        values, index = strongest(logits, count=self._count, temperature=self.params.temperature)
        return (torch.ones_like(values) if self.params.storage == "hard" else values), index

    def _recovered(
        self, values: Float[Tensor, "N K"], index: Integer[Tensor, "N K"]
    ) -> Float[Tensor, "N C"]:
        renormalise = self.params.storage == "marginal_renorm"
        return recovered(values, index, classes=self._classes, renormalise=renormalise)
