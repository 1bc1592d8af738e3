"""Segmentation: one class for each pixel.

The logits of a whole split would not fit into memory, so pixels are counted batch by batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, Integer, Shaped, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.data import dataset
from workers.distill.data.transforms import resized_crops
from workers.distill.data.types import Batch, Crops
from workers.distill.functional import segmentation_metrics
from workers.distill.networks.interface import Features
from workers.distill.tasks.base import BaseTask, SplitMetrics
from workers.distill.tasks.comparisons import MaskComparison

MOST_IMAGES = 256
BATCH_LOGITS = 1 << 23
"""Numbers that the logits of one evaluated batch may have: 32 MiB."""
ENET_OFFSET = 1.02
"""Keeps the weight of the rarest class at 50."""
MASK_TYPES = (torch.uint8, torch.int64)


class SegmentationMetrics(SplitMetrics):
    """Pixels by true and predicted class; those of `IGNORE_INDEX` count nowhere."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._counts = segmentation_metrics.Counts(classes, device, dataset.IGNORE_INDEX)
        self._samples = 0

    def update(
        self,
        output: Features,
        targets: Integer[Tensor, "N h w"],
        teacher_out: Features | None = None,
    ) -> None:
        """Count one batch; logits are brought to the size of the masks."""
        teacher_logits = None if teacher_out is None else teacher_out.logits
        self._counts.add(output.logits, targets, teacher_logits)
        self._samples += len(targets)

    @property
    def correct(self) -> int:
        """Return how many pixels were taken for what they are."""
        return int(self.confusion().diagonal().sum())

    def validation_scores(self) -> dict[str, float]:
        """Return `accuracy` and `loss` (nats) of a pixel, and `miou`."""
        confusion = self.confusion()
        return {
            "accuracy": segmentation_metrics.accuracy(confusion),
            "miou": segmentation_metrics.miou(confusion),
            "loss": self._counts.loss,
        }

    def test_scores(self) -> dict[str, Any]:
        """Return pixel accuracy, IoU by class, their mean, and agreement with a teacher.

        `miou_interval` is the 95 % interval by bootstrap over images. `iou` has None for a class
        that neither the masks nor the answers have; it is left out of `miou`.
        """
        confusion = self.confusion()
        interval = self._counts.miou_interval()
        result: dict[str, Any] = {
            "accuracy": segmentation_metrics.accuracy(confusion),
            "miou": segmentation_metrics.miou(confusion),
            "miou_interval": None if interval is None else list(interval),
            "iou": segmentation_metrics.iou(confusion),
            "samples": self._samples,
            "pixels": int(confusion.sum()),
        }
        if self._counts.agreement is not None:
            result["agreement"] = self._counts.agreement
        return result

    def confusion(self) -> Int[Tensor, "C C"]:
        """Return how many pixels of each class (row) were taken for each class (column)."""
        return self._counts.confusion


class Segmentation(BaseTask):
    """Learn one class for each pixel; targets are masks [N, H, W], uint8 or int64."""

    name = "segmentation"
    network_task = "segmentation"
    unit = "pixels"
    primary_metric = "miou"
    caches_logits = False
    compares_features = False
    report_topics = ("confusion", "overlap", "examples")

    def output_shape(self, images: Shaped[Tensor, "N c h w"], classes: int) -> tuple[int, ...]:
        """Return [N, C, H, W]."""
        return (len(images), classes, *images.shape[2:])

    def class_count_fault(self, classes: int) -> str | None:
        """Refuse classes whose number would be that of ignored pixels."""
        if classes <= dataset.IGNORE_INDEX:
            return None
        return (
            f"masks have at most {dataset.IGNORE_INDEX} classes, since {dataset.IGNORE_INDEX} "
            f"means that a pixel has none; got {classes}"
        )

    def check_targets(self, targets: Tensor, record: dataset.DatasetRecord, split: str) -> None:
        """Raise `BadDataset` unless targets are masks, with a class for one pixel at least."""
        count = record.splits.get(split)  # type: ignore[call-overload]  # any name may be asked for
        expected = (count, record.input.height, record.input.width)
        if tuple(targets.shape) != expected or targets.dtype not in MASK_TYPES:
            raise errors.BadDataset(
                f"masks of the {split} split should be uint8 or int64 {list(expected)}, got "
                f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}",
                split=split,
            )
        numbers = [
            (int(known.min()), int(known.max()))
            for some in dataset.in_blocks(targets)
            if (known := some[some != dataset.IGNORE_INDEX]).numel()
        ]
        if not numbers:
            raise errors.BadDataset(
                f"no pixel of the {split} split has a class: all are {dataset.IGNORE_INDEX}",
                split=split,
            )
        dataset.check_class_numbers(torch.tensor(numbers), record, split)

    def constant_score(self, targets: Shaped[Tensor, "N H W"], classes: int) -> float:
        """Return the mean IoU of the commonest class everywhere: its share of its own class's."""
        counts = dataset.class_counts(targets, classes)
        present = int((counts > 0).sum())
        return float(counts.max() / counts.sum()) / present if present else 0.0

    def class_weights(
        self, targets: Integer[Tensor, "N h w"], asked: str | Sequence[float], classes: int
    ) -> Float[Tensor, " C"] | None:
        """Return the weights that a caller lists, or for "auto" 1 / ln(1.02 + the class's share).

        Shares are those of the pixels that have a class.
        Source: Paszke et al., 2016, arXiv:1606.02147 (ENet), section 4.
        """
        if asked == "none":
            return None
        if not isinstance(asked, str):
            return torch.tensor(list(asked), dtype=torch.float32)
        counts = dataset.class_counts(targets, classes).double()
        return (1 / torch.log(ENET_OFFSET + counts / counts.sum())).float()

    def predicted_targets(self, logits: Float[Tensor, "N C h w"]) -> UInt8[Tensor, "N h w"]:
        """Return masks of the largest logit's class."""
        return logits.argmax(1).to(torch.uint8)

    def crop_targets(
        self, targets: Integer[Tensor, "N h w"], crops: Crops
    ) -> Integer[Tensor, "N h w"]:
        """Return the masks of the crops; pixels outside the image have no class."""
        return resized_crops.cut_masks(targets, crops, dataset.IGNORE_INDEX)

    def loss(self, output: Features, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the pixels that have a class; 0 where none has one.

        Logits are brought to the size of the masks. With `class_weights` it is the weighted mean.
        """
        resized = segmentation_metrics.resize(output.logits, batch.labels)
        masks, weights = batch.labels.long(), batch.class_weights
        known = masks != dataset.IGNORE_INDEX
        total = F.cross_entropy(
            resized, masks, weight=weights, ignore_index=dataset.IGNORE_INDEX, reduction="sum"
        )
        if weights is None:
            return total / known.sum().clamp(min=1)
        counted = weights[masks * known] * known
        return total / counted.sum().clamp(min=torch.finfo(counted.dtype).tiny)

    def count_correct(
        self, output: Features, targets: Integer[Tensor, "N h w"]
    ) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
        """Return how many pixels that have a class are taken for it, and how many have one."""
        answers = segmentation_metrics.resize(output.logits, targets).argmax(1)
        # No class is `IGNORE_INDEX`, so pixels without a class are never right.
        return (answers == targets).sum(), (targets != dataset.IGNORE_INDEX).sum()

    def evaluation_batch_size(self, classes: int, positions: int) -> int:
        """Return as many images as the logits' memory allows, one at least."""
        return max(1, min(BATCH_LOGITS // (classes * positions), MOST_IMAGES))

    def metrics(self, classes: int, device: torch.device) -> SegmentationMetrics:
        """Return empty counts."""
        return SegmentationMetrics(classes, device)

    def comparisons(
        self, output: Features, targets: Integer[Tensor, "N h w"], classes: int
    ) -> list[MaskComparison]:
        """Return true and predicted masks at the size of the true ones."""
        predicted = segmentation_metrics.resize(output.logits, targets).argmax(1)
        return [
            MaskComparison(true, answer, classes)
            for true, answer in zip(targets.cpu().numpy(), predicted.cpu().numpy(), strict=True)
        ]
