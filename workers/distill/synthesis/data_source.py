"""Where a data-free student's images come from: synthesis calls, and the replay buffer they fill.

The student's steps are counted as ever. `owes` says that a call is due before the next of them;
`work` makes one step of that call, and at its end puts the images into the buffer.
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
from workers.distill.evaluation import profiling
from workers.distill.functional import divergences
from workers.distill.functional.rows import per_image, rows
from workers.distill.methods.datafree.base import BufferStats, SynthesisBatch
from workers.distill.synthesis import augmentation, replay_buffer, snapshots
from workers.distill.synthesis.synthesizers import base as synthesizers
from workers.distill.synthesis.synthesizers import catalog as synthesizer_catalog
from workers.distill.training.meters import LossMeter

LOOK_BATCH = 256
"""Images of the buffer that are looked at in one pass."""
BUFFER_BYTES = 16 << 30
"""Most that the images of a buffer may take."""


@dataclass
class PhaseSeconds:
    """How long each part of the work took, all attempts together."""

    synthesis: float = 0.0
    distillation: float = 0.0


class SyntheticDataSource:
    """Invents images for one student, and hands them out; the `source` of its course."""

    def __init__(
        self,
        sight: synthesizers.SynthesisContext,
        budget: Synthesis,
        training: Training,
        *,
        capacity: int,
        caches_logits: bool,
    ) -> None:
        """Begin with an empty buffer.

        `budget` is settled: the student's steps after a call are known.
        """
        if budget.student_steps is None:
            raise ValueError("the budget of synthesis is not settled")
        self._sight = sight
        self._method = sight.method
        self._budget = budget
        self._student_steps = budget.student_steps
        self._training = training
        self._inverter = synthesizer_catalog.build(sight)
        self.replay = replay_buffer.ReplayBuffer(
            capacity,
            image_shape=sight.method.image_shape,
            classes=sight.method.classes,
            caches_logits=caches_logits,
            device=sight.device,
            eviction=sight.method.eviction,
        )
        self.gallery = snapshots.SnapshotKeeper(training.epochs)
        self.seconds = PhaseSeconds()
        self.calls = 0
        """Calls that have ended."""
        self.images = 0
        """Images that were made in calls."""
        self._tally = LossMeter(sight.device)
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
        return self.calls * self._budget.steps + (self._inverter.steps_done or 0)

    def due(self, step: int) -> int:
        """Return how many calls must have ended before a step (from 1) of the student."""
        return self._budget.warmup_calls + (step - 1) // self._student_steps + 1

    def owes(self, step: int) -> bool:
        """Whether there is work to do before a step (from 1) of the student."""
        return self.calls < self.due(step)

    def share_done(self, step: int, steps: int) -> float:
        """Return the share of all work that is done after a step of so many, calls included."""
        whole = self.due(steps) * self._budget.steps + steps
        return (self.steps + step) / whole

    # -- synthesis -----------------------------------------------------------------------------

    def work(self) -> None:
        """Make one step of the call that is due; the student looks on and learns nothing."""
        began = time.monotonic()
        student = self._sight.student
        if student.training:  # not so after the first step of a call
            student.eval()
        if self._inverter.steps_done is None:
            # What the device still does for the student is the student's time.
            profiling.wait_for(self._sight.device)
            self.seconds.distillation += time.monotonic() - began
            began = time.monotonic()
            self._inverter.start_round(self.calls + 1)
        if self._stock is None:
            # What the buffer held before the call, all through it.
            self._stock = BufferStats(self.replay.count, self.replay.class_shares())
        begun = self.calls >= self._budget.warmup_calls
        total, terms = self._inverter.step(
            self._stock, uses_student=begun and self._method.uses_student
        )
        if terms:
            self._tally.add(self.steps + 1, total, terms)
        # A call of noise has no steps, and is over at once.
        if (self._inverter.steps_done or self._budget.steps) >= self._budget.steps:
            self._close(self._stock)
            student.train()
            profiling.wait_for(self._sight.device)
        self.seconds.synthesis += time.monotonic() - began

    def _close(self, stock: BufferStats) -> None:
        kept = self._inverter.finish_round()
        self.calls += 1
        self._stock = None
        shown = kept.outputs or self._examined(kept, stock)
        self._method.after_call(kept.last, shown)
        logits = shown.teacher.features.logits
        self.replay.insert(kept.images.clamp(0, 1), kept.targets, logits, call=self.calls)
        self.images += len(kept.images)
        if self._method.priority is not None:
            self.refresh()

    @torch.no_grad()
    def _examined(self, kept: synthesizers.SynthesisResult, stock: BufferStats) -> SynthesisBatch:
        return self._sight.forward(
            kept.images,
            kept.targets,
            buffer=stock,
            call=self.calls,
            uses_student=False,
            augment=synthesizers.unchanged,
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Look at the whole buffer once, for where the student differs from the teacher."""
        training = self._sight.student.training
        self._sight.student.eval()
        found = [self._divergence(first) for first in range(0, self.replay.count, LOOK_BATCH)]
        self._sight.student.train(training)
        self.replay.refresh(torch.cat(found), self._method.priority)

    def _divergence(self, first: int) -> Float[Tensor, " n"]:
        sight, images = self._sight, self.replay.images[first : first + LOOK_BATCH]
        with sight.precision.autocast():
            learned = sight.student.observe(sight.student_view(images)).logits.float()
            cached = self.replay.logits
            if cached is None:
                taught = sight.teacher.observe(sight.teacher_view(images)).logits.float()
            else:
                taught = cached[first : first + LOOK_BATCH]
        return divergence(learned, taught)

    # -- distillation --------------------------------------------------------------------------

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first` on; before each, what `owes` says is done."""
        for _ in range(first, self.steps_per_epoch):
            yield self.batch()

    @torch.no_grad()
    def batch(self) -> Batch:
        """Return images for a step: new ones, or some of the buffer's."""
        self._part_began = time.monotonic()
        count = self._training.batch_size
        supplied = self._inverter.sample(count)
        if supplied is not None:
            index = torch.arange(len(supplied), device=supplied.device)
            return Batch(images=255 * supplied, labels=torch.zeros_like(index), index=index)
        drawn = self.replay.draw(count, self._method.priority)
        images = self.replay.images[drawn.slots]
        if self._training.augmentation == "standard":
            images = self._cropped(images)
        targets = self.replay.targets[drawn.slots]
        return Batch(images, targets, drawn.slots, weights=drawn.weights)

    @torch.no_grad()
    def learned(self, batch: Batch, student: Tensor, teacher: Tensor) -> None:
        """Take in what a step showed: both networks' logits for a batch."""
        if self._method.priority is not None:
            self.replay.update(batch.index, divergence(student, teacher), self._method.priority)
        self.seconds.distillation += time.monotonic() - self._part_began

    def _cropped(self, images: Tensor) -> Tensor:
        pad_y, pad_x = (crop_padding(side) for side in images.shape[2:])
        return augmentation.crop(images, pad_y=pad_y, pad_x=pad_x, flip=self._sight.flip)

    # -- what is told --------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `Diverged` if the loss of synthesis was not finite at some step."""
        self._tally.check(
            "synthesis", "lower method.synthesis.learning_rate, or the method's weights"
        )

    def close_epoch(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Return an epoch's numbers by name, and put the buffer into the gallery where due."""
        losses = self._tally.look().losses
        self.check()
        if last or self.gallery.wants(epoch):
            if self._method.priority is None:
                self.refresh()
            self.gallery.add(
                snapshots.take(
                    self.replay, epoch=epoch, call=self.calls, priority=self._method.priority
                )
            )
        return {
            **{f"synthesis/{name}": value for name, value in losses.items()},
            **snapshots.numbers(self.replay, self._method.priority),
            "seconds/synthesis": self.seconds.synthesis,
            "seconds/distillation": self.seconds.distillation,
        }

    def facts(self) -> dict[str, Any]:
        """Return what the result says of synthesis."""
        classes = self.replay.classes()
        counts = torch.bincount(classes, minlength=self._method.classes).tolist()
        return {
            "calls": self.calls,
            "steps": self.steps,
            "images": self.images,
            "synthesis_seconds": round(self.seconds.synthesis, 3),
            "distillation_seconds": round(self.seconds.distillation, 3),
            "buffer": {"images": self.replay.count, "classes": counts},
        }

    def state(self) -> dict[str, Any]:
        """Return everything that moves."""
        return {
            "inverter": self._inverter.state(),
            "replay": self.replay.state(),
            "gallery": self.gallery.state(),
            "tally": self._tally.state(),
            "calls": self.calls,
            "images": self.images,
            "seconds": vars(self.seconds),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._inverter.restore(state["inverter"])
        self.replay.restore(state["replay"])
        self.gallery.restore(state["gallery"])
        self._tally.restore(state["tally"])
        self.calls, self.images = state["calls"], state["images"]
        self.seconds = PhaseSeconds(**state["seconds"])


def divergence(student: Tensor, teacher: Tensor) -> Float[Tensor, " N"]:
    """Return KL(teacher || student) of each image at temperature 1, the mean over its pixels."""
    found = divergences.softened_kl(rows(student), rows(teacher), temperature=1.0)
    return per_image(found, len(student))


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
