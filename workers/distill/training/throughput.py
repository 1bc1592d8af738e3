"""Measures which share of a training step is arithmetic, by turns with real steps.

Real steps and the bare arithmetic are timed one right after the other, all through training, so
that both meet the machine in the same state; the median of the ratios is the result. This takes
about a hundredth of the time.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.runtime.device import generators, wait_for
from workers.distill.runtime.precision import Precision
from workers.distill.training.floor import Floor
from workers.distill.training.step import DistillationStep

BLOCK_SECONDS = 0.05
"""Steps are timed together until they take this long: a clock and a device need some time."""
COST = 0.01
"""Share of the training time that measuring may take."""
WARM_STEPS = 3
"""The first steps find caches cold; they count only where there are no others."""


class ThroughputMeter:
    """Times blocks of steps against their arithmetic."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        teacher: Callable[[Tensor], object] | None,
        *,
        measures: bool = True,
    ) -> None:
        """Measure on a device; `teacher` is the teacher's arithmetic of a step, if it has any.

        Without `measures` nothing is: a rank's step waits for those of others.
        """
        self._measures = measures
        self._device = device
        self._precision = precision
        self._teacher = teacher
        self._floors: dict[int, Floor] = {}
        self._shares: list[float] = []
        self._cold: list[float] = []
        self._steps = 0
        self._began = time.monotonic()
        self._spent = 0.0
        self._block_began: float | None = None
        self._block_steps = 0

    @property
    def arithmetic_share(self) -> float | None:
        """Return the share (0..1) of a step that is arithmetic, or None if no step was made."""
        shares = self._shares or self._cold
        return min(statistics.median(shares), 1.0) if shares else None

    def before_step(self, *, interrupted: bool) -> None:
        """Begin a block if it is time; drop the open one if more than steps went on in it."""
        if interrupted:
            self._block_began = None
        if self._block_began is None and self._is_due():
            wait_for(self._device)
            self._block_began = time.perf_counter()
            self._block_steps = 0

    def after_step(self, batch: Batch, steps: Sequence[DistillationStep], *, last: bool) -> None:
        """Count a step of each student; end the block if it is long enough, or `last`."""
        self._steps += 1
        if self._block_began is None:
            return
        self._block_steps += 1
        if time.perf_counter() - self._block_began < BLOCK_SECONDS and not last:
            return
        wait_for(self._device)
        real = time.perf_counter() - self._block_began
        self._block_began = None
        if steps:  # none is left where all have just failed
            share = self._floor_seconds(batch, steps) / real
            (self._shares if self._steps > WARM_STEPS else self._cold).append(share)

    def _is_due(self) -> bool:
        if not self._measures:
            return False
        budget = COST * (time.monotonic() - self._began)
        first = self._steps == 0 or (self._steps >= WARM_STEPS and not self._shares)
        return first or self._spent < budget

    def _floor_seconds(self, batch: Batch, steps: Sequence[DistillationStep]) -> float:
        """Return the seconds of as many bare steps as the block has."""
        began = time.monotonic()
        inputs = [step.preprocess(batch.images) for step in steps]
        floors = [self._floor_of(step) for step in steps]

        def work() -> None:
            if self._teacher is not None:
                self._teacher(batch.images)
            for floor, images in zip(floors, inputs, strict=True):
                floor(images)

        # A student may draw random numbers, and must find its own ones untouched.
        with torch.random.fork_rng(devices=generators(self._device)):
            if not self._spent:
                work()
            wait_for(self._device)
            start = time.perf_counter()
            for _ in range(self._block_steps):
                work()
            wait_for(self._device)
            seconds = time.perf_counter() - start
        self._spent += time.monotonic() - began
        return seconds

    def _floor_of(self, step: DistillationStep) -> Floor:
        if id(step) not in self._floors:
            self._floors[id(step)] = Floor(step.student, self._precision)
        return self._floors[id(step)]
