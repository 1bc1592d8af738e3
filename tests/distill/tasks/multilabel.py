"""A third task, as a contributor would add it: any number of classes for each image.

`python -m tests.distill.tasks.multilabel MODULE ARGUMENTS` registers it and runs a module of the
engine. It takes a process of its own, since the names of tasks are a Literal that is read once.
"""

import runpy
import sys
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from workers.distill import errors
from workers.distill.config import job
from workers.distill.data import dataset
from workers.distill.data.types import Batch
from workers.distill.methods.logit.ce import CE
from workers.distill.networks.interface import Features
from workers.distill.tasks import catalog
from workers.distill.tasks.base import BaseTask, SplitMetrics


class MultiLabelMetrics(SplitMetrics):
    """Logits and labels of a split."""

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(
        self,
        output: Features,
        targets: Float[Tensor, "N C"],
        teacher_out: Features | None = None,
    ) -> None:
        """Keep one batch."""
        self._logits.append(output.logits.float())
        self._labels.append(targets)

    @property
    def correct(self) -> int:
        """Return how many labels are predicted as they are."""
        return int(count_equal_labels(torch.cat(self._logits), torch.cat(self._labels))[0])

    def validation_scores(self) -> dict[str, float]:
        """Return mean average precision, and binary cross-entropy in nats."""
        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        return {
            "mean_average_precision": mean_average_precision(logits, labels),
            "loss": float(F.binary_cross_entropy_with_logits(logits, labels)),
        }

    def test_scores(self) -> dict[str, Any]:
        """Return the same, and the share of right labels."""
        labels = torch.cat(self._labels)
        return {
            **self.validation_scores(),
            "accuracy": self.correct / labels.numel(),
            "samples": len(labels),
        }


class MultiLabel(BaseTask):
    """Learn which classes are in an image; targets are float32 [N, C] of 0 and 1."""

    name = "multilabel"  # type: ignore[assignment]  # no member of the Literal but in this test
    network_task = "classification"
    unit = "labels"
    primary_metric = "mean_average_precision"
    caches_logits = True
    compares_features = True

    def output_shape(self, images: Shaped[Tensor, "N c h w"], classes: int) -> tuple[int, ...]:
        """Return [N, C]."""
        return (len(images), classes)

    def check_targets(self, targets: Tensor, record: dataset.DatasetRecord, split: str) -> None:
        """Raise `BadDataset` unless targets are float32 [N, C] of 0 and 1."""
        if targets.dtype != torch.float32 or targets.shape[1:] != (len(record.classes),):
            raise errors.BadDataset(f"labels of the {split} split should be float32 [N, C]")
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise errors.BadDataset(f"labels of the {split} split should be 0 or 1")

    def predicted_targets(self, logits: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Return 1 for each class that is more probable than not."""
        return (logits > 0).float()

    def loss(self, output: Features, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(output.logits, batch.labels)

    def count_correct(
        self, output: Features, targets: Float[Tensor, "N C"]
    ) -> tuple[Int[Tensor, ""], int]:
        """Return how many labels are predicted as they are, and how many there are."""
        return count_equal_labels(output.logits, targets)

    def evaluation_batch_size(self, classes: int, positions: int) -> int:
        """Return the same number for all networks."""
        return 64

    def metrics(self, classes: int, device: torch.device) -> MultiLabelMetrics:
        """Return empty sums."""
        return MultiLabelMetrics()


def count_equal_labels(
    logits: Float[Tensor, "N C"], targets: Float[Tensor, "N C"]
) -> tuple[Int[Tensor, ""], int]:
    """Return how many labels are predicted as they are, and how many there are."""
    return ((logits > 0) == (targets > 0.5)).sum(), targets.numel()


def mean_average_precision(logits: Float[Tensor, "N C"], labels: Float[Tensor, "N C"]) -> float:
    """Return the mean over classes of the precision at the rank of each image that has it."""
    ranked = labels.gather(0, logits.argsort(0, descending=True))
    precision = ranked.cumsum(0) / torch.arange(1, len(labels) + 1)[:, None]
    return float(((precision * ranked).sum(0) / ranked.sum(0)).mean())


def register() -> None:
    """Add the line to the table, the name to what a job may ask for, and the method that fits."""
    catalog.TASKS["multilabel"] = MultiLabel()
    CE.tasks = (*CE.tasks, MultiLabel.name)  # type: ignore[arg-type]  # as above
    for model in (job.JobConfig, dataset.DatasetRecord):
        model.model_fields["task"].annotation = Literal[(*catalog.TASKS,)]  # type: ignore[assignment]  # the names are known only now
        model.model_rebuild(force=True)


if __name__ == "__main__":
    register()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__")
