"""What a method declares, and the few things it is shown while a student learns.

A method is an `nn.Module`, so learned adapters and memory banks are its parameters and buffers:
they are trained with the student and saved in checkpoints. It declares its name, source,
hyper-parameters and terms; it does no forward pass, no optimizer step and no logging.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config import chosen, descriptions, rules
from workers.distill.config.descriptions import (
    OF_EVERY_NETWORK,
    ChosenFeature,
    Condition,
    Contradiction,
    MethodDescription,
    NetworkDescription,
)
from workers.distill.config.devices import AcrossDevices
from workers.distill.config.job import Task
from workers.distill.config.training import Values
from workers.distill.data.types import Batch
from workers.distill.networks import shapes
from workers.distill.networks.interface import Features, Network
from workers.distill.tasks.catalog import TASKS

Terms: TypeAlias = dict[str, Tensor]
"""Named parts of a loss, weighted; the loop minimises their sum.

`task` is what the student learns from labels, every other term what it learns from the teacher.
A method gives the same names at every step; a term that is switched off is a zero without gradient.
"""

Need: TypeAlias = descriptions.Need
Task: TypeAlias = Task
FeatureName: TypeAlias = descriptions.FeatureName
FEATURES = descriptions.FEATURES


@dataclass(frozen=True)
class Source:
    """The publication that defines a method."""

    title: str
    venue: str
    arxiv: str | None = None
    equations: str | None = None


PUBLISHED_EPOCHS = 240
"""The length of training on CIFAR-100 for which papers state what counts epochs."""


@dataclass(frozen=True)
class Moment:
    """Where training stands; epoch and step count from 1, the step through all epochs."""

    epoch: int
    step: int
    steps_per_epoch: int
    epochs: int = PUBLISHED_EPOCHS
    """Those of the whole training."""

    def given_or_share(self, epochs: int | None, share: float) -> int:
        """Return the epochs that were given, or that share of all."""
        return chosen.epochs_of(share, self.epochs) if epochs is None else epochs

    def ramp(self, epochs: int) -> float:
        """Return min(epoch / epochs, 1): a weight that fades in, never zero."""
        return min(self.epoch / epochs, 1.0) if epochs > 0 else 1.0

    def step_ramp(self, steps: int) -> float:
        """Return min(step / steps, 1): the same over steps."""
        return min(self.step / steps, 1.0) if steps > 0 else 1.0

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
    task_features: ClassVar[Mapping[Task, tuple[FeatureName, ...]]] = MappingProxyType({})
    """Features that both networks must show in one task, besides those of every task."""
    task_params: ClassVar[Mapping[str, tuple[Task, ...]]] = MappingProxyType({})
    """Hyper-parameters that only some tasks have; they stay None in all others."""
    loop: ClassVar[str] = "supervised"
    """The loop that trains the student; a key of `run.loops.LOOPS`."""
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    """What may be learned with it; `task` in a recipe."""
    has_task: ClassVar[bool] = True
    """Whether there is a `task` term."""
    accepts_mixed: ClassVar[bool] = True
    """Whether images may be mixed; not where each must have one true class."""
    accepts_bce: ClassVar[bool] = False
    """Whether `training.task_loss` decides what its `task` term is."""
    weighs_classes: ClassVar[bool] = False
    """Whether `training.class_weights` weigh its distillation terms too."""
    uses_strong_view: ClassVar[bool] = False
    """Whether the student and the teacher see a second, strongly augmented view."""
    reads_labels: ClassVar[bool] = False
    """Whether its distillation terms need the class of every image."""
    combines: ClassVar[bool] = True
    """Whether its distillation terms may stand beside those of other methods."""
    across_devices: ClassVar[AcrossDevices] = "gathers"
    """What it does on several devices; `slices` where its loss is a mean over images."""
    smallest_batch: ClassVar[int] = 1
    smallest_classes: ClassVar[int] = 0
    """Of how many classes a student must at least be able to choose."""
    chosen_features: ClassVar[tuple[ChosenFeature, ...]] = ()
    """What networks must show besides, where hyper-parameters ask for it."""
    logits_when: ClassVar[tuple[Condition, ...]] = ()
    """Values of hyper-parameters with which logits are compared, where others compare features."""
    contradictions: ClassVar[tuple[Contradiction, ...]] = ()
    """Which hyper-parameters cannot stand together."""

    class Params(Values):
        """Hyper-parameters; every field has a default from the paper, a bound, a description."""

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__()
        self.params = params
        errors.refuse(
            rules.of_inputs(
                self.describe(),
                has_teacher=teacher is not None,
                has_dataset=True,
                has_initial=True,  # the network is here, wherever its weights are from
            )
        )
        if "equal_classes" in self.needs and teacher is not None:
            check_equal_classes(self.name, student, teacher)
        errors.refuse(
            rules.of_classes(self.describe(), student.classes),
            errors.IncompatibleNetworks,
            student_classes=student.classes,
        )
        described = self.describe()
        self.student_features = described.required_features("student", student.task)
        self.teacher_features = described.required_features("teacher", student.task)
        student.enable_features(self.student_features)
        if teacher is not None:
            teacher.enable_features(self.teacher_features)
        self.student_shapes = shapes.measure(student) if self.student_features else None
        self.teacher_shapes = (
            shapes.measure(teacher)
            if set(self.teacher_features) - OF_EVERY_NETWORK and teacher is not None
            else None
        )
        for role, network in (("student", student), ("teacher", teacher)):
            if network is not None:
                self._check_shows(role, network, student.task)

    @classmethod
    def describe(cls) -> MethodDescription:
        """Return what the rules read of this method, as the catalog exports it."""
        return MethodDescription(
            name=cls.name,
            family=cls.family,
            tasks=cls.tasks,
            needs=cls.needs,
            student_shows=cls.required_student_features,
            teacher_shows=cls.required_teacher_features,
            has_task=cls.has_task,
            accepts_mixed=cls.accepts_mixed,
            wants_strong=cls.uses_strong_view,
            combines=cls.combines,
            smallest_batch=cls.smallest_batch,
            smallest_classes=cls.smallest_classes,
            image_weights=(),
            adversarial_weights=(),
            norm_weights=(),
            learns_from_student_only=False,
            contradictions=cls.contradictions,
            task_shows=dict(cls.task_features),
            chosen_shows=cls.chosen_features,
            logits_when=cls.logits_when,
            reads_labels=cls.reads_labels,
            task_params=dict(cls.task_params),
            exchange=None,
            across_devices=cls.across_devices,
            accepts_bce=cls.accepts_bce,
            weighs_classes=cls.weighs_classes,
        )

    @property
    def teacher_trains(self) -> bool:
        """Whether the teacher is observed with the batch's own statistics, as OFD's authors did."""
        return False

    @property
    def reads_teacher_first(self) -> bool:
        """Whether `read_teacher` is due before training starts."""
        return False

    def prepare(self, labels: Shaped[Tensor, "N *T"]) -> None:
        """Look at the labels of all training images, in stored order, before training starts.

        Images are not shown: those of a large set would be decoded for it.
        """

    def read_teacher(self, outputs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Look at labels [N] and the teacher's logits [N, C] of all images before training starts.

        Images are unaugmented and in stored order, batch by batch; they are not kept.
        """

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

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Return what the method made of the networks' shapes and a user should know."""
        return {}

    def deliver(self, student: Network) -> Network:
        """Return the network to validate and deliver."""
        return student

    def _check_shows(self, role: str, network: Network, task: Task) -> None:
        measured = self.student_shapes if role == "student" else self.teacher_shapes
        wanted = self.student_features if role == "student" else self.teacher_features
        shows = frozenset(name for name in wanted if is_shown(name, network, measured))
        reference = network.reference or type(network).__name__
        description = NetworkDescription(
            reference, task=network.task, shows=shows, limits=network.limits
        )
        missing = next((name for name in wanted if name not in shows), None)
        errors.refuse(
            rules.of_features(self.describe(), role, description, task),
            errors.IncompatibleNetworks,
            **{role: network.reference, "missing": missing},
        )


def is_shown(name: FeatureName, network: Network, measured: shapes.Shapes | None) -> bool:
    """Whether a network shows a feature; `measured` are the shapes of its features, if any."""
    match name:
        case "embedding":
            return network.pooled_width > 0 or (measured is not None and measured.pooled > 0)
        case "stages":
            return measured is not None and bool(measured.stages)
        case "pre_activations":
            return measured is not None and bool(measured.pre_activations)
        case "final":
            return measured is not None and measured.final is not None
        case "norms":
            return bool(network.stage_norms())
        case "classifier":
            return network.pooled_classifier() is not None
        case "locations":
            return measured is not None and measured.locations is not None
        case "distributions":
            return measured is not None and measured.distances is not None
        case "branches":
            return measured is not None and measured.head_convs is not None
        case "proposals":
            return measured is not None and measured.has_proposals


def check_equal_classes(name: str, student: Network, teacher: Network) -> None:
    """Raise `IncompatibleNetworks` unless both networks tell apart the same number of classes."""
    errors.refuse(
        rules.equal_classes(name, student.classes, teacher.classes),
        errors.IncompatibleNetworks,
        teacher_classes=teacher.classes,
        student_classes=student.classes,
    )


def distillation_terms(terms: Terms) -> frozenset[str]:
    """Return the names of the terms by which the student learns from the teacher."""
    return frozenset(terms) - {"task"}


class LabelledMethod(Method):
    """Methods that learn from labels: all carry the task's loss as their `task` term."""

    accepts_bce = True

    class Params(Method.Params):
        """The weight that all of them share."""

        task_weight: float = Field(
            1.0, ge=0, le=1e6, description="Weight of cross-entropy with the true labels."
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self._task = TASKS[student.task]

    def task_loss(self, student: Features, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean loss against the labels, of both labels where images are mixed."""
        return self._task.loss(student, batch)

    def task(self, student: Features, batch: Batch) -> Terms:
        """Return the weighted loss against the labels."""
        return {"task": self.params.task_weight * self.task_loss(student, batch)}


class SupervisedMethod(LabelledMethod):
    """Methods that learn from the labels and from a teacher."""

    auto_balanced: ClassVar[bool] = False
    """Whether the scale of its distillation terms has nothing to do with that of the labels' loss.

    So it is where features or relations are compared, or logits whose scale was removed, and where
    parts of the teacher's answer have weights that were tuned for one data set.
    """

    class Params(LabelledMethod.Params):
        """The weight of the labels, and how much the teacher may outweigh them."""

        balance: chosen.Balance = None

    params: Params

    @property
    def is_auto_balanced(self) -> bool:
        """Whether `balance: auto` keeps any of its terms within the task's gradient."""
        return self.auto_balanced

    def auto_balanced_terms(self, terms: Terms) -> frozenset[str]:
        """Return the names of the terms that `balance: auto` keeps within the task's gradient."""
        return distillation_terms(terms) if self.is_auto_balanced else frozenset()


class LogitMethod(SupervisedMethod):
    """Methods that compare outputs."""

    family = "logit"
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")


class FeatureMethod(SupervisedMethod):
    """Methods that compare feature maps, image by image."""

    family = "feature"
    across_devices: ClassVar[AcrossDevices] = "slices"
    auto_balanced = True
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("stages",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("stages",)


class RelationMethod(SupervisedMethod):
    """Methods that compare how the images of a batch lie to each other."""

    family = "relation"
    auto_balanced = True
