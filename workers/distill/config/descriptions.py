"""What the rules read of methods and networks: plain values, known without building anything.

The engine takes a description from its classes and its table of networks; the service takes the
same description from the catalog that the engine exports. A value that is None is not known, and
a rule that depends on it is left to whoever knows it.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from pydantic import ConfigDict

from workers.distill.config import devices, teachers
from workers.distill.config.devices import AcrossDevices
from workers.distill.config.training import Values

Task: TypeAlias = Literal["classification", "segmentation", "detection", "embedding"]
"""What is learned: a class for each image, for each pixel, boxes with classes, or an embedding."""
DENSE_TASKS: frozenset[Task] = frozenset({"segmentation", "detection"})
"""Tasks whose targets lie within the image."""
BOX_TASKS: frozenset[Task] = frozenset({"detection"})
"""Tasks whose answers are boxes, which no cache of logits holds."""
MASK_TASKS: frozenset[Task] = DENSE_TASKS - BOX_TASKS
"""Tasks with a class for each pixel."""
BACKBONE: Task = "embedding"
"""What a network is for that has no classifier."""
WITHOUT_CLASSES: frozenset[Task] = frozenset({BACKBONE})
"""Tasks whose networks have no classifier, and learn from a teacher alone; labels only score."""
TAKEN_FROM: dict[Task, Task] = {BACKBONE: "classification"}
"""Tasks that use networks and data sets of another one: of its networks, all but the classifier."""
Metric: TypeAlias = Literal["accuracy", "miou", "ap", "knn"]
METRICS: tuple[Metric, ...] = get_args(Metric)
PRIMARY_METRICS: dict[Task, Metric] = {
    "classification": "accuracy",
    "segmentation": "miou",
    "detection": "ap",
    "embedding": "knn",
}
"""The metric that decides, by task: which epoch is delivered, and who is first in a study.

From 0 to 1, higher is better: the share of right answers, the mean intersection over union, COCO's
average precision, and the share of right answers of the nearest neighbours. It is the task's own
`primary_metric`, for readers without torch.
"""
VALIDATION_METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "loss"),
    "segmentation": ("miou", "accuracy", "loss"),
    "detection": ("ap", "ap50"),
    "embedding": ("knn",),
}
"""What every student is scored by on the validation split, the metric that decides first."""
LOWER_IS_BETTER = frozenset({"loss"})
Need: TypeAlias = Literal["labels", "teacher", "equal_classes", "batch_norm", "initial"]
"""What a spec must have. initial: start weights, whose features get a new classifier."""
FeatureName: TypeAlias = Literal[
    "embedding",
    "stages",
    "pre_activations",
    "final",
    "norms",
    "classifier",
    "locations",
    "distributions",
    "branches",
    "proposals",
]
"""What a network may or may not show, besides its logits."""

FEATURES: dict[FeatureName, str] = {
    "embedding": "an embedding of each image, which its logits are computed from",
    "stages": "feature maps of its stages",
    "pre_activations": "feature maps before the last activation of every stage",
    "final": "a last feature map whose average is its embedding",
    "norms": "a batch norm before the last activation of every stage",
    "classifier": "a linear classifier on its embedding",
    "locations": "a detector's classes at each location or anchor",
    "distributions": "a detector's distribution over the distance of each side of a box (reg_max)",
    "branches": "a detector's head whose two branches are rows of convolutions",
    "proposals": "a detector's classifier of proposals",
}
OF_EVERY_NETWORK: frozenset[FeatureName] = frozenset({"embedding"})
"""What all networks show that are built, and not read from a file as they are."""
DETECTORS: frozenset[FeatureName] = frozenset(
    {"locations", "distributions", "branches", "proposals"}
)
"""Features that are in a detector's output, `Features.detector`."""
MAPS: frozenset[FeatureName] = DETECTORS | {"stages", "pre_activations", "final"}
"""Features that are too large to be kept for every image."""

COMBINE = "combine"
"""Name of the method that combines others."""
OF_THE_WHOLE = {
    "task_weight": "the labels are learned once",
    "balance": "all parts are balanced as one",
}
"""Hyper-parameters that no part of a combination has, by the reason."""
DATA_FREE = "datafree"
"""Family of the methods that synthesize their images."""

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
}


class _Description(Values):
    """Values that the engine declares and the catalog holds, whose JSON has lists for tuples."""

    model_config = ConfigDict(strict=False)


class Condition(_Description):
    """That a hyper-parameter, such as `synthesis.keep`, compares so with a value."""

    field: str
    comparison: Literal["==", "!=", ">"]
    value: bool | int | float | str

    def holds(self, method: Mapping[str, Any]) -> bool:
        """Return whether a complete method meets the condition."""
        return _COMPARISONS[self.comparison](value_at(method, self.field), self.value)


class Contradiction(_Description):
    """Values of a method's hyper-parameters that cannot stand together.

    It is declared by the method, beside its `Params`. In `message`, `{name}` stands for the value
    of a hyper-parameter.
    """

    when: tuple[Condition, ...]
    field: str
    """The hyper-parameter at fault, such as `synthesis.keep`."""
    code: str
    message: str


class ChosenFeature(_Description):
    """What one network must show besides, where a hyper-parameter has a certain value."""

    role: Literal["student", "teacher"]
    feature: FeatureName
    when: Condition


class Exchange(_Description):
    """What travels between the clients and the server of a federated method."""

    sends: tuple[str, ...]
    """Kinds of content of a client's reply (`messages.KINDS`)."""
    receives: tuple[str, ...]
    """Kinds of content of what the server publishes."""
    uses_open_set: bool
    shares_weights: bool
    """Whether clients start each round from the server's weights."""
    delivers: Literal["server", "client"]
    """Whose model becomes the student."""
    weights_by: str | None
    """The hyper-parameter by which weights travel besides, if there is one."""

    def chosen(self, method: Mapping[str, Any]) -> "Exchange":  # Any: a method's JSON
        """Return what travels with these hyper-parameters."""
        if self.weights_by is None or not method[self.weights_by]:
            return self
        sends, receives = (*self.sends, "weights"), (*self.receives, "weights")
        changed = {"sends": sends, "receives": receives, "shares_weights": True}
        return self.model_copy(update={**changed, "delivers": "server"})


class MethodDescription(_Description):
    """What a method, or all parts of a combination together, declare.

    `image_weights` and `adversarial_weights` are the hyper-parameters that weigh the terms of a
    synthesis loss: the first without the student, the second with it. A method whose `needs` name
    `batch_norm` needs it where one of `norm_weights` is above 0; always, if it declares none.
    """

    name: str
    family: str
    tasks: tuple[str, ...]
    needs: tuple[Need, ...]
    student_shows: tuple[FeatureName, ...]
    teacher_shows: tuple[FeatureName, ...]
    has_task: bool
    accepts_mixed: bool
    wants_strong: bool
    combines: bool
    smallest_batch: int
    smallest_classes: int
    image_weights: tuple[str, ...]
    adversarial_weights: tuple[str, ...]
    norm_weights: tuple[str, ...]
    learns_from_student_only: bool
    contradictions: tuple[Contradiction, ...]
    task_shows: dict[str, tuple[FeatureName, ...]]
    """What both networks must show besides, by task."""
    exchange: Exchange | None
    """Of a federated method."""
    across_devices: AcrossDevices
    task_params: dict[str, tuple[str, ...]]
    """Hyper-parameters that only these tasks have; None in all others."""
    chosen_shows: tuple[ChosenFeature, ...] = ()
    logits_when: tuple[Condition, ...] = ()
    """Values of hyper-parameters with which logits are compared, where others compare features."""
    reads_labels: bool = False
    """Whether its distillation terms need the class of every image."""
    accepts_bce: bool = False
    """Whether `training.task_loss` decides what it loses by the labels."""
    weighs_classes: bool = False
    """Whether `training.class_weights` weigh its distillation terms too."""

    def required_features(self, role: str, task: str | None) -> tuple[FeatureName, ...]:
        """Return what a network must show; `role`: student or teacher, `task`: None if unknown."""
        always = self.student_shows if role == "student" else self.teacher_shows
        in_task: tuple[FeatureName, ...] = self.task_shows.get(task or "", ())
        return _union([always, in_task])

    @property
    def is_federated(self) -> bool:
        """Whether its training images are divided among clients."""
        return self.exchange is not None

    @property
    def is_data_free(self) -> bool:
        """Whether it synthesizes its images, so that a data set is for evaluation only."""
        return self.family == DATA_FREE

    @property
    def replaces_classifier(self) -> bool:
        """Whether the student keeps the features of its start weights, of whatever classes."""
        return "initial" in self.needs

    def needs_batch_norm(self, method: Mapping[str, Any]) -> bool:
        """Return whether the teacher of a complete method must have batch norms."""
        return "batch_norm" in self.needs and (
            not self.norm_weights or any(method[name] > 0 for name in self.norm_weights)
        )


@dataclass(frozen=True)
class NetworkDescription:
    """What is known of a network and of the images it takes."""

    reference: str
    task: str | None = None
    shows: frozenset[str] | None = None
    smallest_side: int | None = None
    has_batch_norm: bool | None = None
    classes: int | None = None
    channels: int | None = None
    sides: tuple[int, int] | None = None
    """Height and width."""
    gives_gradients: bool | None = None
    """Whether gradients flow from its logits to its images."""
    takes_any_size: bool | None = None
    """Whether its weights fit images of any size, above the smallest."""
    limits: str | None = None
    """Why it shows less than others, to end a sentence with."""
    predicted: Mapping[str, Any] | None = None
    """Of a table of predictions: its arguments, which say what it holds."""


def network_of(
    table: Mapping[str, Mapping[str, Any]], reference: str, arguments: Mapping[str, Any]
) -> NetworkDescription:
    """Return what a table of networks, as the catalog has it, knows of a network.

    A network that is composed of another one takes the images that its part takes, and shows no
    more than its part does. Some arguments (`shows_with`) make a network show more.
    """
    entry = table.get(reference)
    if entry is None:
        return NetworkDescription(reference)
    if entry["only_teaches"]:
        # What it shows is known of each file, not of the network.
        held = arguments if reference == teachers.PREDICTIONS else None
        return NetworkDescription(reference, task=entry["task"], predicted=held)
    description = NetworkDescription(
        reference,
        task=entry["task"],
        shows=OF_EVERY_NETWORK.union(entry["shows"]).union(
            feature
            for argument, feature in entry["shows_with"].items()
            if arguments.get(argument) is not None
        ),
        smallest_side=entry["smallest_side"],
        takes_any_size=entry["takes_any_size"],
        has_batch_norm=entry["has_batch_norm"],
    )
    chosen = part_of(entry, arguments)
    if chosen is None or chosen[0] == reference:
        return description
    part = network_of(table, *chosen)
    return dataclasses.replace(
        description,
        shows=None if part.shows is None else part.shows & (description.shows or frozenset()),
        smallest_side=part.smallest_side,
        takes_any_size=part.takes_any_size,
        has_batch_norm=part.has_batch_norm,
    )


def part_of(
    entry: Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """Return the network, with its arguments, that a network of a table is composed of, if any."""
    name = entry["composed_of"]
    if name is None:
        return None
    default = entry["arguments_schema"]["properties"][name]["default"]
    chosen = {**default, **arguments.get(name, {})}
    return chosen["network"], chosen["arguments"]


def combined(whole: MethodDescription, parts: Sequence[MethodDescription]) -> MethodDescription:
    """Return the description of a combination: it needs whatever one of its parts needs."""
    return whole.model_copy(
        update={
            "tasks": tuple(task for task in whole.tasks if all(task in p.tasks for p in parts)),
            "needs": _union(part.needs for part in parts),
            "student_shows": _union(part.student_shows for part in parts),
            "teacher_shows": _union(part.teacher_shows for part in parts),
            "accepts_mixed": all(part.accepts_mixed for part in parts),
            "wants_strong": any(part.wants_strong for part in parts),
            "reads_labels": any(part.reads_labels for part in parts),
            "weighs_classes": any(part.weighs_classes for part in parts),
            "across_devices": devices.of_parts([part.across_devices for part in parts]),
            "smallest_batch": max(part.smallest_batch for part in parts),
            "smallest_classes": max(part.smallest_classes for part in parts),
            "task_shows": {
                task: _union(part.task_shows.get(task, ()) for part in parts)
                for task in _union(part.task_shows for part in parts)
            },
        }
    )


def value_at(method: Mapping[str, Any], field: str) -> Any:  # Any: a JSON value
    """Return the value of a hyper-parameter, such as `synthesis.keep`."""
    value: Any = method
    for step in field.split("."):
        value = value[step]
    return value


def _union(several: Iterable[Iterable[Any]]) -> tuple[Any, ...]:  # Any: a need or a feature
    return tuple(dict.fromkeys(one for each in several for one in each))
