"""The teacher's outputs for a batch: computed, read from a cache, or none at all."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill import errors
from workers.distill.config.descriptions import DETECTORS, FEATURES, MAPS, FeatureName
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.methods.base import Method
from workers.distill.networks.interface import Features, Network, Observe
from workers.distill.networks.predictions import PredictionsNetwork
from workers.distill.runtime.precision import Precision
from workers.distill.runtime.ranks import ALONE, Ranks
from workers.distill.training.parallel import SharedNorms

CACHE_BYTES = 1 << 30
"""Most that a cache which nobody asked for may keep."""
STORE_BYTES = 4 << 30
"""Most that a method's teacher cache may keep."""
CACHE_BATCH = 256


class Teacher(Protocol):
    """Returns the teacher's outputs for a batch."""

    def observe(self, batch: Batch) -> Features:
        """Return the teacher's features; no gradient leads back to it."""
        ...


class NoTeacher:
    """No teacher: features without rows."""

    def __init__(self, device: torch.device) -> None:
        nothing = torch.empty(0, 0, device=device)
        self._features = Features(logits=nothing, pooled=nothing)

    def observe(self, batch: Batch) -> Features:
        """Return features without rows."""
        return self._features


class OnlineTeacher:
    """A teacher that computes every batch, and its strong view where it has one."""

    def __init__(
        self,
        observe: Observe,
        preprocess: Preprocessor,
        precision: Precision,
        *,
        keeps: Collection[FeatureName],
    ) -> None:
        """Observe batches; `keeps` are the features that a method reads, besides logits."""
        self._observe = observe
        self._preprocess = preprocess
        self._precision = precision
        self._keeps_maps = bool(MAPS & set(keeps))
        self._keeps_detector = bool(DETECTORS & set(keeps))

    def observe(self, batch: Batch) -> Features:
        """Return the teacher's features, as tensors that a loss may save for its backward pass."""
        features = self._forward(batch.images)
        if batch.strong is None:
            return features
        return dataclasses.replace(features, strong=self._forward(batch.strong))

    def _forward(self, images: Tensor) -> Features:
        # Not in inference mode: its tensors cannot be saved for a backward pass, and copying them
        # out costs more than that mode saves.
        with torch.no_grad(), self._precision.autocast():
            features = self._observe(self._preprocess(images))
        # Maps that no method reads are freed before the student needs the memory.
        kept = features if self._keeps_maps else Features(features.logits, features.pooled)
        return dataclasses.replace(
            kept,
            logits=at_least_float(features.logits),
            pooled=at_least_float(features.pooled),
            detector=features.detector if self._keeps_detector else None,
        )


class TrainModeTeacher(OnlineTeacher):
    """A teacher in training mode, which normalises by the batch's own statistics (OFD).

    It is a copy, since its running statistics change; no result depends on those.
    """

    def __init__(
        self,
        network: Network,
        preprocess: Preprocessor,
        precision: Precision,
        *,
        ranks: Ranks = ALONE,
        synchronise: bool = False,
    ) -> None:
        """Copy the network; several ranks synchronise its batch norms as those of the student."""
        own = copy.deepcopy(network).train()
        SharedNorms([own], ranks, synchronise=synchronise)
        super().__init__(own.observe, preprocess, precision, keeps=FEATURES)


class PredictedTeacher:
    """A teacher whose outputs were uploaded: logits for each image, or for each of its views."""

    def __init__(self, network: PredictionsNetwork) -> None:
        self._network = network

    def observe(self, batch: Batch) -> Features:
        """Return the logits that are stored for these images."""
        return Features.from_logits(self._network.rows(batch.index, batch.view))


class SharedTeacher:
    """A teacher of several students, which computes each batch once for all of them."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._batch: Batch | None = None
        self._features: Features | None = None

    def observe(self, batch: Batch) -> Features:
        """Return the teacher's features, from memory if the last call was for this very batch."""
        if self._features is None or self._batch is not batch:
            self._features = None  # frees the maps of the batch before
            self._features = self._teacher.observe(batch)
            self._batch = batch
        return self._features


class CachedTeacher:
    """A teacher whose outputs for all images are kept, where images never change."""

    def __init__(self, teacher: OnlineTeacher, source: BatchLoader) -> None:
        outputs = [teacher.observe(batch) for batch in source.in_order(CACHE_BATCH)]
        self._logits = torch.cat([features.logits for features in outputs])
        self._pooled = torch.cat([features.pooled for features in outputs])

    def observe(self, batch: Batch) -> Features:
        """Return the features that were kept for these images."""
        return Features(logits=self._logits[batch.index], pooled=self._pooled[batch.index])


class StoredTeacher:
    """A teacher cache: what the method keeps of the outputs for every view of every image."""

    def __init__(self, method: Method, example: Features, *, count: int, views: int) -> None:
        """Allocate the cache for count x views entries.

        Entries are shaped like `example`, the teacher's outputs for one or more images. Which
        methods can work from a cache is a rule (`rules.of_method_and_training`). Raises `BadRecipe`
        for a cache that is too large.
        """
        self._method = method
        self._views = views
        entries = method.store(example)
        check_size(method.name, sum(entry[0].nbytes for entry in entries.values()), count, views)
        self._kept = {
            name: entry.new_empty(count * views, *entry.shape[1:])
            for name, entry in entries.items()
        }

    @property
    def rows(self) -> int:
        """Return the number of views of all images together."""
        return len(next(iter(self._kept.values())))

    def write(self, features: Features, batch: Batch) -> None:
        """Store the teacher's outputs for a batch of views."""
        rows = self._rows_of(batch)
        for name, entry in self._method.store(features).items():
            self._kept[name][rows] = entry

    def observe(self, batch: Batch) -> Features:
        """Return the outputs that were stored for these views."""
        rows = self._rows_of(batch)
        return self._method.recall({name: kept[rows] for name, kept in self._kept.items()})

    def _rows_of(self, batch: Batch) -> Int[Tensor, " N"]:
        rows = batch.index * self._views
        return rows if batch.view is None else rows + batch.view


def check_size(name: str, row_bytes: int, count: int, views: int) -> None:
    """Raise `BadRecipe` if a cache of so many views would keep too much."""
    size = row_bytes * count * views
    if size > STORE_BYTES:
        most = STORE_BYTES // (row_bytes * count)
        raise errors.BadRecipe(
            f"a teacher_cache of {views} views of {count} images would keep {size} bytes with "
            f"method {name} ({row_bytes} a view), and at most {STORE_BYTES} are kept; lower "
            f"training.teacher_cache.views to {most}, or choose a method that keeps less, such as "
            "fkd",
            views=views,
            bytes=size,
        )


def fill_stores(
    stores: Sequence[StoredTeacher],
    teacher: OnlineTeacher,
    source: BatchLoader,
    on_batch: Callable[[int, int], None],
) -> None:
    """Compute every view of every image once, for all stores.

    `on_batch(done, rows)` is called before each batch with the number of views done, and of all.
    """
    done, rows = 0, stores[0].rows
    for batch in source.views_in_order(CACHE_BATCH):
        on_batch(done, rows)
        features = teacher.observe(batch)
        for store in stores:
            store.write(features, batch)
        done += len(batch.labels)


def uses_feature_maps(method: Method) -> bool:
    """Whether a method reads feature maps, not only logits and pooled features."""
    return bool(MAPS & set(method.teacher_features))


def fits_cache(count: int, classes: int, width: int) -> bool:
    """Whether the outputs for all images are small enough to keep."""
    return count * (classes + width) * 4 <= CACHE_BYTES


def at_least_float(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the values in float32, or as they are if that is already more."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
