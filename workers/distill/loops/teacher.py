"""What the teacher shows for a batch: computed, looked up, or nothing at all."""

import dataclasses
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill import optimizers
from workers.distill.data import batches
from workers.distill.method import Batch, Method
from workers.distill.networks.interface import Features

CACHE_BYTES = 1 << 30
CACHE_BATCH = 256


class Teacher(Protocol):
    """Answers what the teacher shows for a batch."""

    def observe(self, batch: Batch) -> Features:
        """Return the teacher's features; no gradient leads back to it."""
        ...


class Absent:
    """No teacher: features without rows."""

    def __init__(self, device: torch.device) -> None:
        nothing = torch.empty(0, 0, device=device)
        self._features = Features(logits=nothing, pooled=nothing)

    def observe(self, batch: Batch) -> Features:
        """Return features without rows."""
        return self._features


class Watching:
    """A teacher that looks at every batch."""

    def __init__(
        self,
        observe: optimizers.Observe,
        view: batches.View,
        precision: optimizers.Precision,
        *,
        stages: bool,
    ) -> None:
        self._observe = observe
        self._view = view
        self._precision = precision
        self._stages = stages

    def observe(self, batch: Batch) -> Features:
        """Return what the method may look at, as tensors that a loss may keep for its gradient."""
        with torch.inference_mode(), self._precision.autocast():
            shown = self._observe(self._view(batch.images))
        # Inference tensors cannot be saved for a backward pass, so what a loss reads is copied
        # out: always two small matrices, maps only for methods that want them.
        maps = shown if self._stages else Features(shown.logits, shown.pooled)
        return dataclasses.replace(
            maps,
            logits=at_least_float(shown.logits).clone(),
            pooled=at_least_float(shown.pooled).clone(),
            stem=None if maps.stem is None else maps.stem.clone(),
            stages=tuple(stage.clone() for stage in maps.stages),
            pre_activations=tuple(stage.clone() for stage in maps.pre_activations),
            final=None if maps.final is None else maps.final.clone(),
        )


class Remembering:
    """A teacher that looked at every image once, where images never change."""

    def __init__(self, watching: Watching, source: batches.Batches) -> None:
        seen = [watching.observe(batch) for batch in source.in_order(CACHE_BATCH)]
        self._logits = torch.cat([features.logits for features in seen])
        self._pooled = torch.cat([features.pooled for features in seen])

    def observe(self, batch: Batch) -> Features:
        """Look up what the teacher showed for these images."""
        return Features(logits=self._logits[batch.index], pooled=self._pooled[batch.index])


def wants_stages(method: Method) -> bool:
    """Whether a method looks at maps, not only at logits and pooled features."""
    return bool({"stages", "pre_activations", "final"} & set(method.teacher_shows))


def fits_cache(count: int, classes: int, width: int) -> bool:
    """Whether the outputs for all images are small enough to keep."""
    return count * (classes + width) * 4 <= CACHE_BYTES


def at_least_float(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the values in float32, or as they are if that is already more."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
