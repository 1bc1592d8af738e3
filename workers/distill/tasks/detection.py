"""Detection: boxes with classes.

Networks compute their own losses, since assignment and sampling belong to their heads. Boxes are
evaluated in pixels of the original pictures, because COCO's sizes are.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from workers.distill import errors
from workers.distill.data import boxes, dataset
from workers.distill.data.types import Batch, Crops
from workers.distill.functional import detection_metrics
from workers.distill.networks.interface import DenseDetectorOutput, DetectorOutput, Features
from workers.distill.tasks.base import BaseTask, SplitMetrics
from workers.distill.tasks.comparisons import BoxComparison

HEIGHT, WIDTH, SCALE = range(boxes.COLUMNS, boxes.COLUMNS + 3)
"""Columns behind those of a box, equal in all rows of an image: size of the stored image in pixels,
and stored pixels per pixel of the original picture."""
MOST_IMAGES = 64
BATCH_PIXELS = 1 << 22
"""Pixels that the images of one evaluated batch may have: COCO's at 640 in tens."""


class DetectionMetrics(SplitMetrics):
    """True and detected boxes of a split, from which every score follows."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._images: list[detection_metrics.Image] = []
        self._detections: detection_metrics.Detections | None = None
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._losses = 0

    def update(
        self,
        output: Features,
        targets: Float[Tensor, "N M 10"],
        teacher_out: Features | None = None,
    ) -> None:
        """Keep the boxes of one batch, and sum up the loss where it needs no training mode."""
        detector = _detector(output)
        self._detections = None
        truths = targets.cpu().double().numpy()
        detected = _original_detections(detector, targets)
        teachers = None
        if teacher_out is not None:
            teachers = _original_detections(_detector(teacher_out), targets)
        for place, rows in enumerate(truths):
            kept = rows[rows[:, boxes.CLASS] != boxes.NO_CLASS]
            kept[:, boxes.X1 : boxes.Y2 + 1] /= kept[:, SCALE:]
            self._images.append(
                detection_metrics.Image(
                    kept[:, : boxes.COLUMNS],
                    detected[place],
                    None if teachers is None else teachers[place],
                )
            )
        if isinstance(detector, DenseDetectorOutput):
            self._loss += _loss(detector, targets).double() * len(targets)
            self._losses += len(targets)

    def detections(self) -> detection_metrics.Detections:
        """Return the boxes of all images in stored order, in pixels of the original pictures."""
        if self._detections is None:
            self._detections = detection_metrics.Detections(tuple(self._images), self._classes)
        return self._detections

    @property
    def correct(self) -> int:
        """Return how many detections from `SHOWN_SCORE` on are right."""
        return self.detections().errors.right

    def validation_scores(self) -> dict[str, float]:
        """Return `ap` and `ap50`, and `loss` where a network has one outside of training."""
        statistics = self.detections().coco.statistics
        # Without a single true box nothing can be found.
        result = {name: statistics[name] or 0.0 for name in ("ap", "ap50")}
        if self._losses:
            result["loss"] = float(self._loss) / self._losses
        return result

    def test_scores(self) -> dict[str, Any]:
        """Return COCO's twelve figures, AP by class and its interval, VOC's AP, kinds of errors.

        None stands for what cannot be measured: a size or a class without boxes.
        """
        scores, counts = self.detections().coco, self.detections().errors
        voc = detection_metrics.voc_ap50(self._images, self._classes)
        known = [value for value in voc if value is not None]
        interval = detection_metrics.ap_interval(self._images, self._classes)
        result: dict[str, Any] = {
            **scores.statistics,
            "ap_by_class": scores.by_class,
            "ap_interval": None if interval is None else list(interval),
            "voc_ap50": float(np.mean(known)) if known else None,
            "detections": {"right": counts.right, "missed": counts.missed, **counts.wrong},
            "boxes": self.detections().boxes,
            "samples": len(self._images),
        }
        agreement = detection_metrics.agreement(self._images)
        if agreement is not None:
            result["agreement"] = agreement
        return result


class Detection(BaseTask):
    """Learn boxes with classes; targets are float32 [N, M, 10] (`data.boxes`, then `HEIGHT` on).

    A data set stores the first 7 columns, and `scales`.
    """

    name = "detection"
    network_task = "detection"
    unit = "detections"
    primary_metric = "ap"
    uses_logits_only = False
    caches_logits = False
    compares_features = False
    report_topics = ("detection", "examples")

    def output_shape(
        self, images: Shaped[Tensor, "N c h w"], classes: int
    ) -> tuple[int | None, ...]:
        """Return [N, D, 6], with any number D of detections."""
        return (len(images), None, 6)

    def check_targets(self, targets: Tensor, record: dataset.DatasetRecord, split: str) -> None:
        """Raise `BadDataset` unless targets are boxes as `data.boxes` describes them."""
        boxes.check_boxes(
            targets,
            images=record.splits[split],  # type: ignore[index]  # any name may be asked for
            classes=len(record.classes),
            height=record.input.height,
            width=record.input.width,
            split=split,
        )

    def open_split(self, stored: dataset.StoredDataset, name: str) -> dataset.ImageSplit:
        """Return a split with the size of its images and their scales beside each box.

        Raises `BadDataset` when images or boxes are not as recorded.
        """
        split = super().open_split(stored, name)
        if split.scales is None:
            raise errors.BadDataset(f"the {name} split has boxes without scales", split=name)
        size = stored.record.input
        beside = split.labels.new_empty(*split.labels.shape[:2], 3)
        beside[..., 0], beside[..., 1] = size.height, size.width
        beside[..., 2] = split.scales[:, None]
        return dataclasses.replace(split, labels=torch.cat([split.labels, beside], dim=-1))

    def predicted_targets(self, logits: Float[Tensor, "N C *S"]) -> Shaped[Tensor, "N *T"]:
        """Refuse: boxes do not follow from logits alone."""
        raise errors.BadRecipe("method: images without labels get no boxes; choose another task")

    def crop_targets(
        self, targets: Float[Tensor, "N M 10"], crops: Crops
    ) -> Float[Tensor, "N M 10"]:
        """Return the boxes of the crops, cut off at their border.

        Boxes of which less than a pixel is left are flagged as difficult: no network learns them.
        """
        moved = targets[..., : boxes.COLUMNS].clone()
        if crops.scale is not None:
            moved[..., boxes.X1 : boxes.Y2 + 1] *= crops.scale[:, None, None]
        moved[..., [boxes.X1, boxes.X2]] -= crops.left.to(moved.dtype)[:, None, None]
        moved[..., [boxes.Y1, boxes.Y2]] -= crops.top.to(moved.dtype)[:, None, None]
        mirrored = boxes.flip(moved, crops.width)
        moved = torch.where(crops.mirrored[:, None, None], mirrored, moved)
        moved = boxes.clip(moved, crops.height, crops.width)
        sides = moved[..., [boxes.X2, boxes.Y2]] - moved[..., [boxes.X1, boxes.Y1]]
        is_left = (sides >= boxes.SMALLEST_SIDE).all(-1)
        flag = torch.where(is_left, moved[..., boxes.FLAG], boxes.DIFFICULT)
        moved[..., boxes.FLAG] = flag
        moved = torch.where(boxes.is_box(moved)[..., None], moved, targets[..., : boxes.COLUMNS])
        return torch.cat([moved, targets[..., boxes.COLUMNS :]], dim=-1)

    def loss(self, output: Features, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum of the detector's own losses."""
        return _loss(_detector(output), batch.labels)

    def count_correct(
        self, output: Features, targets: Float[Tensor, "N M 10"]
    ) -> tuple[Int[Tensor, ""], int]:
        """Count nothing: choosing detections at every step would cost more than the step."""
        return torch.zeros((), dtype=torch.int64, device=targets.device), 0

    def evaluation_batch_size(self, classes: int, positions: int) -> int:
        """Return as many images as their pixels allow, one at least."""
        return max(1, min(BATCH_PIXELS // positions, MOST_IMAGES))

    def metrics(self, classes: int, device: torch.device) -> DetectionMetrics:
        """Return an empty list of boxes."""
        return DetectionMetrics(classes, device)

    def comparisons(
        self, output: Features, targets: Float[Tensor, "N M 10"], classes: int
    ) -> list[BoxComparison]:
        """Return true and detected boxes in pixels of the stored images."""
        truths = targets.cpu().double().numpy()
        compared = []
        for rows, detected in zip(
            truths, _original_detections(_detector(output), targets), strict=True
        ):
            detected[:, 2:] *= rows[0, SCALE]
            kept = rows[rows[:, boxes.CLASS] != boxes.NO_CLASS, : boxes.COLUMNS]
            compared.append(BoxComparison(kept, detected))
        return compared


def network_targets(
    detector: DetectorOutput, targets: Float[Tensor, "N M 10"]
) -> Float[Tensor, "N M 7"]:
    """Return the boxes in pixels of the detector's own images."""
    height, width = detector.image_size
    moved = targets[..., : boxes.COLUMNS].clone()
    moved[..., [boxes.X1, boxes.X2]] *= width / targets[..., WIDTH : WIDTH + 1]
    moved[..., [boxes.Y1, boxes.Y2]] *= height / targets[..., HEIGHT : HEIGHT + 1]
    return moved


def _loss(detector: DetectorOutput, targets: Float[Tensor, "N M 10"]) -> Float[Tensor, ""]:
    parts = detector.losses(network_targets(detector, targets))
    return torch.stack([part.float() for part in parts.values()]).sum()


def _detector(output: Features) -> DetectorOutput:
    if output.detector is None:
        raise TypeError("the network is no detector")
    return output.detector


def _original_detections(
    detector: DetectorOutput, targets: Float[Tensor, "N M 10"]
) -> list[detection_metrics.Rows]:
    """Return each image's detections [D, 6] in pixels of its original picture, without padding."""
    height, width = detector.image_size
    found = detector.detections().double()
    # All rows of an image say its size and scale, padding too.
    size = targets[:, :1].double()
    x_factor = size[..., WIDTH] / width / size[..., SCALE]
    y_factor = size[..., HEIGHT] / height / size[..., SCALE]
    factors = torch.stack([x_factor, y_factor, x_factor, y_factor], dim=-1)
    rows = torch.cat([found[..., :2], found[..., 2:] * factors], dim=-1).cpu().numpy()
    return [image[image[:, 0] != boxes.NO_CLASS] for image in rows]
