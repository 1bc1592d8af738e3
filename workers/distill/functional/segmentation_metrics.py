"""Answers how good a dense network is, from counts of pixels that are added batch by batch.

The logits of a whole split would not fit into memory; the counts are a few numbers a class.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from workers.distill.functional import bootstrap, maps


class Counts:
    """Pixels by true and by predicted class, kept on the device; ignored pixels do not count."""

    def __init__(self, classes: int, device: torch.device, ignore_index: int) -> None:
        self._classes = classes
        self._ignore_index = ignore_index
        # One row more than classes: that of ignored pixels, which is dropped in the end.
        self._cells = torch.zeros((classes + 1) * classes, dtype=torch.int64, device=device)
        self._by_image: list[Tensor] = []
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._agreeing: Tensor | None = None

    def add(
        self,
        logits: Float[Tensor, "N C i j"],
        masks: Integer[Tensor, "N h w"],
        teacher_logits: Float[Tensor, "N D k l"] | None = None,
    ) -> None:
        """Count a batch; logits are brought to the size of the masks."""
        truth = masks.long()
        is_judged = truth != self._ignore_index
        resized = resize(logits, masks)
        predicted = resized.argmax(1)
        row = torch.where(is_judged, truth, self._classes)
        image = torch.arange(len(masks), device=masks.device)[:, None, None]
        cells = (image * len(self._cells) + row * self._classes + predicted).flatten()
        counts = torch.bincount(cells, minlength=len(masks) * len(self._cells))
        counts = counts.view(len(masks), self._classes + 1, self._classes)
        self._cells += counts.sum(0).flatten()
        right = counts.diagonal(dim1=1, dim2=2)
        self._by_image.append(torch.stack([right, _either(counts[:, :-1])]))
        losses = F.cross_entropy(resized, truth, ignore_index=self._ignore_index, reduction="none")
        self._loss += losses.double().sum()
        if teacher_logits is not None:
            same = (resize(teacher_logits, masks).argmax(1) == predicted) & is_judged
            self._agreeing = same.sum() + (0 if self._agreeing is None else self._agreeing)

    @property
    def confusion(self) -> Int[Tensor, "C C"]:
        """Return how many pixels of each class (row) were taken for each class (column)."""
        return self._cells.view(self._classes + 1, self._classes)[:-1].cpu()

    def miou_interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of `miou`, by drawing images with replacement.

        None where no image has a pixel of a known class.
        """
        if not self._by_image:
            return None
        right, either = torch.cat(self._by_image, dim=1).double().cpu().numpy()

        def score(weights: NDArray[np.float64]) -> float | None:
            hits, pixels = weights @ right, weights @ either
            there = pixels > 0
            return float((hits[there] / pixels[there]).mean()) if there.any() else None

        return bootstrap.interval(score, len(right))

    @property
    def loss(self) -> float:
        """Return the mean cross-entropy of a pixel, in nats."""
        return float(self._loss) / self._counted

    @property
    def agreement(self) -> float | None:
        """Return the share of pixels that the teacher takes for the same class."""
        return None if self._agreeing is None else int(self._agreeing) / self._counted

    @property
    def _counted(self) -> int:
        return int(self.confusion.sum())


def resize(logits: Float[Tensor, "N C i j"], masks: Integer[Tensor, "N h w"]) -> Tensor:
    """Return the logits in float32 at the size of the masks, interpolated bilinearly."""
    return maps.resize(logits.float(), (masks.shape[1], masks.shape[2]))


def accuracy(confusion: Int[Tensor, "C C"]) -> float:
    """Return the share of pixels that were taken for what they are."""
    return int(confusion.diagonal().sum()) / int(confusion.sum())


def iou(confusion: Int[Tensor, "C C"]) -> list[float | None]:
    """Return TP / (TP + FP + FN) of each class; None where neither truth nor answers have it."""
    pairs = zip(confusion.diagonal().tolist(), _either(confusion).tolist(), strict=True)
    return [hits / pixels if pixels else None for hits, pixels in pairs]


def miou(confusion: Int[Tensor, "C C"]) -> float:
    """Return the mean of the classes' `iou`, of those that are there."""
    there = [value for value in iou(confusion) if value is not None]
    return sum(there) / len(there)


def _either(confusion: Int[Tensor, "*N C C"]) -> Int[Tensor, "*N C"]:
    """Return how many pixels have each class, in truth or in the answers."""
    right = confusion.diagonal(dim1=-2, dim2=-1)
    return confusion.sum(-2) + confusion.sum(-1) - right
