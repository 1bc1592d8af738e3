"""The loop over labelled images: the teacher watches, the student learns."""

import torch

from workers.distill.loops.course import Course
from workers.distill.loops.desk import Desk
from workers.distill.loops.teacher import Teacher


def train(course: Course, teacher: Teacher, desk: Desk) -> None:
    """Train to the end of the last epoch, from wherever the course stands.

    Raises `Diverged`, or `Interrupted` with the course in a state that can be saved.
    """
    course.student.train()
    course.method.train()
    if course.owes_close:  # interrupted inside the validation after its last step
        desk.close_epoch(course)
    for moment, batch in course.walk():
        taught = teacher.observe(batch)
        learned = course.learn(batch)
        terms = course.method.terms(learned, taught, batch, moment)
        total = torch.stack(list(terms.values())).sum()
        course.stepper.step_on(total, moment)
        course.method.after_step(moment)
        course.advance(moment, total, terms, learned, batch)
        desk.after_step(course, moment, len(batch.labels))
        if moment.closes_epoch:
            desk.close_epoch(course)
