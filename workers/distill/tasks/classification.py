"""Classification: one class for each image, or for some of them."""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.training import BinaryCrossEntropy
from workers.distill.data import dataset, stateless_rng
from workers.distill.data.loader import NOISE
from workers.distill.data.types import Batch
from workers.distill.functional import calibration
from workers.distill.networks.interface import Features
from workers.distill.tasks.base import (
    BaseTask,
    SplitMetrics,
    count_equal_answers,
)

BATCH = 256
"""Images at a time; part of the result, since sums in another order round differently."""
BATCH_PIXELS = BATCH * 224 * 224
"""Larger images are fewer at a time: a network's maps are many times as large."""
Z95 = 1.959963984540054


class ClassificationMetrics(SplitMetrics):
    """Logits and labels of a split, from which every score follows."""

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._teacher_logits: list[Tensor] = []

    def update(
        self,
        output: Features,
        targets: Int[Tensor, " N"],
        teacher_out: Features | None = None,
    ) -> None:
        """Keep one batch's logits and labels."""
        self._logits.append(output.logits.float())
        self._labels.append(targets)
        if teacher_out is not None:
            self._teacher_logits.append(teacher_out.logits.float())

    def logits(self) -> Float[Tensor, "N C"]:
        """Return all logits in stored order."""
        return torch.cat(self._logits)

    @property
    def labels(self) -> Int[Tensor, " N"]:
        """Return the labels that were given."""
        return torch.cat(self._labels)

    @property
    def correct(self) -> int:
        """Return how many images were taken for what they are."""
        return int((self.logits().argmax(1) == self.labels).sum())

    def validation_scores(self) -> dict[str, float]:
        """Return accuracy, and the mean cross-entropy in nats."""
        logits, labels = self.logits(), self.labels
        return {
            "accuracy": self.correct / len(labels),
            "loss": float(F.cross_entropy(logits, labels)),
        }

    def test_scores(self) -> dict[str, Any]:
        """Return accuracy with its interval, calibration error, loss, agreement with a teacher."""
        teacher_logits = torch.cat(self._teacher_logits) if self._teacher_logits else None
        return scores(self.logits(), self.labels, teacher_logits)

    def confusion(self) -> Int[Tensor, "C C"]:
        """Return how many images of each class (row) were taken for each class (column)."""
        logits = self.logits()
        return confusion(logits, self.labels).cpu()


class Classification(BaseTask):
    """Learn one class for each image; targets are int64 [N], `UNLABELLED` where there is none."""

    name = "classification"
    network_task = "classification"
    means_over_images = True
    unit = "images"
    caches_logits = True
    compares_features = True
    report_topics = ("confusion", "calibration", "correlation", "embedding")

    def output_shape(self, images: Shaped[Tensor, "N c h w"], classes: int) -> tuple[int, ...]:
        """Return [N, C]."""
        return (len(images), classes)

    def check_targets(self, targets: Tensor, record: dataset.DatasetRecord, split: str) -> None:
        """Raise `BadDataset` unless targets are int64 [N], each the number of a class.

        Where the record says that some have none, those are `UNLABELLED`.
        """
        count = record.splits.get(split)  # type: ignore[call-overload]  # any name may be asked for
        if tuple(targets.shape) != (count,) or targets.dtype != torch.int64:
            raise errors.BadDataset(
                f"labels of the {split} split should be int64 [{count}]", split=split
            )
        known = targets
        if record.labelled is not None:
            known = targets[targets != dataset.UNLABELLED]
            if len(known) != record.labelled.get(split):
                raise errors.BadDataset(
                    f"{len(known)} labels of the {split} split are classes, and "
                    f"{dataset.RECORD_FILE} says {record.labelled.get(split)}",
                    split=split,
                )
        if len(known):
            dataset.check_class_numbers(known, record, split)

    def image_classes(self, targets: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Return the targets themselves."""
        return targets

    def constant_score(self, targets: Int[Tensor, " N"], classes: int) -> float:
        """Return the share of the commonest class, or of any if all are as common."""
        counts = torch.bincount(targets, minlength=classes)
        return float(counts.max() / counts.sum())

    def predicted_targets(self, logits: Float[Tensor, "N C"]) -> Int[Tensor, " N"]:
        """Return the class of the largest logit."""
        return logits.argmax(1)

    def add_label_noise(
        self, targets: Int[Tensor, " N"], share: float, *, classes: int, seed: int
    ) -> Int[Tensor, " N"]:
        """Return the labels with this share of them, to a whole image, replaced by another class.

        Raises `BadRecipe` where there is no other class.
        """
        count = round(share * len(targets))
        if count == 0:
            return targets
        errors.refuse(rules.of_label_noise({"label_noise": share}, classes))
        generator = torch.Generator().manual_seed(stateless_rng.mix(seed, 0, NOISE))
        chosen = torch.randperm(len(targets), generator=generator)[:count]
        away = torch.randint(1, classes, (count,), generator=generator)
        noisy = targets.clone()
        noisy[chosen] = (targets[chosen] + away) % classes
        return noisy

    def loss(self, output: Features, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean of the batch's task loss, each mixed image with both of its labels."""
        logits = output.logits
        if isinstance(batch.task_loss, BinaryCrossEntropy):
            return _binary_cross_entropy(logits, batch, batch.task_loss.target_threshold)
        if not batch.has_all_labels:
            return _mean_over_labelled(logits, batch)
        if batch.mixed is None:
            return F.cross_entropy(logits, batch.labels)
        first = F.cross_entropy(logits, batch.labels, reduction="none")
        second = F.cross_entropy(logits, batch.mixed.labels, reduction="none")
        return torch.lerp(second, first, batch.mixed.share.to(first.dtype)).mean()

    def count_correct(
        self, output: Features, targets: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, ""], int | Int[Tensor, ""]]:
        """Return how many images with a label are taken for what they are, and how many have one.

        An answer is never `UNLABELLED`, so such an image is never right.
        """
        correct, _ = count_equal_answers(output, targets)
        return correct, (targets != dataset.UNLABELLED).sum()

    def unlabelled(self, targets: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Return which images have no class."""
        return targets == dataset.UNLABELLED

    def evaluation_batch_size(self, classes: int, positions: int) -> int:
        """Return the same number for all networks, and fewer for images above 224 x 224."""
        return max(1, min(BATCH, BATCH_PIXELS // positions))

    def metrics(self, classes: int, device: torch.device) -> ClassificationMetrics:
        """Return empty sums."""
        return ClassificationMetrics()


def _mean_over_labelled(logits: Float[Tensor, "N C"], batch: Batch) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the images with a label; 0 where no image has one.

    Of a mixed image each part counts by its share, if it has a label.
    """
    total = counted = logits.new_zeros(())
    for labels, weights in _labelled_parts(logits, batch):
        losses = F.cross_entropy(logits, labels, reduction="none")
        total, counted = total + (weights * losses).sum(), counted + weights.sum()
    return total / counted.clamp(min=torch.finfo(counted.dtype).tiny)


def _binary_cross_entropy(
    logits: Float[Tensor, "N C"], batch: Batch, threshold: float | None
) -> Float[Tensor, ""]:
    """Return the mean over labelled images and classes; 0 where no image has a label.

    Source: Wightman et al., arXiv 2110.00476, section 3.1.
    Checked against: timm.loss.BinaryCrossEntropy (its mean over all elements).
    """
    parts = _labelled_parts(logits, batch)
    shown = [weights[:, None] * F.one_hot(labels, logits.shape[1]) for labels, weights in parts]
    # Above 0 and below 1 only for a mixed image of which one part has a label.
    counts = torch.stack([weights for _, weights in parts]).sum(0)
    tiny = torch.finfo(counts.dtype).tiny
    targets = torch.stack(shown).sum(0) / counts.clamp(min=tiny)[:, None]
    if threshold is not None:
        targets = (targets > threshold).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return (counts * losses).sum() / counts.sum().clamp(min=tiny)


def _labelled_parts(logits: Float[Tensor, "N C"], batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Return the labels [N] of each image's parts and their shares [N]; 0 where one has no label.

    An image that is not mixed has one part.
    """
    parts = [(batch.labels, logits.new_ones(len(logits)))]
    if batch.mixed is not None:
        share = batch.mixed.share.to(logits.dtype)
        parts = [(batch.labels, share), (batch.mixed.labels, 1 - share)]
    return [
        (labels.clamp(min=0), share * (labels != dataset.UNLABELLED)) for labels, share in parts
    ]


def scores(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    teacher_logits: Float[Tensor, "N D"] | None = None,
) -> dict[str, Any]:
    """Return accuracy with its interval, calibration error, loss, and agreement with a teacher."""
    logits, labels = logits.detach().cpu(), labels.cpu()
    samples = len(labels)
    correct = int((logits.argmax(1) == labels).sum())
    result: dict[str, Any] = {
        "accuracy": correct / samples,
        "accuracy_interval": list(wilson_interval(correct, samples)),
        "ece": calibration.reliability(logits.float().numpy(), labels.numpy()).error,
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "samples": samples,
    }
    if teacher_logits is not None:
        same = teacher_logits.cpu().argmax(1) == logits.argmax(1)
        result["agreement"] = int(same.sum()) / samples
    return result


def confusion(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Int[Tensor, "C C"]:
    """Return how many images of each class (row) were taken for each class (column)."""
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(1)
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def wilson_interval(correct: int, samples: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share."""
    share = correct / samples
    spread = Z95**2 / samples
    middle = share + spread / 2
    half = Z95 * math.sqrt(share * (1 - share) / samples + spread / (4 * samples))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    # Rounding may leave a share of 0 or 1 just outside its own interval.
    return max(min(low, share), 0.0), min(max(high, share), 1.0)
