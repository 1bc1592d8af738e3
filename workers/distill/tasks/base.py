"""What a task offers to the engine: targets, loss, metrics, and what its report shows.

A task is one file that implements `BaseTask`, one line in `catalog.TASKS`, and its name in
`config.job.Task`. The engine asks the object for everything and never compares the name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from workers.distill import errors
from workers.distill.config import job
from workers.distill.data import dataset
from workers.distill.data.types import Batch, Crops
from workers.distill.functional import detection_metrics
from workers.distill.networks.interface import Features, Network
from workers.distill.tasks.comparisons import Comparison

ReportTopic: TypeAlias = Literal[
    "confusion", "overlap", "calibration", "correlation", "embedding", "detection", "examples"
]
"""Parts of the report on the test split; those about training are there for every task."""


class SplitMetrics(ABC):
    """Sums over one split for one network, filled batch by batch like a torchmetrics `Metric`."""

    @abstractmethod
    def update(
        self,
        output: Features,
        targets: Shaped[Tensor, "N *T"],
        teacher_out: Features | None = None,
    ) -> None:
        """Add one batch; `teacher_out` is what agreement is measured against."""

    def add_references(self, output: Features, targets: Shaped[Tensor, "N *T"]) -> None:
        """Look at a batch of labelled training images, of tasks with `reference_images`."""
        raise NotImplementedError(f"{type(self).__name__} looks at no training images")

    @abstractmethod
    def validation_scores(self) -> dict[str, float]:
        """Return the scores of an epoch; the task's `primary_metric` is among them.

        So is `loss`, where it can be computed outside of training.
        """

    @abstractmethod
    def test_scores(self) -> dict[str, Any]:  # Any: JSON
        """Return the scores of a result; `primary_metric` and `samples` are among them."""

    @property
    @abstractmethod
    def correct(self) -> int:
        """Return the number of right answers, counted in the task's `unit`."""

    def confusion(self) -> Int[Tensor, "C C"] | None:
        """Return counts by true class (row) and predicted class, or None where they mean nothing.

        The result is on the CPU.
        """
        return None

    def logits(self) -> Float[Tensor, "N C"] | None:
        """Return the logits of the whole split in stored order, or None if they were not kept."""
        return None

    def detections(self) -> detection_metrics.Detections | None:
        """Return true and detected boxes of all images in stored order, or None without boxes."""
        return None


class BaseTask(ABC):
    """What is learned, and everything that depends on it."""

    name: ClassVar[job.Task]
    network_task: ClassVar[job.Task]
    """The task of the networks in the catalog whose logits have the shape that this task needs."""
    unit: ClassVar[str]
    """What accuracy is a share of, in the plural: `images`, `pixels`."""
    primary_metric: ClassVar[str] = "accuracy"
    """The validation score that decides which epoch is delivered: 0 to 1, higher is better."""
    means_over_images: ClassVar[bool] = False
    """Whether the loss is a mean over images, in which each of them counts alike."""
    uses_logits_only: ClassVar[bool] = True
    """Whether loss and metrics read the logits and nothing else of a network's features."""
    caches_logits: ClassVar[bool]
    """Whether the logits of an image are few enough to keep them for each image of a buffer."""
    compares_features: ClassVar[bool]
    """Whether validation measures CKA between the pooled features of student and teacher."""
    report_topics: ClassVar[tuple[ReportTopic, ...]] = ()
    learns_targets: ClassVar[bool] = True
    """Whether students learn from targets; else these only score, and the baseline is the student
    before training."""
    reference_images: ClassVar[Mapping[str, int]] = MappingProxyType({})
    """How many labelled training images the metrics of a split look at first, at most, by split."""
    scored_by_teacher: ClassVar[str] = (
        "the teacher's answers stand for them, so that accuracy there is agreement with the teacher"
    )
    """What scores mean on a split without labels, to end a sentence with."""

    def accepts(self, network: Network) -> bool:
        """Whether the logits of a network have the shape that this task needs."""
        return network.task == self.network_task

    @abstractmethod
    def output_shape(
        self, images: Shaped[Tensor, "N c h w"], classes: int
    ) -> tuple[int | None, ...]:
        """Return the shape that a network has to answer these images with; None: any number."""

    # -- targets -------------------------------------------------------------------------------

    def class_count_fault(self, classes: int) -> str | None:
        """Return why targets cannot be stored for so many classes, or None if they can."""
        return None

    @abstractmethod
    def check_targets(self, targets: Tensor, record: dataset.DatasetRecord, split: str) -> None:
        """Raise `BadDataset` unless the targets of a split are stored as this task needs them."""

    def read_split(self, stored: dataset.StoredDataset, name: str) -> dataset.Split:
        """Return a split as `open_split` does, of a data set whose images are stored decoded.

        Raises `BadDataset` for another one, too.
        """
        return dataset.decoded(self.open_split(stored, name), name)

    def open_split(self, stored: dataset.StoredDataset, name: str) -> dataset.ImageSplit:
        """Return a split of a data set for this task, its targets checked.

        Raises `BadDataset` when images or targets are not as recorded.
        """
        fault = self.class_count_fault(len(stored.record.classes))
        if fault is not None:
            raise errors.BadDataset(f"{dataset.RECORD_FILE} is malformed: {fault}")
        split = stored.open_split(name)
        self.check_targets(split.labels, stored.record, name)
        return split

    def unlabelled(self, targets: Shaped[Tensor, "N *T"]) -> Bool[Tensor, " N"]:
        """Return which images have no target; where tasks know no such images, none."""
        return torch.zeros(len(targets), dtype=torch.bool, device=targets.device)

    def image_classes(self, targets: Shaped[Tensor, "N *T"]) -> Int[Tensor, " N"] | None:
        """Return the one class of each image, or None where an image has no such class."""
        return None

    def answers(
        self, network: Network, inputs: Float[Tensor, "N c h w"]
    ) -> Float[Tensor, "N C *S"]:
        """Return what of a network's output `predicted_targets` reads: the logits."""
        return network(inputs)

    def delivered_classes(self, classes: list[str]) -> list[str]:
        """Return the classes that a student tells apart, of those of the data set: all."""
        return classes

    @abstractmethod
    def predicted_targets(self, logits: Float[Tensor, "N C *S"]) -> Shaped[Tensor, "N *T"]:
        """Return what a network says as targets, in the form in which a data set stores them."""

    def add_label_noise(
        self, targets: Shaped[Tensor, "N *T"], share: float, *, classes: int, seed: int
    ) -> Shaped[Tensor, "N *T"]:
        """Return the targets with this share of them wrong; raises `BadRecipe` if they cannot be.

        Here none can be: `config.rules` refuses a share above 0 for tasks without one class for
        each image.
        """
        if share:
            raise NotImplementedError(f"targets of {self.name} cannot be wrong")
        return targets

    def class_weights(
        self, targets: Shaped[Tensor, "N *T"], asked: str | Sequence[float], classes: int
    ) -> Float[Tensor, " C"] | None:
        """Return what the targets of each class count in the loss, or None where all count alike.

        `asked` is `class_weights` of a training, which `config.rules` leaves at "none" for tasks
        without masks.
        """
        if asked != "none":
            raise NotImplementedError(f"targets of {self.name} are not weighed by class")
        return None

    def crop_targets(self, targets: Shaped[Tensor, "N *T"], crops: Crops) -> Shaped[Tensor, "N *T"]:
        """Return the targets as they are in crops of their images; here a crop keeps its own."""
        return targets

    def constant_score(self, targets: Shaped[Tensor, "N *T"], classes: int) -> float:
        """Return the `primary_metric` of the best answer that is the same for every image."""
        return 0.0

    # -- training ------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, output: Features, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean loss of a network's output for a batch against its targets, in nats.

        An image that is mixed from two counts with the targets of both, by their shares.
        """

    def count_correct(
        self, output: Features, targets: Shaped[Tensor, "N *T"]
    ) -> tuple[Int[Tensor, ""], int | Int[Tensor, ""]]:
        """Return how many answers are right, on the device, and how many there are.

        The second is on the device too where it depends on the targets' values.
        A task whose answers are not counted in training returns 0 of 0.
        """
        return count_equal_answers(output, targets)

    # -- evaluation ----------------------------------------------------------------------------

    @abstractmethod
    def evaluation_batch_size(self, classes: int, positions: int) -> int:
        """Return how many images are evaluated at a time.

        `positions` is the number of pixels of the largest image that a network or a target has.
        """

    @abstractmethod
    def metrics(self, classes: int, device: torch.device) -> SplitMetrics:
        """Return empty sums for one network on one split."""

    def comparisons(
        self, output: Features, targets: Shaped[Tensor, "N *T"], classes: int
    ) -> Sequence[Comparison]:
        """Return truth and a network's answer for each image, to be drawn.

        Empty for a task without the topic `examples`.
        """
        return ()


def count_equal_answers(
    output: Features, targets: Int[Tensor, "N *S"]
) -> tuple[Int[Tensor, ""], int]:
    """Return how often the largest logit is that of the target's class, and of how many."""
    return (output.logits.argmax(1) == targets).sum(), targets.numel()
