"""The loop over labelled images: the teacher watches, the students learn.

Students of one group go side by side: one batch, one look of the teacher, then each makes its own
step. None can tell that the others are there: each has its own method, optimizer and random
numbers, so it ends with the bytes that it would have alone.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.methods.base import Moment
from workers.distill.runtime import signals
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState, random_state, set_random_state
from workers.distill.training.teachers import Teacher
from workers.distill.training.throughput import ThroughputMeter


class RandomState:
    """The state of torch's global generators, kept apart for each of several students."""

    def __init__(self, *, apart: bool) -> None:
        # Any: what torch saves of its generators. A student alone needs no exchange.
        self._state: dict[str, Any] | None = random_state() if apart else None

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this student's own random numbers for a while."""
        if self._state is None:
            yield
            return
        set_random_state(self._state)
        try:
            yield
        finally:
            self._state = random_state()


@dataclass(eq=False)
class StudentTrainer:
    """One student on its course, with its teacher and the desk it reports to."""

    course: TrainState
    teacher: Teacher
    desk: ProgressReporter
    randomness: RandomState

    def begin(self) -> None:
        """Make ready for the first step."""
        self.course.student.train()
        self.course.method.train()
        self.close()  # if it was interrupted inside the validation after its last step

    def learn(self, batch: Batch, moment: Moment) -> None:
        """Make one step."""
        course = self.course
        taught = self.teacher.observe(batch)
        learned = course.learn(batch)
        terms = course.method.terms(learned, taught, batch, moment)
        total = course.stepper.step_on(terms, moment)
        course.method.after_step(moment)
        course.advance(moment, total, terms, learned, batch)
        self.desk.after_step(course, moment, len(batch.labels))

    def close(self) -> None:
        """Close the epoch if the last step ended it, or the training."""
        if self.course.owes_close:
            self.desk.close_epoch(self.course)

    def save(self) -> None:
        """Write a checkpoint."""
        self.desk.save(self.course)


IsolateFailure = Callable[[StudentTrainer], contextlib.AbstractContextManager[None]]
"""Takes what one student's part of the work raises, so that it does not reach the others."""
OnFinished = Callable[[Sequence[StudentTrainer]], None]
AnyTrainer = TypeVar("AnyTrainer", bound=StudentTrainer)


def train(
    pupils: list[StudentTrainer],
    *,
    stop: signals.Stop,
    pace: ThroughputMeter,
    guard: IsolateFailure,
    ends: OnFinished,
) -> None:
    """Train all to their ends, from the one step at which all of them stand.

    Who is through or fails is taken out of the list, and `ends` or `guard` hears of it; both may
    raise. Raises `Interrupted` with those still in the list at one step, ready to be saved.
    """
    for_each_student(pupils, StudentTrainer.begin, guard)
    drop_finished(pupils, ends)
    while pupils:
        leader = pupils[0]
        pace.step_over(disturbed=True)
        for moment, batch in leader.course.walk():
            for_each_student(
                pupils, functools.partial(StudentTrainer.learn, batch=batch, moment=moment), guard
            )
            moving = [pupil.course for pupil in pupils]
            closes = any(course.owes_close for course in moving)
            pace.step_done(batch, moving, last=closes)
            learned_at = time.monotonic()
            for_each_student(pupils, StudentTrainer.close, guard)
            drop_finished(pupils, ends)
            # All at the same step: a group goes on from a step that each of its members kept.
            saves = any(pupil.desk.is_due(pupil.course) for pupil in pupils)
            if saves:
                for_each_student(pupils, StudentTrainer.save, guard)
            stop.check()
            if closes or saves:
                for pupil in pupils:
                    pupil.desk.rest(learned_at)
            pace.step_over(disturbed=saves)
            if leader not in pupils:
                break


def for_each_student(
    pupils: list[AnyTrainer], work: Callable[[AnyTrainer], None], guard: IsolateFailure
) -> None:
    """Let each do its part; an interruption waits until all have done so."""
    interrupted = False
    for pupil in list(pupils):
        done = False
        try:
            with guard(pupil), pupil.randomness.own():
                work(pupil)
                done = True
        except errors.Interrupted:
            interrupted = done = True
        if not done:  # the guard has told of it
            pupils.remove(pupil)
    if interrupted:
        raise errors.Interrupted


def drop_finished(pupils: list[AnyTrainer], ends: OnFinished) -> None:
    """Take out of the list those that are through."""
    through = [pupil for pupil in pupils if pupil.course.over]
    if through:
        pupils[:] = [pupil for pupil in pupils if pupil not in through]
        ends(through)
