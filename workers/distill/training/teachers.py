"""What the teacher shows for a batch: computed, looked up, or nothing at all."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill import errors
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.methods.base import Method
from workers.distill.networks.interface import Features, Network
from workers.distill.training import optimizers

CACHE_BYTES = 1 << 30
"""Most that a cache which nobody asked for may keep."""
STORE_BYTES = 4 << 30
"""Most that a method's teacher cache may keep."""
CACHE_BATCH = 256


class Teacher(Protocol):
    """Answers what the teacher shows for a batch."""

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
    """A teacher that looks at every batch, and at its strong view where it has one."""

    def __init__(
        self,
        observe: optimizers.Observe,
        view: Preprocessor,
        precision: optimizers.Precision,
        *,
        stages: bool,
    ) -> None:
        self._observe = observe
        self._view = view
        self._precision = precision
        self._stages = stages

    def observe(self, batch: Batch) -> Features:
        """Return what methods may look at, as tensors that a loss may keep for its gradient."""
        shown = self._look(batch.images)
        if batch.strong is None:
            return shown
        return dataclasses.replace(shown, strong=self._look(batch.strong))

    def _look(self, images: Tensor) -> Features:
        # Not in inference mode: its tensors cannot be saved for a backward pass, and copying them
        # out costs more than that mode saves.
        with torch.no_grad(), self._precision.autocast():
            shown = self._observe(self._view(images))
        # Maps that nobody reads are let go before the student needs the memory.
        kept = shown if self._stages else Features(shown.logits, shown.pooled)
        return dataclasses.replace(
            kept, logits=at_least_float(shown.logits), pooled=at_least_float(shown.pooled)
        )


class TrainModeTeacher(OnlineTeacher):
    """A teacher that normalises by the statistics of the batch it looks at, as OFD's did.

    It is a copy of its own, since its running statistics move; no result depends on those.
    """

    def __init__(
        self, network: Network, view: Preprocessor, precision: optimizers.Precision
    ) -> None:
        moving = copy.deepcopy(network).train()
        super().__init__(moving.observe, view, precision, stages=True)


class SharedTeacher:
    """A teacher that several students ask about the same batch, and that looks once."""

    def __init__(self, watching: Teacher) -> None:
        self._watching = watching
        self._batch: Batch | None = None
        self._shown: Features | None = None

    def observe(self, batch: Batch) -> Features:
        """Return what the teacher shows, from memory if it was this very batch."""
        if self._shown is None or self._batch is not batch:
            self._shown = None  # the maps of the batch before are let go first
            self._shown = self._watching.observe(batch)
            self._batch = batch
        return self._shown


class CachedTeacher:
    """A teacher that looked at every image once, where images never change."""

    def __init__(self, watching: OnlineTeacher, source: BatchLoader) -> None:
        seen = [watching.observe(batch) for batch in source.in_order(CACHE_BATCH)]
        self._logits = torch.cat([features.logits for features in seen])
        self._pooled = torch.cat([features.pooled for features in seen])

    def observe(self, batch: Batch) -> Features:
        """Look up what the teacher showed for these images."""
        return Features(logits=self._logits[batch.index], pooled=self._pooled[batch.index])


class StoredTeacher:
    """A teacher whose word on every view of every image was written down by the method itself."""

    def __init__(self, method: Method, example: Features, *, count: int, views: int) -> None:
        """Make room for all views; `example` shows what the teacher says of one at least."""
        refusal = cannot_store(method)
        if refusal is not None:
            raise errors.BadRecipe(
                f"method {method.name} {refusal}; set training.teacher_cache to null",
                method=method.name,
            )
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
        """Return how many views there are of all images together."""
        return len(next(iter(self._kept.values())))

    def write(self, features: Features, batch: Batch) -> None:
        """Write down what the teacher shows for a batch of views."""
        rows = self._rows_of(batch)
        for name, entry in self._method.store(features).items():
            self._kept[name][rows] = entry

    def observe(self, batch: Batch) -> Features:
        """Look up what was written about these views."""
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
    watching: OnlineTeacher,
    source: BatchLoader,
    between: Callable[[int, int], None],
) -> None:
    """Show the teacher every view of every image once; `between` hears how many of all are done."""
    done, rows = 0, stores[0].rows
    for batch in source.views_in_order(CACHE_BATCH):
        between(done, rows)
        features = watching.observe(batch)
        for store in stores:
            store.write(features, batch)
        done += len(batch.labels)


def cannot_store(method: Method) -> str | None:
    """Return why a method cannot work from a teacher cache, or None if it can."""
    if wants_stages(method):
        return "looks at the teacher's feature maps, which are too large for a teacher cache"
    if method.uses_strong_view:
        return "compares two views of each image, of which a teacher cache holds one"
    if method.teacher_trains:
        return "observes the teacher with the batch's own statistics, which a cache cannot know"
    return None


def wants_stages(method: Method) -> bool:
    """Whether a method looks at maps, not only at logits and pooled features."""
    return bool({"stages", "pre_activations", "final"} & set(method.required_teacher_features))


def fits_cache(count: int, classes: int, width: int) -> bool:
    """Whether the outputs for all images are small enough to keep."""
    return count * (classes + width) * 4 <= CACHE_BYTES


def at_least_float(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the values in float32, or as they are if that is already more."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
