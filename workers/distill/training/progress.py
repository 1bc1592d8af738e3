"""Reports the progress of one student's training, and writes its checkpoints."""

import pathlib
import time
from typing import Any

import torch

from workers.distill.methods.base import Moment
from workers.distill.runtime import events
from workers.distill.runtime.ranks import ALONE, Ranks
from workers.distill.training import checkpoint
from workers.distill.training.state import TrainState

MOST_POINTS = 2_000
"""A curve has about this many points at most."""
READ_STEPS = 10
"""Fewest steps between two readings of the meter, each of which waits for the device."""


class ProgressReporter:
    """Reports one phase of training: progress, metrics, checkpoints, and the time that they take.

    Only time between steps counts as training time: validation and checkpoints are left out.
    """

    def __init__(
        self,
        reporter: events.Reporter,
        *,
        folder: pathlib.Path,
        digest: str,
        steps_before: int,
        steps_overall: int,
        finished: dict[str, Any],
        ranks: Ranks = ALONE,
    ) -> None:
        """Report to `reporter`, and write checkpoints into `folder`.

        `steps_before` are those of earlier phases, `steps_overall` those of all phases; `finished`
        holds the final states of earlier phases, by name, for the checkpoints. Of several `ranks`,
        whose states are equal, the first one writes checkpoints, and its clock counts.
        """
        self._ranks = ranks
        self._reporter = reporter
        self._folder = folder
        self._digest = digest
        self._before = steps_before
        self._overall = steps_overall
        self._finished = finished
        self._saved_at = time.monotonic()
        self._counted_at = time.monotonic()
        self._counted_images = 0
        self._images = 0
        self._rate = 0.0

    def after_step(self, state: TrainState, moment: Moment, images: int) -> None:
        """Report a step of so many images; raises `Diverged` where a loss was not finite."""
        self._images += images
        limit = state.training.max_seconds
        if limit is not None:
            spent = state.seconds + time.monotonic() - self._counted_at
            if self._ranks.from_first(spent >= limit):
                state.time_is_up = True
        every = max(READ_STEPS, state.steps // MOST_POINTS)
        if moment.step % every == 0 or state.epoch_is_over:
            self._read_meter(state, moment)
        self._progress(state, moment.step, moment.epoch, images)

    def after_other_work(self, state: TrainState, epoch: int) -> None:
        """Report work that made no step of the student."""
        self._progress(state, state.step, epoch, state.training.batch_size)

    def checkpoint_is_due(self, state: TrainState) -> bool:
        """Whether `training.checkpoint_seconds` have passed since the last checkpoint."""
        waited = time.monotonic() - self._saved_at
        return self._ranks.is_first and waited >= state.training.checkpoint_seconds

    def finish_epoch(self, state: TrainState) -> None:
        """Finish the epoch, validation included, and report its metrics."""
        for key, value in state.finish_epoch().items():
            self._metric(state, key, value, state.moment(state.step))
        self._counted_at = time.monotonic()

    def exclude_time_since(self, moment: float) -> None:
        """Leave out the time since a moment: no student of the group made a step in it."""
        now = time.monotonic()
        self._counted_at = min(self._counted_at + now - moment, now)

    def save_checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint and report it; of several ranks, the first one does."""
        if not self._ranks.is_first:
            return
        self._count_time(state)
        step = self._before + state.step
        content = {
            "train_state": state.state_dict(),
            "finished": self._finished,
            "threads": torch.get_num_threads(),
        }
        written = checkpoint.write(self._folder, step, self._digest, content)
        self._reporter.checkpoint(
            path=f"{self._folder.name}/{written.path.name}",
            step=step,
            epoch=state.moment(max(state.step, 1)).epoch,
            phase=state.phase,
            size_bytes=written.size_bytes,
            sha256=written.sha256,
        )
        self._saved_at = self._counted_at = time.monotonic()

    def _progress(self, state: TrainState, step: int, epoch: int, images: int) -> None:
        self._reporter.progress(
            phase=state.phase,
            step=step,
            epoch=epoch,
            progress=round((self._before + steps_done(state)) / (self._overall + 1), 6),
            images_per_second=round(self._rate, 2),
            remaining_seconds=self._remaining_seconds(state, images),
        )

    def _remaining_seconds(self, state: TrainState, images: int) -> float | None:
        """Return the seconds to the end of the last phase, unless one ends early."""
        if not self._rate:
            return None
        here = (state.steps - state.step) * images / self._rate
        later = (self._overall - self._before - state.steps) * images / self._rate
        limit = state.training.max_seconds
        if limit is not None:
            here, later = min(here, max(limit - state.seconds, 0.0)), min(later, limit)
        return round(here + later, 1)

    def _read_meter(self, state: TrainState, moment: Moment) -> None:
        losses = state.meter.compute_and_reset()  # waits for the device: read the clock after it
        images = self._images - self._counted_images
        self._rate = images / max(self._count_time(state), 1e-9)
        for name, value in losses.items():
            self._metric(state, f"loss/{name}", value, moment)
        if state.balance is not None:
            for name, value in state.balance.metrics().items():
                self._metric(state, name, value, moment)
        self._metric(state, "learning_rate", state.optimizer.learning_rate(moment), moment)
        self._metric(state, "throughput/images_per_second", self._rate, moment)
        state.meter.check_finite()

    def _count_time(self, state: TrainState) -> float:
        now = time.monotonic()
        passed, self._counted_at = now - self._counted_at, now
        self._counted_images = self._images
        state.seconds += passed
        return passed

    def _metric(self, state: TrainState, key: str, value: float, moment: Moment) -> None:
        prefix = "baseline/" if state.phase == "baseline" else ""
        self._reporter.metric(prefix + key, value, step=moment.step, epoch=moment.epoch)


def steps_done(state: TrainState) -> float:
    """Return the steps that are done, or their equivalent in seconds where those run out first."""
    limit = state.training.max_seconds
    by_time = 0.0 if limit is None else min(state.seconds / limit, 1.0) * state.steps
    return max(state.source.share_done(state.step, state.steps) * state.steps, by_time)
