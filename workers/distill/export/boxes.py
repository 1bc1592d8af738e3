"""From a graph's scores and boxes of all locations to detections, as `export.json` documents."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill.data import boxes


def choose(
    scores: Float[Tensor, "L C"],
    corners: Float[Tensor, "L 4"],
    steps: Mapping[str, Any],
) -> Float[Tensor, "D 6"]:
    """Return the detections of one image: class, score, x1, y1, x2, y2, sorted by score.

    `steps` are what `graph.post_processing` returns.
    """
    nms: Any = importlib.import_module("torchvision.ops").nms
    batched: Any = importlib.import_module("torchvision.ops").batched_nms
    flat = scores.flatten()
    kept = torch.where(flat > steps["score_threshold"])[0]
    order = flat[kept].sort(descending=True, stable=True).indices[: steps["most_candidates"]]
    chosen = kept[order]
    classes, place = chosen % scores.shape[1], chosen // scores.shape[1]
    rows = torch.cat(
        [classes[:, None].to(flat.dtype), flat[chosen][:, None], corners[place]], dim=1
    )
    rows = rows[batched(rows[:, 2:], rows[:, 1], classes, steps["iou_threshold"])]
    if steps["across_classes"]:
        rows = rows[nms(rows[:, 2:], rows[:, 1], steps["iou_threshold"])]
    return rows[: steps["most_detections"]]


@dataclass
class ChosenDetections:
    """Detections of a batch, for a task's metrics; an `interface.DetectorOutput` without losses."""

    image_size: tuple[int, int]
    found: tuple[Float[Tensor, "D 6"], ...]

    def losses(self, targets: Tensor) -> dict[str, Tensor]:
        """Refuse: an exported graph is not trained."""
        raise NotImplementedError("an exported graph has no losses")

    def detections(self) -> Float[Tensor, "N D 6"]:
        """Return class, score, x1, y1, x2, y2, sorted by score; padding has class -1."""
        most = max((len(rows) for rows in self.found), default=0)
        table = torch.zeros(len(self.found), most, 6)
        table[..., 0] = boxes.NO_CLASS
        for index, rows in enumerate(self.found):
            table[index, : len(rows)] = rows
        return table
