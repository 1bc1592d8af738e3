"""Where a loop reports: progress, metrics, checkpoints, and the wish to stop."""

import pathlib
import time
from typing import Any

import torch

from workers.distill import checkpoint, report, stopping
from workers.distill.loops.course import Course
from workers.distill.method import Moment

POINTS = 2_000
"""A curve has about this many points at most."""
LOOK_STEPS = 10


class Desk:
    """Reports one phase of training, and keeps it safe."""

    def __init__(
        self,
        reporter: report.Reporter,
        stop: stopping.Stop,
        *,
        folder: pathlib.Path,
        digest: str,
        steps_before: int,
        steps_overall: int,
        finished: dict[str, Any],
    ) -> None:
        self._reporter = reporter
        self._stop = stop
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

    def after_step(self, course: Course, moment: Moment, images: int) -> None:
        """Report, look for divergence, checkpoint, stop: whatever is due after a step."""
        self._images += images
        every = max(LOOK_STEPS, course.steps // POINTS)
        if moment.step % every == 0 or moment.closes_epoch:
            self._look(course, moment)
        left = self._overall - self._before - moment.step
        self._reporter.progress(
            phase=course.phase,
            step=moment.step,
            epoch=moment.epoch,
            progress=round((self._before + moment.step) / (self._overall + 1), 6),
            images_per_second=round(self._rate, 2),
            remaining_seconds=round(left * images / self._rate, 1) if self._rate else None,
        )
        if time.monotonic() - self._saved_at >= course.training.checkpoint_seconds:
            self.save(course)
        self._stop.check()

    def close_epoch(self, course: Course) -> None:
        """Validate what is due and report the epoch's numbers."""
        numbers = course.close_epoch()
        for key, value in numbers.items():
            self._metric(course, key, value, course.moment(course.step))
        self._looked_at = time.monotonic()  # validation is not training time

    def save(self, course: Course) -> None:
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

    def _look(self, course: Course, moment: Moment) -> None:
        seen = course.tally.look()  # waits for the device, so the clock is read after it
        images = self._images - self._looked_images
        self._rate = images / max(self._tick(course), 1e-9)
        for name, value in seen.losses.items():
            self._metric(course, f"loss/{name}", value, moment)
        self._metric(course, "learning_rate", course.stepper.rate_at(moment), moment)
        self._metric(course, "throughput/images_per_second", self._rate, moment)
        course.tally.check()

    def _tick(self, course: Course) -> float:
        now = time.monotonic()
        passed, self._looked_at = now - self._looked_at, now
        self._looked_images = self._images
        course.seconds += passed
        return passed

    def _metric(self, course: Course, key: str, value: float, moment: Moment) -> None:
        prefix = "baseline/" if course.phase == "baseline" else ""
        self._reporter.metric(prefix + key, value, step=moment.step, epoch=moment.epoch)
