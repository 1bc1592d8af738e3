"""What a method declares, and the few things it is shown while a student learns.

A method is an `nn.Module`, so learned adapters and memory banks are its parameters and buffers:
they are trained with the student and saved in checkpoints. It declares its name, source,
hyper-parameters and terms; it does no forward pass, no optimizer step and no logging.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors, recipe
from workers.distill.networks.interface import Features, Network

Terms: TypeAlias = dict[str, Tensor]
"""Named parts of a loss, weighted; the loop minimises their sum."""

Need: TypeAlias = Literal[
    "labels", "teacher", "equal_classes", "pooled", "stages", "pre_activations", "bn_statistics"
]


@dataclass(frozen=True)
class Source:
    """The publication that defines a method."""

    title: str
    venue: str
    arxiv: str | None = None
    equations: str | None = None


@dataclass(frozen=True)
class Batch:
    """Images as stored (uint8, augmented), their labels, and their places in the split."""

    images: UInt8[Tensor, "N c h w"]
    labels: Int[Tensor, " N"]
    index: Int[Tensor, " N"]


@dataclass(frozen=True)
class Moment:
    """Where training stands; epoch and step count from 1, the step through all epochs."""

    epoch: int
    step: int
    steps_per_epoch: int

    def ramp(self, epochs: int) -> float:
        """Return min(epoch / epochs, 1): a weight that fades in, never zero."""
        return min(self.epoch / epochs, 1.0) if epochs > 0 else 1.0

    @property
    def closes_epoch(self) -> bool:
        """Whether this is the last step of its epoch."""
        return self.step % self.steps_per_epoch == 0


class Method(nn.Module):
    """One published way to distil."""

    name: ClassVar[str]
    family: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[Source]
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher")

    class Params(recipe.Values):
        """Hyper-parameters; every field has a default from the paper, a bound, a description."""

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__()
        self.params = params
        if "teacher" in self.needs and teacher is None:
            raise errors.BadRecipe(f"method {self.name} needs a teacher, and the recipe has none")
        if "equal_classes" in self.needs and teacher is not None:
            check_equal_classes(self.name, student, teacher)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at the training batches once before training starts."""

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the weighted terms of the loss.

        Logits and pooled features arrive in float32 at least. `teacher` is empty (no rows) when
        the recipe has none; a method whose `needs` name the teacher never sees that.
        """
        raise NotImplementedError

    def after_step(self, moment: Moment) -> None:
        """Do what follows each optimizer step, such as moving a temperature."""

    def deliver(self, student: Network) -> Network:
        """Return the network to validate and deliver."""
        return student


def check_equal_classes(name: str, student: Network, teacher: Network) -> None:
    """Raise `IncompatibleNetworks` unless both networks tell apart the same number of classes."""
    if student.classes != teacher.classes:
        raise errors.IncompatibleNetworks(
            f"method {name} compares logits, so teacher and student need equal classes; the "
            f"teacher has {teacher.classes}, the student {student.classes}",
            teacher_classes=teacher.classes,
            student_classes=student.classes,
        )


class LogitMethod(Method):
    """Methods that compare outputs; all carry the usual cross-entropy as their `task` term."""

    family = "logit"
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")

    class Params(Method.Params):
        """The weight that all logit methods share."""

        task_weight: float = Field(
            1.0, ge=0, le=1e6, description="Weight of cross-entropy with the true labels."
        )

    params: Params

    def task(self, student: Features, batch: Batch) -> Terms:
        """Return cross-entropy at temperature 1, weighted."""
        loss = F.cross_entropy(student.logits, batch.labels)
        return {"task": self.params.task_weight * loss}
