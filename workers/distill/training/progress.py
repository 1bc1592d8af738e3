"""Where a loop reports: progress, metrics and checkpoints."""

import pathlib
import time
from typing import Any

import torch

from workers.distill.methods.base import Moment
from workers.distill.runtime import events
from workers.distill.training import checkpoint
from workers.distill.training.state import TrainState

POINTS = 2_000
"""A curve has about this many points at most."""
LOOK_STEPS = 10


class ProgressReporter:
    """Reports one phase of training, and keeps it safe."""

    def __init__(
        self,
        reporter: events.Reporter,
        *,
        folder: pathlib.Path,
        digest: str,
        steps_before: int,
        steps_overall: int,
        finished: dict[str, Any],
    ) -> None:
        self._reporter = reporter
        self._folder = folder
        self._digest = digest
        self._before = steps_before
        self._overall = steps_overall
        self._finished = finished
        self._saved_at = time.monotonic()
        self._looked_at = time.monotonic()
        self._looked_images = 0
        self._images = 0
        self._rate = 0.0

    def after_step(self, course: TrainState, moment: Moment, images: int) -> None:
        """Report, and look for divergence."""
        self._images += images
        limit = course.training.max_seconds
        if limit is not None and course.seconds + time.monotonic() - self._looked_at >= limit:
            course.time_is_up = True
        every = max(LOOK_STEPS, course.steps // POINTS)
        if moment.step % every == 0 or course.owes_close:
            self._look(course, moment)
        self._reporter.progress(
            phase=course.phase,
            step=moment.step,
            epoch=moment.epoch,
            progress=self._share(course),
            images_per_second=round(self._rate, 2),
            remaining_seconds=self._remaining(course, images),
        )

    def after_synthesis(self, course: TrainState) -> None:
        """Report a step that moved images, not the student."""
        self._reporter.progress(
            phase=course.phase,
            step=course.step,
            epoch=course.moment(course.step + 1).epoch if course.step else 0,
            progress=self._share(course),
            images_per_second=round(self._rate, 2),
            remaining_seconds=self._remaining(course, course.training.batch_size),
        )

    def is_due(self, course: TrainState) -> bool:
        """Whether a checkpoint should be written."""
        return time.monotonic() - self._saved_at >= course.training.checkpoint_seconds

    def close_epoch(self, course: TrainState) -> None:
        """Validate what is due and report the epoch's numbers."""
        numbers = course.close_epoch()
        for key, value in numbers.items():
            self._metric(course, key, value, course.moment(course.step))
        self._looked_at = time.monotonic()  # validation is not training time

    def rest(self, since: float) -> None:
        """Leave out the time since a moment: no student of the group made a step in it."""
        now = time.monotonic()
        self._looked_at = min(self._looked_at + now - since, now)

    def save(self, course: TrainState) -> None:
        """Write a checkpoint and say so."""
        self._tick(course)
        step = self._before + course.step
        state = {
            "course": course.state(),
            "finished": self._finished,
            "threads": torch.get_num_threads(),
        }
        written = checkpoint.write(self._folder, step, self._digest, state)
        self._reporter.checkpoint(
            path=f"{self._folder.name}/{written.path.name}",
            step=step,
            epoch=course.moment(max(course.step, 1)).epoch,
            phase=course.phase,
            size_bytes=written.size_bytes,
            sha256=written.sha256,
        )
        self._saved_at = self._looked_at = time.monotonic()

    def _share(self, course: TrainState) -> float:
        return round((self._before + steps_done(course)) / (self._overall + 1), 6)

    def _remaining(self, course: TrainState, images: int) -> float | None:
        """Return the seconds to the end of the last phase, unless one ends early."""
        if not self._rate:
            return None
        here = (course.steps - course.step) * images / self._rate
        later = (self._overall - self._before - course.steps) * images / self._rate
        limit = course.training.max_seconds
        if limit is not None:
            here, later = min(here, max(limit - course.seconds, 0.0)), min(later, limit)
        return round(here + later, 1)

    def _look(self, course: TrainState, moment: Moment) -> None:
        seen = course.tally.look()  # waits for the device, so the clock is read after it
        images = self._images - self._looked_images
        self._rate = images / max(self._tick(course), 1e-9)
        for name, value in seen.losses.items():
            self._metric(course, f"loss/{name}", value, moment)
        self._metric(course, "learning_rate", course.stepper.rate_at(moment), moment)
        self._metric(course, "throughput/images_per_second", self._rate, moment)
        course.tally.check()

    def _tick(self, course: TrainState) -> float:
        now = time.monotonic()
        passed, self._looked_at = now - self._looked_at, now
        self._looked_images = self._images
        course.seconds += passed
        return passed

    def _metric(self, course: TrainState, key: str, value: float, moment: Moment) -> None:
        prefix = "baseline/" if course.phase == "baseline" else ""
        self._reporter.metric(prefix + key, value, step=moment.step, epoch=moment.epoch)


def steps_done(course: TrainState) -> float:
    """Return the steps that are made, or their like in seconds where those run out before."""
    limit = course.training.max_seconds
    by_time = 0.0 if limit is None else min(course.seconds / limit, 1.0) * course.steps
    if course.studio is not None:
        return max(course.studio.share_done(course.step, course.steps) * course.steps, by_time)
    return max(float(course.step), by_time)
