"""Several students of one teacher, trained side by side around the loop of one.

One batch and one forward pass of the teacher serve all of them; then each makes its own step. Each
has its own method, optimizer and random numbers, so it ends with the bytes that it would have
alone.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workers.distill import errors
from workers.distill.runtime.signals import Stop
from workers.distill.training.loop import StudentTrainer
from workers.distill.training.state import random_state, set_random_state
from workers.distill.training.throughput import ThroughputMeter


class RandomState:
    """The state of torch's global generators, kept apart for each of several students."""

    def __init__(self, *, apart: bool) -> None:
        # Any: what torch saves of its generators. A student alone needs no exchange.
        self._state: dict[str, Any] | None = random_state() if apart else None

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this student's own random numbers inside the context."""
        if self._state is None:
            yield
            return
        set_random_state(self._state)
        try:
            yield
        finally:
            self._state = random_state()


@dataclass(eq=False)
class GroupStudent:
    """One of the students that are trained side by side, with its random numbers."""

    trainer: StudentTrainer
    random: RandomState


IsolateFailure = Callable[[GroupStudent], contextlib.AbstractContextManager[None]]
"""A context that reports what one student's part of the work raises, so that the others go on."""
OnFinished = Callable[[Sequence[GroupStudent]], None]
Work = Callable[[GroupStudent], None]


def train(
    students: list[GroupStudent],
    *,
    stop: Stop,
    throughput: ThroughputMeter,
    isolate_failure: IsolateFailure,
    on_finished: OnFinished,
) -> None:
    """Train all to their ends, from the one step at which all of them stand.

    Whoever is finished or fails is removed from the list, and `on_finished` or `isolate_failure`
    is called for it; both may raise. Raises `Interrupted` with those still in the list at one step,
    with states that can be saved.
    """
    for_each_student(students, lambda one: one.trainer.start(), isolate_failure)
    drop_finished(students, on_finished)
    while students:
        leader = students[0]
        throughput.before_step(interrupted=True)
        for moment, batch in leader.trainer.state.iter_steps():

            def step(one: GroupStudent, batch: Any = batch, moment: Any = moment) -> None:
                one.trainer.train_step(batch, moment)

            for_each_student(students, step, isolate_failure)
            closes = any(one.trainer.state.epoch_is_over for one in students)
            throughput.after_step(batch, [one.trainer.step for one in students], last=closes)
            stepped_at = time.monotonic()
            for_each_student(students, lambda one: one.trainer.finish_epoch(), isolate_failure)
            drop_finished(students, on_finished)
            # All at the same step: a group goes on from a step that each of its members kept.
            saves = any(one.trainer.checkpoint_is_due() for one in students)
            if saves:
                for_each_student(
                    students, lambda one: one.trainer.save_checkpoint(), isolate_failure
                )
            stop.check()
            if closes or saves:
                for one in students:
                    one.trainer.reporter.exclude_time_since(stepped_at)
            throughput.before_step(interrupted=saves)
            if leader not in students:
                break


def for_each_student(
    students: list[GroupStudent], work: Work, isolate_failure: IsolateFailure
) -> None:
    """Do the same for each student; an interruption waits until it is done for all.

    A student whose part fails is removed from the list.
    """
    interrupted = False
    for student in list(students):
        done = False
        try:
            with isolate_failure(student), student.random.own():
                work(student)
                done = True
        except errors.Interrupted:
            interrupted = done = True
        if not done:  # the failure has been reported
            students.remove(student)
    if interrupted:
        raise errors.Interrupted


def drop_finished(students: list[GroupStudent], on_finished: OnFinished) -> None:
    """Remove those that are finished from the list, and hand them to `on_finished`."""
    finished = [student for student in students if student.trainer.state.finished]
    if finished:
        students[:] = [student for student in students if student not in finished]
        on_finished(finished)
