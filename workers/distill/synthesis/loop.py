"""The loop without data: images are invented, then the student learns from them, in turns.

Both parts work on one replay buffer (see `studio`). Saved anywhere, inside a synthesis call too, a
run goes on exactly: generator, latent vectors, buffer, priorities, random numbers.
"""

import functools
from dataclasses import dataclass

from workers.distill.data.types import Batch
from workers.distill.methods.base import Moment
from workers.distill.runtime import signals
from workers.distill.synthesis.data_source import SyntheticDataSource
from workers.distill.training.loop import (
    IsolateFailure,
    OnFinished,
    StudentTrainer,
    drop_finished,
    for_each_student,
)


@dataclass(eq=False)
class DataFreeTrainer(StudentTrainer):
    """A student that learns from images invented for it."""

    @property
    def studio(self) -> SyntheticDataSource:
        """Return where its images are invented."""
        if self.course.studio is None:
            raise ValueError("the student's course has no studio")
        return self.course.studio

    def learn(self, batch: Batch, moment: Moment) -> None:
        """Make one step; an answer is right when it is the teacher's."""
        course = self.course
        taught = self.teacher.observe(batch)
        learned = course.learn(batch)
        terms = course.method.terms(learned, taught, batch, moment)
        total = course.stepper.step_on(terms, moment)
        course.method.after_step(moment)
        right = taught.logits.argmax(1)
        course.advance(moment, total, terms, learned, batch, right=right)
        self.studio.learned(batch, learned.logits.detach(), taught.logits)
        self.desk.after_step(course, moment, len(batch.labels))

    def invent(self) -> None:
        """Make one step of the synthesis call that is due."""
        self.studio.work()
        self.desk.after_synthesis(self.course)


def train_data_free(
    pupils: list[DataFreeTrainer], *, stop: signals.Stop, guard: IsolateFailure, ends: OnFinished
) -> None:
    """Train the one student in the list to its end; otherwise as `supervised.train`.

    Raises `Interrupted` with the student in the list, ready to be saved.
    """
    (pupil,) = pupils
    for_each_student(pupils, DataFreeTrainer.begin, guard)
    drop_finished(pupils, ends)
    steps = pupil.course.walk()
    while pupils:
        if pupil.studio.owes(pupil.course.step + 1):
            for_each_student(pupils, DataFreeTrainer.invent, guard)
        else:
            moment, batch = next(steps)
            for_each_student(
                pupils, functools.partial(DataFreeTrainer.learn, batch=batch, moment=moment), guard
            )
            for_each_student(pupils, DataFreeTrainer.close, guard)
            drop_finished(pupils, ends)
        if pupils and pupil.desk.is_due(pupil.course):
            for_each_student(pupils, DataFreeTrainer.save, guard)
        stop.check()
