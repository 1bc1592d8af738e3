"""The data source of a data-free student: synthesis calls, and the replay buffer that they fill.

`needs_synthesis` tells that a call is due before the student's next step; `synthesis_step` makes
one step of that call, and at its end inserts the images into the buffer.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill import errors
from workers.distill.config.synthesis import Synthesis
from workers.distill.config.training import Training
from workers.distill.data.loader import crop_padding
from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.functional.rows import per_image, rows
from workers.distill.methods.datafree.base import BufferStats, SynthesisBatch
from workers.distill.runtime.device import wait_for
from workers.distill.synthesis import augmentation, replay_buffer, snapshots
from workers.distill.synthesis.synthesizers import base as synthesizers
from workers.distill.synthesis.synthesizers import catalog as synthesizer_catalog
from workers.distill.training.meters import LossMeter

FORWARD_BATCH = 256
"""Images of the buffer in one forward pass."""
BUFFER_BYTES = 16 << 30
"""Most that the images of a buffer may take."""


@dataclass
class PhaseSeconds:
    """How long each part of the work took, all attempts together."""

    synthesis: float = 0.0
    distillation: float = 0.0


class SyntheticDataSource:
    """Makes images for one student; the `source` of its training state."""

    def __init__(
        self,
        context: synthesizers.SynthesisContext,
        budget: Synthesis,
        training: Training,
        *,
        capacity: int,
        caches_logits: bool,
    ) -> None:
        """Begin with an empty buffer.

        `budget` is resolved: the student's steps after a call are known.
        """
        if budget.student_steps is None:
            raise ValueError("the budget of synthesis is not resolved")
        self._context = context
        self._method = context.method
        self._budget = budget
        self._student_steps = budget.student_steps
        self._training = training
        self._synthesizer = synthesizer_catalog.build(context)
        self.buffer = replay_buffer.ReplayBuffer(
            capacity,
            image_shape=context.method.image_shape,
            classes=context.method.classes,
            caches_logits=caches_logits,
            device=context.device,
            eviction=context.method.eviction,
        )
        self.snapshot_keeper = snapshots.SnapshotKeeper(training.epochs)
        self.seconds = PhaseSeconds()
        self.calls = 0
        """Calls that have ended."""
        self.images = 0
        """Images that were made in calls."""
        self._meter = LossMeter(context.device)
        self._stock: BufferStats | None = None
        self._part_began = time.monotonic()

    @property
    def steps_per_epoch(self) -> int:
        """Return the student's steps in an epoch."""
        return self._student_steps * self._budget.calls_per_epoch

    @property
    def rows_per_epoch(self) -> int:
        """Return how many images the student sees in an epoch."""
        return self.steps_per_epoch * self._training.batch_size

    @property
    def steps(self) -> int:
        """Return the steps of synthesis made so far."""
        return self.calls * self._budget.steps + (self._synthesizer.steps_done or 0)

    def due(self, step: int) -> int:
        """Return how many calls must have ended before a step (from 1) of the student."""
        return self._budget.warmup_calls + (step - 1) // self._student_steps + 1

    def needs_synthesis(self, step: int) -> bool:
        """Whether a synthesis call is due before a step (from 1) of the student."""
        return self.calls < self.due(step)

    def share_done(self, step: int, steps: int) -> float:
        """Return the share of all work that is done after a step of so many, calls included."""
        whole = self.due(steps) * self._budget.steps + steps
        return (self.steps + step) / whole

    # -- synthesis -----------------------------------------------------------------------------

    def synthesis_step(self) -> None:
        """Make one step of the call that is due; the student is not changed by it."""
        began = time.monotonic()
        student = self._context.student
        if student.training:  # not so after the first step of a call
            student.eval()
        if self._synthesizer.steps_done is None:
            # What the device still does for the student is the student's time.
            wait_for(self._context.device)
            self.seconds.distillation += time.monotonic() - began
            began = time.monotonic()
            self._synthesizer.start_round(self.calls + 1)
        if self._stock is None:
            # What the buffer held before the call, all through it.
            self._stock = BufferStats(self.buffer.count, self.buffer.class_shares())
        total, terms = self._synthesizer.step(
            self._stock, uses_student=self._method.uses_student_at(self.calls + 1)
        )
        if terms:
            self._meter.update(self.steps + 1, total, terms)
        # A call of noise has no steps, and is over at once.
        if (self._synthesizer.steps_done or self._budget.steps) >= self._budget.steps:
            self._close(self._stock)
            student.train()
            wait_for(self._context.device)
        self.seconds.synthesis += time.monotonic() - began

    def _close(self, stock: BufferStats) -> None:
        result = self._synthesizer.finish_round()
        self.calls += 1
        self._stock = None
        outputs = result.outputs or self._examined(result, stock)
        self._method.after_call(result.last, outputs)
        logits = outputs.teacher.features.logits
        self.buffer.insert(result.images.clamp(0, 1), result.targets, logits, call=self.calls)
        self.images += len(result.images)
        if self._method.priority is not None:
            self.refresh()

    @torch.no_grad()
    def _examined(self, result: synthesizers.SynthesisResult, stock: BufferStats) -> SynthesisBatch:
        return self._context.forward(
            result.images,
            result.targets,
            buffer=stock,
            call=self.calls,
            uses_student=False,
            augment=synthesizers.unchanged,
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Look at the whole buffer once, for where the student differs from the teacher."""
        training = self._context.student.training
        self._context.student.eval()
        parts = [self._divergence(first) for first in range(0, self.buffer.count, FORWARD_BATCH)]
        self._context.student.train(training)
        self.buffer.refresh(torch.cat(parts), self._method.priority)

    def _divergence(self, first: int) -> Float[Tensor, " n"]:
        context, images = self._context, self.buffer.images[first : first + FORWARD_BATCH]
        with context.precision.autocast():
            student_logits = context.student.observe(
                context.student_preprocessor(images)
            ).logits.float()
            cached = self.buffer.logits
            if cached is None:
                teacher_logits = context.teacher.observe(
                    context.teacher_preprocessor(images)
                ).logits.float()
            else:
                teacher_logits = cached[first : first + FORWARD_BATCH]
        return divergence(student_logits, teacher_logits)

    # -- distillation --------------------------------------------------------------------------

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first` on.

        Before each, the synthesis that is due must have been done.
        """
        for _ in range(first, self.steps_per_epoch):
            yield self.batch()

    @torch.no_grad()
    def batch(self) -> Batch:
        """Return images for a step: new ones, or some of the buffer's."""
        self._part_began = time.monotonic()
        count = self._training.batch_size
        supplied = self._synthesizer.sample(count)
        if supplied is not None:
            index = torch.arange(len(supplied), device=supplied.device)
            return Batch(images=255 * supplied, labels=torch.zeros_like(index), index=index)
        drawn = self.buffer.draw(count, self._method.priority)
        images = self.buffer.images[drawn.slots]
        if self._training.augmentation == "standard":
            images = self._cropped(images)
        targets = self.buffer.targets[drawn.slots]
        return Batch(images, targets, drawn.slots, weights=drawn.weights)

    @torch.no_grad()
    def update_priorities(self, batch: Batch, student: Tensor, teacher: Tensor) -> None:
        """Update the priorities of a step's images from both networks' logits for them."""
        if self._method.priority is not None:
            self.buffer.update(batch.index, divergence(student, teacher), self._method.priority)
        self.seconds.distillation += time.monotonic() - self._part_began

    def _cropped(self, images: Tensor) -> Tensor:
        pad_y, pad_x = (crop_padding(side) for side in images.shape[2:])
        return augmentation.crop(images, pad_y=pad_y, pad_x=pad_x, flip=self._context.flip)

    # -- results ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `Diverged` if the loss of synthesis was not finite at some step."""
        self._meter.check_finite(
            "synthesis", "lower method.synthesis.learning_rate, or the method's weights"
        )

    def finish_epoch(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Return an epoch's metrics by name, and keep a snapshot of the buffer where one is due."""
        losses = self._meter.compute_and_reset()
        self.check()
        if last or self.snapshot_keeper.wants(epoch):
            if self._method.priority is None:
                self.refresh()
            self.snapshot_keeper.add(
                snapshots.take(
                    self.buffer, epoch=epoch, call=self.calls, priority=self._method.priority
                )
            )
        return {
            **{f"synthesis/{name}": value for name, value in losses.items()},
            **snapshots.numbers(self.buffer, self._method.priority),
            "seconds/synthesis": self.seconds.synthesis,
            "seconds/distillation": self.seconds.distillation,
        }

    def summary(self) -> dict[str, Any]:
        """Return what the result reports of synthesis."""
        classes = self.buffer.classes()
        counts = torch.bincount(classes, minlength=self._method.classes).tolist()
        return {
            "calls": self.calls,
            "steps": self.steps,
            "images": self.images,
            "synthesis_seconds": round(self.seconds.synthesis, 3),
            "distillation_seconds": round(self.seconds.distillation, 3),
            "buffer": {"images": self.buffer.count, "classes": counts},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "synthesizer": self._synthesizer.state(),
            "buffer": self.buffer.state(),
            "snapshots": self.snapshot_keeper.state(),
            "meter": self._meter.state_dict(),
            "calls": self.calls,
            "images": self.images,
            "seconds": vars(self.seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._synthesizer.restore(state["synthesizer"])
        self.buffer.restore(state["buffer"])
        self.snapshot_keeper.restore(state["snapshots"])
        self._meter.load_state_dict(state["meter"])
        self.calls, self.images = state["calls"], state["images"]
        self.seconds = PhaseSeconds(**state["seconds"])


def divergence(student: Tensor, teacher: Tensor) -> Float[Tensor, " N"]:
    """Return KL(teacher || student) of each image at temperature 1, the mean over its pixels."""
    kl = divergences.softened_kl(rows(student), rows(teacher), temperature=1.0)
    return per_image(kl, len(student))


def capacity(budget: Synthesis, training: Training, image_shape: tuple[int, int, int]) -> int:
    """Return how many images a buffer is to hold; raises `BadRecipe` where that is too much."""
    calls = budget.warmup_calls + training.epochs * budget.calls_per_epoch
    made = calls * budget.batch_size
    wanted = min(budget.buffer_images or made, made)
    size = wanted * math.prod(image_shape)
    if size > BUFFER_BYTES:
        raise errors.BadRecipe(
            f"a replay buffer of {wanted} images would take {size} bytes, and at most "
            f"{BUFFER_BYTES} are kept; set method.synthesis.buffer_images to "
            f"{BUFFER_BYTES // math.prod(image_shape)} or less",
            images=wanted,
            bytes=size,
        )
    return wanted
