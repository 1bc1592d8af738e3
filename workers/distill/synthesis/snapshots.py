"""Snapshots of a replay buffer during a data-free job.

A snapshot holds a few images of each class and statistics of all of them. Snapshots are dense at
the start, where images change most, and few, since they are part of checkpoints.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workers.distill.functional import priorities
from workers.distill.synthesis.replay_buffer import ReplayBuffer

MOST_SNAPSHOTS = 8
MOST_CLASSES = 20
IMAGES_PER_CLASS = 8
LARGEST_SIDE = 64
"""Pixels; larger images are reduced to this side."""
BINS = 20
QUANTILES = 101


@dataclass(frozen=True)
class Snapshot:
    """The buffer after an epoch, on the CPU: some images, and numbers of all of them.

    `classes` are the teacher's predictions, `targets` the target classes. Quantiles are taken at 0,
    1, ..., 100 % of the buffer's images, sorted by the value.
    """

    epoch: int
    call: int
    images: UInt8[Tensor, "R c h w"]
    classes: Int[Tensor, " R"]
    targets: Int[Tensor, " R"]
    class_counts: Float[Tensor, " C"]
    """Images of each class; an image of a dense task counts for each class by its pixels."""
    difficulty: Int[Tensor, " B"]
    """How many images have 1 - confidence in each of 20 equal bins over 0..1."""
    kl: Float[Tensor, " Q"]
    """Quantiles of the divergence of the student from the teacher, as it was last measured."""
    shares: Float[Tensor, " Q"]
    """Quantiles of each image's sampling probability, relative to uniform sampling."""
    effective: float
    """Effective sample size as a share of the images; 1 for uniform sampling."""

    @property
    def count(self) -> int:
        """Return the number of images in the buffer."""
        return int(self.difficulty.sum())

    @property
    def is_even(self) -> bool:
        """Whether images are sampled uniformly."""
        return bool((self.shares == 1).all())


class SnapshotKeeper:
    """Keeps the snapshots of a training of `epochs` epochs."""

    def __init__(self, epochs: int) -> None:
        self._wanted = wanted(epochs)
        self.snapshots: list[Snapshot] = []

    def wants(self, epoch: int) -> bool:
        """Whether a snapshot is due after this epoch (from 1)."""
        return epoch in self._wanted

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot, replacing one of the same epoch.

        It may be of an epoch that is not due: the last one of a training that ended early.
        """
        others = [kept for kept in self.snapshots if kept.epoch != snapshot.epoch]
        if len(others) == MOST_SNAPSHOTS:
            raise ValueError(f"the keeper is full: it has {MOST_SNAPSHOTS} snapshots")
        self.snapshots = sorted([*others, snapshot], key=lambda kept: kept.epoch)

    def state(self) -> dict[str, Any]:
        """Return the snapshots as plain values and tensors."""
        return {"snapshots": [vars(snapshot).copy() for snapshot in self.snapshots]}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the snapshots of a state."""
        self.snapshots = [Snapshot(**kept) for kept in state["snapshots"]]


def wanted(epochs: int) -> frozenset[int]:
    """Return the epochs of snapshots: first, last, and between them evenly on a log scale."""
    places = range(MOST_SNAPSHOTS)
    return frozenset(round(epochs ** (place / (MOST_SNAPSHOTS - 1))) for place in places)


def take(
    replay: ReplayBuffer, *, epoch: int, call: int, priority: priorities.Priority | None
) -> Snapshot:
    """Return a snapshot of the buffer; its divergences should have been refreshed just before.

    Raises ValueError where it is empty.
    """
    if replay.count == 0:
        raise ValueError("an empty buffer has no snapshot")
    classes = replay.classes()
    chosen = _chosen(classes.cpu(), replay.born.cpu(), replay.shares.shape[1]).to(classes.device)
    places = (BINS * (1.0 - replay.confidence.cpu().double())).long().clamp(0, BINS - 1)
    draws = _draws(replay, priority)
    return Snapshot(
        epoch=epoch,
        call=call,
        images=reduced(replay.images[chosen]).cpu(),
        classes=classes[chosen].cpu(),
        targets=replay.targets[chosen].cpu(),
        class_counts=replay.shares.sum(0, dtype=torch.float64).cpu(),
        difficulty=places.bincount(minlength=BINS),
        kl=quantiles(replay.kl),
        shares=quantiles(draws),
        effective=_effective(draws),
    )


def numbers(replay: ReplayBuffer, priority: priorities.Priority | None) -> dict[str, float]:
    """Return the metrics of a buffer; of an empty one only its size.

    `class_entropy` is a share of the largest possible one. `kl` is returned only with a priority,
    with which it is refreshed at each call.
    """
    metrics = {"buffer/images": float(replay.count)}
    if replay.count == 0:
        return metrics
    shares = replay.shares.mean(0, dtype=torch.float64)
    entropy = float(torch.special.entr(shares).sum()) / math.log(max(2, len(shares)))
    metrics |= {
        "buffer/classes": float((shares > 0).sum()),
        "buffer/class_entropy": entropy,
        "buffer/confidence": float(replay.confidence.mean(dtype=torch.float64)),
        "buffer/effective_share": _effective(_draws(replay, priority)),
    }
    if priority is not None:
        metrics["buffer/kl"] = float(replay.kl.mean(dtype=torch.float64))
    return metrics


def quantiles(values: Float[Tensor, " n"]) -> Float[Tensor, " 101"]:
    """Return the values at 0, 1, ..., 100 % of their order, without interpolation."""
    ordered = values.cpu().double().sort().values
    places = torch.linspace(0, len(ordered) - 1, QUANTILES, dtype=torch.float64)
    return ordered[places.round().long()]


def reduced(images: UInt8[Tensor, "R c h w"]) -> UInt8[Tensor, "R c y x"]:
    """Return images with sides of at most 64 pixels; a smaller image's pixels are means."""
    height, width = images.shape[2:]
    shrink = LARGEST_SIDE / max(height, width)
    if shrink >= 1:
        return images
    size = [max(1, round(side * shrink)) for side in (height, width)]
    return F.interpolate(images.float(), size, mode="area").round().to(torch.uint8)


def shown_classes(present: Iterable[int], classes: int) -> list[int]:
    """Return up to 20 of the classes that are present, in order.

    Of many classes those evenly spaced among all come first, so that snapshots of different epochs
    have the same ones if possible.
    """
    spaced = torch.linspace(0, classes - 1, min(classes, MOST_CLASSES)).round().long().tolist()
    ranks = {number: place for place, number in enumerate(spaced)}
    order = sorted(present, key=lambda number: (ranks.get(number, classes), number))
    return sorted(order[:MOST_CLASSES])


def _chosen(classes: Int[Tensor, " n"], born: Int[Tensor, " n"], count: int) -> Int[Tensor, " R"]:
    """Return the places of the newest images of each class that is shown, class by class."""
    newest = born.argsort(descending=True, stable=True)
    sorted_classes = classes[newest]
    present = classes.bincount().nonzero().flatten().tolist()
    parts = [
        newest[sorted_classes == number][:IMAGES_PER_CLASS]
        for number in shown_classes(present, count)
    ]
    return torch.cat(parts)


def _draws(replay: ReplayBuffer, priority: priorities.Priority | None) -> Float[Tensor, " n"]:
    """Return each image's sampling probability, relative to uniform sampling."""
    if priority is None:
        return torch.ones(replay.count, dtype=torch.float64)
    return replay.count * replay.probabilities(priority).double()


def _effective(draws: Float[Tensor, " n"]) -> float:
    """Return 1 / (N * sum P^2), of draws N * P."""
    return float(1.0 / draws.square().mean())
