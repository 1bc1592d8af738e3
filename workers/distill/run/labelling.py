"""Images without labels: which of them train, and what students are scored by.

In training, images without a label count in the distillation terms alone, unless
`training.pseudo_labels` gives them the teacher's class. Validation and test leave them out where
other images of the split have labels; where none has, the teacher's answers are the labels, so that
accuracy is agreement with the teacher.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from workers.distill import errors
from workers.distill.config.result import LabelSummary, RunWarning
from workers.distill.config.training import PseudoLabels
from workers.distill.data import dataset
from workers.distill.data.lazy_images import StoredImages, select
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.networks.interface import Network
from workers.distill.networks.predictions import PredictionsNetwork
from workers.distill.runtime import signals
from workers.distill.runtime.precision import Precision
from workers.distill.tasks.base import BaseTask
from workers.distill.training.teachers import CACHE_BATCH


@dataclass(frozen=True)
class TeacherAnswers:
    """A teacher, asked for the targets of images that have none."""

    task: BaseTask
    network: Network
    preprocessor: Preprocessor
    precision: Precision
    device: torch.device
    stop: signals.Stop
    predicted: Mapping[str, Shaped[Tensor, "N C"]] = field(default_factory=dict)
    """Logits of the images of a split, of a teacher that is a table of them."""

    def targets(
        self, split: str, images: StoredImages, rows: Bool[Tensor, " M"]
    ) -> tuple[Shaped[Tensor, "N *T"], Shaped[Tensor, " N"]]:
        """Return what the teacher takes images for, and its probability of that, on the CPU.

        Images are those of a split's `rows`, unaugmented. Raises `IncompatibleNetworks` where the
        teacher is a table without that split.
        """
        if isinstance(self.network, PredictionsNetwork):
            return self._in_table(split, rows)
        targets, confidences = [], []
        for first in range(0, len(images), CACHE_BATCH):
            self.stop.check()
            part = images[first : first + CACHE_BATCH]
            with torch.no_grad(), self.precision.autocast():
                inputs = self.preprocessor(part.to(self.device))
                logits = self.task.answers(self.network, inputs).float()
            targets.append(self.task.predicted_targets(logits).cpu())
            confidences.append(logits.softmax(1).amax(1).cpu())
        return torch.cat(targets), torch.cat(confidences)

    def _in_table(self, split: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        table = self.predicted.get(split)
        if table is None:
            raise errors.IncompatibleNetworks(
                f"no image of the {split} split has a label, and the teacher's predictions leave "
                "that split out; upload predictions of it, or a data set with labels there",
                field="teacher",
            )
        logits = table.cpu()[rows.cpu()]
        return self.task.predicted_targets(logits), logits.softmax(1).amax(1)


@dataclass(frozen=True)
class TrainingLabels:
    """The labels of the training split: as given, and as trained with."""

    given: Shaped[Tensor, "N *T"]
    used: Shaped[Tensor, "N *T"]
    """With pseudo-labels, where they are wanted."""
    unlabelled: Bool[Tensor, " N"]
    """Images that had none."""
    pseudo: int = 0
    """Of those, images that got one."""

    @property
    def has_all(self) -> bool:
        """Whether every image has one in training."""
        return self.pseudo == int(self.unlabelled.sum())


def of_training(
    task: BaseTask,
    split: dataset.ImageSplit,
    answers: TeacherAnswers | None,
    wanted: PseudoLabels | None,
) -> TrainingLabels:
    """Return the labels of a training split.

    Where it is wanted, an image without a label gets the class that the teacher gives it with at
    least the probability `threshold` (hard pseudo-labels, as in FixMatch, Sohn et al., NeurIPS
    2020, arXiv:2001.07685, equation 4). Differs: the teacher labels once, before training.
    """
    labels, missing = split.labels, task.unlabelled(split.labels)
    if wanted is None or answers is None or not bool(missing.any()):
        return TrainingLabels(labels, labels, missing)
    targets, confidences = answers.targets("train", select(split.images, missing), missing)
    is_sure = confidences >= wanted.threshold
    used = labels.clone()
    used[missing.nonzero().flatten()[is_sure]] = targets[is_sure]
    return TrainingLabels(labels, used, missing, int(is_sure.sum()))


@dataclass(frozen=True)
class ScoredSplit:
    """A split as students are scored on it."""

    content: dataset.ImageSplit
    left_out: int = 0
    """Images without a label, which do not count."""
    by_teacher: bool = False
    """Whether the labels are the teacher's answers."""
    predicted: Shaped[Tensor, "N C"] | None = None
    """Logits of these images, of a teacher that is a table of them."""


def of_scores(
    task: BaseTask, name: str, split: dataset.ImageSplit, answers: TeacherAnswers | None
) -> ScoredSplit:
    """Return the validation or test split `name` as students are scored on it.

    Raises ValueError where no image has a label, and there is no teacher (which the rules refuse).
    """
    missing = task.unlabelled(split.labels)
    predicted = None if answers is None else answers.predicted.get(name)
    if not bool(missing.any()):
        return ScoredSplit(split, predicted=predicted)
    if bool(missing.all()):
        if answers is None:
            raise ValueError("nothing tells what the images show")
        targets, _ = answers.targets(name, split.images, missing)
        labelled = dataclasses.replace(split, labels=targets)
        return ScoredSplit(labelled, by_teacher=True, predicted=predicted)
    kept = dataset.ImageSplit(select(split.images, ~missing), split.labels[~missing])
    rows = None if predicted is None else predicted[~missing]
    return ScoredSplit(kept, left_out=int(missing.sum()), predicted=rows)


@dataclass(frozen=True)
class Labelling:
    """What of a data set was labelled, by whom, and what became of the rest."""

    train: TrainingLabels | None
    """None where no training image is read."""
    validation: ScoredSplit | None
    test: ScoredSplit | None
    """Both None without a data set."""
    record: dataset.DatasetRecord | None = None

    @property
    def has_training_labels(self) -> bool:
        """Whether any training image was given a label."""
        return self.train is None or not bool(self.train.unlabelled.all())

    @property
    def has_task_labels(self) -> bool:
        """Whether any training image has a label in training, given or pseudo."""
        return self.has_training_labels or (self.train is not None and self.train.pseudo > 0)

    @property
    def splits(self) -> dict[str, int]:
        """Return the images of each split."""
        return {} if self.record is None else self.record.sizes()

    @property
    def labelled(self) -> dict[str, int] | None:
        """Return those of them that were given a label; None where all were."""
        return None if self.record is None else self.record.labelled

    def summary(self) -> LabelSummary | None:
        """Return what the result says, or None where every image has a label."""
        train, scored = self.train, self._scored()
        missing = 0 if train is None else int(train.unlabelled.sum())
        if not missing and not any(one.left_out or one.by_teacher for one in scored.values()):
            return None
        return LabelSummary(
            labelled=0 if train is None else len(train.given) - missing,
            pseudo=0 if train is None else train.pseudo,
            unlabelled=0 if train is None else missing - train.pseudo,
            left_out={name: one.left_out for name, one in scored.items()},
            scored_by={
                name: "teacher" if one.by_teacher else "labels" for name, one in scored.items()
            },
        )

    def warnings(self, task: BaseTask, *, wants_baseline: bool) -> Iterator[RunWarning]:
        """Yield what a user should know before the scores."""
        for name, one in self._scored().items():
            if one.by_teacher:
                yield RunWarning(
                    code="scored_by_teacher",
                    message=f"no image of the {name} split has a label: {task.scored_by_teacher}",
                )
        by_labels = any(not one.by_teacher for one in self._scored().values())
        if task.reference_images and by_labels and not self.has_training_labels:
            yield RunWarning(
                code="no_labelled_references",
                message="no training image has a label: the nearest neighbours of a validation or "
                "test image are others of its split, and no linear probe is measured",
            )
        if not task.learns_targets:
            return
        if wants_baseline and not self.has_training_labels:
            yield RunWarning(
                code="no_baseline",
                message="no baseline was trained: it learns from labels alone, and no training "
                "image has one",
            )

    def _scored(self) -> dict[str, ScoredSplit]:
        both = {"validation": self.validation, "test": self.test}
        return {name: one for name, one in both.items() if one is not None}
