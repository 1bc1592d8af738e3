"""Which teacher a student has: none, one that computes each batch, or one that reads a cache.

All students of a group whose methods need the teacher's forward pass share one of each batch.
"""

import functools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.distill.config.descriptions import FEATURES
from workers.distill.methods.base import Method
from workers.distill.networks import folding
from workers.distill.networks.interface import Features, Network, Observe
from workers.distill.networks.predictions import PredictionsNetwork
from workers.distill.run.context import JobContext, SharedContext
from workers.distill.runtime import events
from workers.distill.training.teachers import (
    CACHE_BATCH,
    CachedTeacher,
    NoTeacher,
    OnlineTeacher,
    PredictedTeacher,
    SharedTeacher,
    StoredTeacher,
    Teacher,
    TrainModeTeacher,
    fill_stores,
    fits_cache,
    uses_feature_maps,
)

Compile = Callable[[Network], Observe]


class TeacherFactory:
    """Makes the teacher that each method needs, and shares what can be shared."""

    def __init__(
        self, shared: SharedContext, methods: Sequence[Method], compiled: Compile | None
    ) -> None:
        """Serve these methods; `compiled` compiles the teacher where that is wanted."""
        self._shared = shared
        self._keeps = frozenset(name for method in methods for name in method.teacher_features)
        self._compiled = compiled
        self._stores: list[StoredTeacher] = []
        self._is_online = False

    def make(self, context: JobContext, method: Method) -> Teacher:
        """Return a method's teacher; raises `BadRecipe` for a cache that is not possible."""
        shared, training = self._shared, context.config.training
        if shared.teacher is None or "teacher" not in method.needs:
            return NoTeacher(shared.device)
        if isinstance(shared.teacher, PredictionsNetwork):
            return PredictedTeacher(shared.teacher)
        if training.teacher_cache is not None:
            rows = shared.train_loader.count, training.teacher_cache.views
            store = StoredTeacher(method, self._sample, count=rows[0], views=rows[1])
            self._stores.append(store)
            return store
        if method.teacher_trains and shared.teacher_preprocessor is not None:
            self._is_online = True
            return TrainModeTeacher(
                shared.teacher,
                shared.teacher_preprocessor,
                shared.precision,
                ranks=shared.ranks,
                synchronise=training.sync_batch_norm,
            )
        if self._images_repeat(context, method):
            return self._cached_teacher
        self._is_online = True
        return self._shared_teacher

    def fill_caches(self, reporters: Sequence[events.Reporter], *, step: int, share: float) -> None:
        """Compute every view once, where teacher caches were made; reports progress.

        `share` (0..1) is the progress of the whole work, which stays so up to the next step.
        """
        if not self._stores:
            return
        began = time.monotonic()

        def report(done: int, rows: int) -> None:
            self._shared.stop.check()
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

        fill_stores(self._stores, self._online_teacher, self._shared.train_loader, report)

    def arithmetic(self) -> Callable[[Tensor], object] | None:
        """Return the teacher's part of every step's arithmetic, or None if it has none."""
        preprocessor = self._shared.teacher_preprocessor
        if not self._is_online or preprocessor is None:
            return None

        def forward(images: Tensor) -> Features:
            with torch.no_grad(), self._shared.precision.autocast():
                return self._folded.observe(preprocessor(images))

        return forward

    def _images_repeat(self, context: JobContext, method: Method) -> bool:
        """Whether this method gets the same images in every epoch, and outputs fit a cache."""
        training, network = context.config.training, self._shared.teacher
        train_data = self._shared.train_data
        changes = training.augmentation != "none" or training.mixing is not None
        changes |= training.random_erasing is not None
        if changes or method.uses_strong_view or uses_feature_maps(method):
            return False
        if network is None or train_data is None or not self._shared.task.caches_logits:
            return False
        return fits_cache(
            train_data.count, network.classes or network.pooled_width, network.pooled_width
        )

    @functools.cached_property
    def _folded(self) -> Network:
        preprocessor, network = self._shared.teacher_preprocessor, self._shared.teacher
        if preprocessor is None or network is None:
            raise ValueError("there is no teacher to fold")
        copied = folding.folded(network, preprocessor(self._shared.sample(folding.EXAMPLES)))
        copied.skip_features(FEATURES.keys() - self._keeps)
        return copied

    @functools.cached_property
    def _online_teacher(self) -> OnlineTeacher:
        preprocessor = self._shared.teacher_preprocessor
        if preprocessor is None:
            raise ValueError("there is no teacher to compute")
        observe: Observe = self._folded.observe
        # What another runtime computes cannot be compiled, and needs not be.
        if self._compiled and self._folded.torch_form() is self._folded:
            observe = self._compiled(self._folded)
        return OnlineTeacher(observe, preprocessor, self._shared.precision, keeps=self._keeps)

    @functools.cached_property
    def _shared_teacher(self) -> SharedTeacher:
        return SharedTeacher(self._online_teacher)

    @functools.cached_property
    def _cached_teacher(self) -> CachedTeacher:
        return CachedTeacher(self._online_teacher, self._shared.train_loader)

    @functools.cached_property
    def _sample(self) -> Features:
        first = next(self._shared.train_loader.views_in_order(CACHE_BATCH))
        return self._online_teacher.observe(first)
