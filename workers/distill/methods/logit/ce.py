"""Cross-entropy with the labels: the student without a teacher.

The "student" row of published result tables, and the baseline of every other method.

Source: common practice; see section 4.3 of Hinton et al., arXiv:1503.02531, for the comparison.
"""

from typing import ClassVar

from workers.distill.config.job import Task
from workers.distill.data.types import Batch
from workers.distill.methods.base import LabelledMethod, Moment, Source, Terms
from workers.distill.networks.interface import Features


class CE(LabelledMethod):
    """Train on the labels alone."""

    name = "ce"
    family = "logit"
    title = "Cross-entropy without a teacher"
    source = Source("Training on the labels alone", venue="common practice")
    needs = ("labels",)
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation", "detection")
    combines = False

    class Params(LabelledMethod.Params):
        """Only the weight of the cross-entropy."""

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term alone."""
        return self.task(student, batch)
