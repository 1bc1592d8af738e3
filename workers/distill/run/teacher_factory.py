"""Which teacher answers for a student: none, one that looks, or one that has written down.

All students of a group that watch the same teacher share one look at each batch.
"""

import functools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.distill.evaluation import profiling
from workers.distill.methods.base import Method
from workers.distill.networks.interface import Features, Network
from workers.distill.run.prepare import JobContext, SharedContext
from workers.distill.runtime import events
from workers.distill.training import optimizers
from workers.distill.training.teachers import (
    CACHE_BATCH,
    CachedTeacher,
    NoTeacher,
    OnlineTeacher,
    SharedTeacher,
    StoredTeacher,
    Teacher,
    TrainModeTeacher,
    fill_stores,
    fits_cache,
    wants_stages,
)

Compile = Callable[[Network], optimizers.Observe]


class TeacherFactory:
    """Gives each method the teacher that it needs, each made once."""

    def __init__(
        self, ground: SharedContext, methods: Sequence[Method], compiled: Compile | None
    ) -> None:
        self._ground = ground
        self._stages = any(wants_stages(method) for method in methods)
        self._compiled = compiled
        self._stores: list[StoredTeacher] = []
        self._watches = False

    def of(self, setting: JobContext, method: Method) -> Teacher:
        """Return what answers for the teacher; raises `BadRecipe` for a cache that cannot be."""
        ground, training = self._ground, setting.recipe.training
        if ground.teacher is None or "teacher" not in method.needs:
            return NoTeacher(ground.device)
        if ground.source is None:
            self._watches = True
            return self._once
        if training.teacher_cache is not None:
            rows = ground.source.count, training.teacher_cache.views
            store = StoredTeacher(method, self._sample, count=rows[0], views=rows[1])
            self._stores.append(store)
            return store
        if method.teacher_trains and ground.teacher_view is not None:
            self._watches = True
            return TrainModeTeacher(ground.teacher, ground.teacher_view, ground.precision)
        if self._repeats(setting, method):
            return self._remembering
        self._watches = True
        return self._once

    def write(self, reporters: Sequence[events.Reporter], step: int, share: float) -> None:
        """Let the teacher look at every view, where there are caches to fill.

        `share` is how far the whole work is, and stays so up to the next step.
        """
        source, began = self._ground.source, time.monotonic()
        if not self._stores or source is None:
            return

        def between(done: int, rows: int) -> None:
            self._ground.stop.check()
            rate = done / max(time.monotonic() - began, 1e-9)
            for reporter in reporters:
                reporter.progress(
                    phase="teacher_cache",
                    step=step,
                    epoch=0,
                    progress=share,
                    images_per_second=round(rate, 2),
                    remaining_seconds=round((rows - done) / rate, 1) if done else None,
                )

        fill_stores(self._stores, self._watching, source, between)

    def arithmetic(self) -> Callable[[Tensor], object] | None:
        """Return the teacher's part of every step's arithmetic, or None if it has none."""
        view = self._ground.teacher_view
        if not self._watches or view is None:
            return None

        def look(images: Tensor) -> Features:
            with torch.no_grad(), self._ground.precision.autocast():
                return self._fast.observe(view(images))

        return look

    def _repeats(self, setting: JobContext, method: Method) -> bool:
        """Whether images never change for this method, whatever others of its group look at."""
        training, network = setting.recipe.training, self._ground.teacher
        changes = training.augmentation != "none" or training.mixing is not None
        if changes or method.uses_strong_view or wants_stages(method) or network is None:
            return False
        source = self._ground.split_to_learn
        return fits_cache(source.count, network.classes, network.pooled_width)

    @functools.cached_property
    def _fast(self) -> Network:
        view, network = self._ground.teacher_view, self._ground.teacher
        if view is None or network is None:
            raise ValueError("there is no teacher to fold")
        return profiling.folded(network, view(self._ground.sample(profiling.EXAMPLES)))

    @functools.cached_property
    def _watching(self) -> OnlineTeacher:
        view = self._ground.teacher_view
        if view is None:
            raise ValueError("there is no teacher to watch")
        observe = self._compiled(self._fast) if self._compiled else self._fast.observe
        return OnlineTeacher(observe, view, self._ground.precision, stages=self._stages)

    @functools.cached_property
    def _once(self) -> SharedTeacher:
        return SharedTeacher(self._watching)

    @functools.cached_property
    def _remembering(self) -> CachedTeacher:
        return CachedTeacher(self._watching, self._ground.split_to_learn)

    @functools.cached_property
    def _sample(self) -> Features:
        first = next(self._ground.split_to_learn.views_in_order(CACHE_BATCH))
        return self._watching.observe(first)
