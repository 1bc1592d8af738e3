"""Embedding: a backbone without classifier, which learns its teacher's embeddings and maps.

Labels of the data set train nothing. They score: by the votes of the nearest training images, and
by a linear classifier on the embeddings. Where a split has no labels, its targets are the teacher's
embeddings, and students are scored by how many nearest images they have in common with it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from workers.distill.data import dataset
from workers.distill.data.types import Batch
from workers.distill.functional import embedding_metrics, similarity
from workers.distill.networks.interface import Features, Network
from workers.distill.tasks.base import BaseTask, SplitMetrics
from workers.distill.tasks.classification import Classification, wilson_interval

LABELS = Classification()
"""By which labels are stored and checked: an embedding is scored by those of classification."""
MOST_COMPARED = 2000
"""Images by which CKA and shared neighbours are measured, evenly spread over the split."""


class EmbeddingMetrics(SplitMetrics):
    """Embeddings of a split and of labelled training images, from which every score follows."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._embeddings: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._teachers: list[Tensor] = []
        self._references: list[Tensor] = []
        self._reference_labels: list[Tensor] = []
        self._correct: int | None = None

    def add_references(self, output: Features, targets: Int[Tensor, " N"]) -> None:
        """Keep a batch of labelled training images."""
        self._references.append(output.pooled.float())
        self._reference_labels.append(targets)

    def update(
        self,
        output: Features,
        targets: Shaped[Tensor, "N *T"],
        teacher_out: Features | None = None,
    ) -> None:
        """Keep one batch's embeddings and targets."""
        self._embeddings.append(output.pooled.float())
        self._targets.append(targets)
        if teacher_out is not None:
            self._teachers.append(teacher_out.pooled.float())

    @property
    def correct(self) -> int:
        """Return how many images their neighbours take for what they are; 0 without labels."""
        if self._correct is None:
            self._correct = 0
            if self._has_labels:
                self._correct = int((self._by_neighbours() == self._labels).sum())
        return self._correct

    def validation_scores(self) -> dict[str, float]:
        """Return `knn`: accuracy, or the share of neighbours that are the teacher's too."""
        if not self._has_labels:
            return {"knn": _shared(self._all, torch.cat(self._targets))}
        return {"knn": self.correct / len(self._labels)}

    def test_scores(self) -> dict[str, Any]:
        """Return `knn` and `linear_probe` with their intervals, and the likeness to a teacher.

        None stands for what cannot be measured: without labels, or without labelled training
        images for the linear probe.
        """
        samples, has_labels = len(self._all), self._has_labels
        probe = self._by_probe()
        result: dict[str, Any] = {
            **self.validation_scores(),
            "knn_interval": list(wilson_interval(self.correct, samples)) if has_labels else None,
            "linear_probe": None,
            "linear_probe_interval": None,
            "reference_images": len(self._bank) if self._references else 0,
            "samples": samples,
        }
        if probe is not None:
            right = int((probe == self._labels).sum())
            result["linear_probe"] = right / samples
            result["linear_probe_interval"] = list(wilson_interval(right, samples))
        if self._teachers:
            result |= _likeness(self._all, torch.cat(self._teachers))
        return result

    @property
    def _all(self) -> Float[Tensor, "N D"]:
        return torch.cat(self._embeddings)

    @property
    def _bank(self) -> Float[Tensor, "M D"]:
        return torch.cat(self._references)

    @property
    def _labels(self) -> Int[Tensor, " N"]:
        return torch.cat(self._targets)

    @property
    def _has_labels(self) -> bool:
        return not self._targets[0].is_floating_point()

    def _by_neighbours(self) -> Int[Tensor, " N"]:
        """Return what the nearest training images say, or without any the split's own others."""
        if not self._references:
            return embedding_metrics.knn_predict(
                self._all, self._all, self._labels, classes=self._classes, leaves_self_out=True
            )
        labels = torch.cat(self._reference_labels)
        return embedding_metrics.knn_predict(self._all, self._bank, labels, classes=self._classes)

    def _by_probe(self) -> Int[Tensor, " N"] | None:
        if not self._references or not self._has_labels:
            return None
        labels = torch.cat(self._reference_labels)
        return embedding_metrics.linear_probe_predict(
            self._all, self._bank, labels, classes=self._classes
        )


class Embedding(BaseTask):
    """Learn a teacher's embeddings; targets are classes, or embeddings float32 [N, D]."""

    name = "embedding"
    network_task = "classification"
    unit = "images"
    caches_logits = True
    primary_metric = "knn"
    uses_logits_only = False
    compares_features = True
    report_topics = ("embedding",)
    learns_targets = False
    # DINO's protocol takes all training images; on many a validation would cost an epoch.
    reference_images: ClassVar[Mapping[str, int]] = {"validation": 2_000, "test": 20_000}
    scored_by_teacher = (
        "`knn` there is the share of an image's nearest images that are also its nearest by the "
        "teacher"
    )

    def accepts(self, network: Network) -> bool:
        """Whether a network answers with embeddings."""
        return network.task == self.name

    def output_shape(
        self, images: Shaped[Tensor, "N c h w"], classes: int
    ) -> tuple[int | None, ...]:
        """Return [N, D], of any width D."""
        return (len(images), None)

    def check_targets(self, targets: Tensor, record: dataset.DatasetRecord, split: str) -> None:
        """Raise `BadDataset` unless targets are those of classification."""
        LABELS.check_targets(targets, record, split)

    def unlabelled(self, targets: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Return which images have no class."""
        return LABELS.unlabelled(targets)

    def evaluation_batch_size(self, classes: int, positions: int) -> int:
        """Return the number of images that classification takes."""
        return LABELS.evaluation_batch_size(classes, positions)

    def delivered_classes(self, classes: list[str]) -> list[str]:
        """Return none: a backbone tells no classes apart."""
        return []

    def image_classes(self, targets: Shaped[Tensor, "N *T"]) -> Int[Tensor, " N"] | None:
        """Return the targets where they are classes."""
        return None if targets.is_floating_point() else targets

    def constant_score(self, targets: Shaped[Tensor, "N *T"], classes: int) -> float:
        """Return what equal embeddings score: 0 without labels, as no neighbour means anything."""
        return 0.0 if targets.is_floating_point() else LABELS.constant_score(targets, classes)

    def answers(self, network: Network, inputs: Float[Tensor, "N c h w"]) -> Float[Tensor, "N D"]:
        """Return the embeddings."""
        return network.observe(inputs).pooled

    def predicted_targets(self, logits: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return the embeddings themselves."""
        return logits

    def loss(self, output: Features, batch: Batch) -> Float[Tensor, ""]:
        """Return 0 without gradient: nothing is learned from labels."""
        return output.pooled.new_zeros(())

    def count_correct(
        self, output: Features, targets: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, ""], int]:
        """Return 0 of 0: nothing is answered in training."""
        return torch.zeros((), dtype=torch.int64, device=output.pooled.device), 0

    def metrics(self, classes: int, device: torch.device) -> EmbeddingMetrics:
        """Return empty sums."""
        return EmbeddingMetrics(classes)


def _shared(one: Float[Tensor, "N D"], other: Float[Tensor, "N E"]) -> float:
    if len(one) < 2:
        return 0.0  # one image has no neighbours
    return float(embedding_metrics.shared_neighbours(_few(one), _few(other)))


def _few(rows: Float[Tensor, "N D"]) -> Float[Tensor, "K D"]:
    """Return at most `MOST_COMPARED` of the rows, evenly spread."""
    if len(rows) <= MOST_COMPARED:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, MOST_COMPARED).round().long()]


def _likeness(own: Float[Tensor, "N D"], teacher: Float[Tensor, "N E"]) -> dict[str, float | None]:
    """Return how like its teacher's a network's embeddings are.

    `cka` is the unbiased linear one; `cosine` is null where widths differ, or images are too few.
    """
    enough = len(own) >= similarity.FEWEST_FOR_CKA
    return {
        "cka": similarity.cka(*(_few(one).cpu().numpy() for one in (own, teacher)))
        if enough
        else None,
        "cosine": float(embedding_metrics.cosine_similarity(own, teacher))
        if own.shape == teacher.shape
        else None,
        "shared_neighbours": _shared(own, teacher),
    }
