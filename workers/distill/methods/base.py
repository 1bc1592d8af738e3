"""What a method declares, and the few things it is shown while a student learns.

A method is an `nn.Module`, so learned adapters and memory banks are its parameters and buffers:
they are trained with the student and saved in checkpoints. It declares its name, source,
hyper-parameters and terms; it does no forward pass, no optimizer step and no logging.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.config.training import Values
from workers.distill.data.types import Batch
from workers.distill.networks import shapes
from workers.distill.networks.interface import Features, Network

Terms: TypeAlias = dict[str, Tensor]
"""Named parts of a loss, weighted; the loop minimises their sum.

`task` is what the student learns from labels, every other term what it learns from the teacher.
A method gives the same names at every step; a term that is switched off is a zero without gradient.
"""

Need: TypeAlias = Literal["labels", "teacher", "equal_classes", "batch_norm"]
Task: TypeAlias = Task
FeatureName: TypeAlias = Literal["stages", "pre_activations", "final", "norms", "classifier"]
"""What a network may or may not show, besides its logits and its pooled features."""

FEATURES: dict[FeatureName, str] = {
    "stages": "feature maps of its stages",
    "pre_activations": "feature maps before the last activation of every stage",
    "final": "a last feature map whose average is its embedding",
    "norms": "a batch norm before the last activation of every stage",
    "classifier": "a linear classifier on its embedding",
}


@dataclass(frozen=True)
class Source:
    """The publication that defines a method."""

    title: str
    venue: str
    arxiv: str | None = None
    equations: str | None = None


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
    """One published way to distil.

    Besides its name and source, a method states what it needs, so that a recipe that cannot work
    is refused before anything is trained.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[Source]
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ()
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ()
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    """What may be learned with it; `task` in a recipe."""
    has_task: ClassVar[bool] = True
    """Whether there is a `task` term."""
    accepts_mixed: ClassVar[bool] = True
    """Whether images may be mixed; not where each must have one true class."""
    uses_strong_view: ClassVar[bool] = False
    """Whether the student and the teacher see a second, strongly augmented view."""
    combines: ClassVar[bool] = True
    """Whether its distillation terms may stand beside those of other methods."""
    smallest_batch: ClassVar[int] = 1

    class Params(Values):
        """Hyper-parameters; every field has a default from the paper, a bound, a description."""

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__()
        self.params = params
        if "teacher" in self.needs and teacher is None:
            raise errors.BadRecipe(f"method {self.name} needs a teacher, and the recipe has none")
        if "equal_classes" in self.needs and teacher is not None:
            check_equal_classes(self.name, student, teacher)
        student.enable_features(self.required_student_features)
        if teacher is not None:
            teacher.enable_features(self.required_teacher_features)
        self.student_shapes = shapes.measure(student) if self.required_student_features else None
        self.teacher_shapes = (
            shapes.measure(teacher)
            if self.required_teacher_features and teacher is not None
            else None
        )
        for role, network in (("student", student), ("teacher", teacher)):
            if network is not None:
                self._check_shows(role, network)

    @property
    def teacher_trains(self) -> bool:
        """Whether the teacher is observed with the batch's own statistics, as OFD's authors did."""
        return False

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at the training batches once before training starts."""

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the weighted terms of the loss.

        Logits and pooled features arrive in float32 at least. `teacher` is empty (no rows) when
        the recipe has none; a method whose `needs` name the teacher never sees that.
        """
        raise NotImplementedError

    def store(self, teacher: Features) -> dict[str, Tensor]:
        """Return what of a batch's teacher features a teacher cache keeps, one row an image."""
        return {"logits": teacher.logits, "pooled": teacher.pooled}

    def recall(self, stored: dict[str, Tensor]) -> Features:
        """Return teacher features from rows of what `store` returned."""
        return Features(logits=stored["logits"], pooled=stored["pooled"])

    def after_step(self, moment: Moment) -> None:
        """Do what follows each optimizer step, such as moving a temperature."""

    def deliver(self, student: Network) -> Network:
        """Return the network to validate and deliver."""
        return student

    def _check_shows(self, role: str, network: Network) -> None:
        found = self.student_shapes if role == "student" else self.teacher_shapes
        for wanted in (
            self.required_student_features if role == "student" else self.required_teacher_features
        ):
            match wanted:
                case "stages":
                    there = found is not None and bool(found.stages)
                case "pre_activations":
                    there = found is not None and bool(found.pre_activations)
                case "final":
                    there = found is not None and found.final is not None
                case "norms":
                    there = bool(network.stage_norms())
                case "classifier":
                    there = network.pooled_classifier() is not None
            if not there:
                raise errors.IncompatibleNetworks(
                    f"method {self.name} needs {FEATURES[wanted]}, and the {role} "
                    f"{network.reference or type(network).__name__} shows none; choose another "
                    f"{role}, or a method that compares logits",
                    **{role: network.reference, "missing": wanted},
                )


def check_equal_classes(name: str, student: Network, teacher: Network) -> None:
    """Raise `IncompatibleNetworks` unless both networks tell apart the same number of classes."""
    if student.classes != teacher.classes:
        raise errors.IncompatibleNetworks(
            f"method {name} compares logits, so teacher and student need equal classes; the "
            f"teacher has {teacher.classes}, the student {student.classes}",
            teacher_classes=teacher.classes,
            student_classes=student.classes,
        )


class SupervisedMethod(Method):
    """Methods that learn from labels too: all carry cross-entropy as their `task` term."""

    class Params(Method.Params):
        """The weight that all of them share."""

        task_weight: float = Field(
            1.0, ge=0, le=1e6, description="Weight of cross-entropy with the true labels."
        )

    params: Params

    def task(self, student: Features, batch: Batch) -> Terms:
        """Return the weighted cross-entropy, of both labels where images are mixed."""
        loss = cross_entropy(student.logits, batch)
        return {"task": self.params.task_weight * loss}


class LogitMethod(SupervisedMethod):
    """Methods that compare outputs."""

    family = "logit"
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")


class FeatureMethod(SupervisedMethod):
    """Methods that compare feature maps, image by image."""

    family = "feature"
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("stages",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("stages",)


class RelationMethod(SupervisedMethod):
    """Methods that compare how the images of a batch lie to each other."""

    family = "relation"


def cross_entropy(logits: Float[Tensor, "N C"], batch: Batch) -> Float[Tensor, ""]:
    """Return the mean cross-entropy with the labels, each mixed image with both of its own."""
    if batch.mixed is None:
        return F.cross_entropy(logits, batch.labels)
    first = F.cross_entropy(logits, batch.labels, reduction="none")
    second = F.cross_entropy(logits, batch.mixed.labels, reduction="none")
    return torch.lerp(second, first, batch.mixed.share.to(first.dtype)).mean()
