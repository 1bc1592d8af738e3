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

from workers.distill import errors, stopping
from workers.distill.loops import course as courses
from workers.distill.loops.course import Course
from workers.distill.loops.desk import Desk
from workers.distill.loops.pace import Pace
from workers.distill.loops.teacher import Teacher
from workers.distill.method import Batch, Moment


class Randomness:
    """The state of torch's global generators, kept apart for each of several students."""

    def __init__(self, *, apart: bool) -> None:
        # Any: what torch saves of its generators. A student alone needs no exchange.
        self._state: dict[str, Any] | None = courses.random_state() if apart else None

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this student's own random numbers for a while."""
        if self._state is None:
            yield
            return
        courses.set_random_state(self._state)
        try:
            yield
        finally:
            self._state = courses.random_state()


@dataclass(eq=False)
class Pupil:
    """One student on its course, with its teacher and the desk it reports to."""

    course: Course
    teacher: Teacher
    desk: Desk
    randomness: Randomness

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


Guard = Callable[[Pupil], contextlib.AbstractContextManager[None]]
"""Takes what one student's part of the work raises, so that it does not reach the others."""
Ends = Callable[[Sequence[Pupil]], None]
AnyPupil = TypeVar("AnyPupil", bound=Pupil)


def train(
    pupils: list[Pupil], *, stop: stopping.Stop, pace: Pace, guard: Guard, ends: Ends
) -> None:
    """Train all to their ends, from the one step at which all of them stand.

    Who is through or fails is taken out of the list, and `ends` or `guard` hears of it; both may
    raise. Raises `Interrupted` with those still in the list at one step, ready to be saved.
    """
    each(pupils, Pupil.begin, guard)
    let_go(pupils, ends)
    while pupils:
        leader = pupils[0]
        pace.step_over(disturbed=True)
        for moment, batch in leader.course.walk():
            each(pupils, functools.partial(Pupil.learn, batch=batch, moment=moment), guard)
            moving = [pupil.course for pupil in pupils]
            closes = any(course.owes_close for course in moving)
            pace.step_done(batch, moving, last=closes)
            learned_at = time.monotonic()
            each(pupils, Pupil.close, guard)
            let_go(pupils, ends)
            # All at the same step: a group goes on from a step that each of its members kept.
            saves = any(pupil.desk.is_due(pupil.course) for pupil in pupils)
            if saves:
                each(pupils, Pupil.save, guard)
            stop.check()
            if closes or saves:
                for pupil in pupils:
                    pupil.desk.rest(learned_at)
            pace.step_over(disturbed=saves)
            if leader not in pupils:
                break


def each(pupils: list[AnyPupil], work: Callable[[AnyPupil], None], guard: Guard) -> None:
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


def let_go(pupils: list[AnyPupil], ends: Ends) -> None:
    """Take out of the list those that are through."""
    through = [pupil for pupil in pupils if pupil.course.over]
    if through:
        pupils[:] = [pupil for pupil in pupils if pupil not in through]
        ends(through)
