"""One step's forward pass, from a batch to the terms of the loss."""

import dataclasses
from typing import NamedTuple

from torch import Tensor, nn

from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.methods.base import Method, Moment, Terms
from workers.distill.networks.interface import Features, Network, Observe
from workers.distill.runtime.precision import Precision
from workers.distill.training.parallel import Parallel
from workers.distill.training.teachers import Teacher, at_least_float


class StepOutput(NamedTuple):
    """The terms of the loss by name, and the batch and both networks' outputs they came from.

    On several devices that is the whole batch, without pixels, or this rank's slice of it
    (`training.parallel`).
    """

    terms: Terms
    student: Features
    teacher: Features
    batch: Batch


class DistillationStep(nn.Module):
    """Teacher, student and loss of one step: what DDP, `torch.compile` and autocast wrap.

    Student and method are its parts, so their parameters are its own; the teacher is not, since it
    is never trained. No optimizer, no meter and no file: `training.loop` has those. Gradients of
    several ranks are averaged where they are made (`training.optimizers`), since some are made
    without a backward pass of the whole.
    """

    def __init__(
        self,
        student: Network,
        method: Method,
        teacher: Teacher,
        preprocess: Preprocessor,
        precision: Precision,
        *,
        observe: Observe | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        """Wrap the parts; `observe` is the student's own, or the same compiled.

        `parallel` says how ranks share the step, where there are several.
        """
        super().__init__()
        self.student = student
        self.method = method
        self.teacher = teacher
        self.preprocess = preprocess
        self.precision = precision
        self.parallel = parallel or Parallel()
        self._observe = observe or student.observe

    def train(self, mode: bool = True) -> "DistillationStep":
        """Set the mode of all parts; a student whose features are frozen stays in evaluation."""
        super().train(mode)
        if "initial" in self.method.needs:
            self.student.eval()
        return self

    def forward(self, batch: Batch, moment: Moment) -> StepOutput:
        """Return the weighted terms of the loss of a batch, with the outputs behind them."""
        parallel = self.parallel
        with parallel.own_draws(moment.step, batch.images.device):
            teacher_out = self.teacher.observe(batch)
            student_out = self.forward_student(batch)
        if parallel.gathers:
            student_out = parallel.gather_features(student_out, batch.rows)
            teacher_out = parallel.gather_features(teacher_out, batch.rows)
            batch = parallel.gather_batch(batch)
        terms = self.method.terms(student_out, teacher_out, batch, moment)
        if parallel.is_shared and not parallel.gathers:
            terms = parallel.weigh(terms, batch)
        return StepOutput(terms, student_out, teacher_out, batch)

    def forward_student(self, batch: Batch) -> Features:
        """Return the student's features, those of the strong view with them where it is used."""
        features = self._forward(batch.images)
        if batch.strong is None or not self.method.uses_strong_view:
            return features
        return dataclasses.replace(features, strong=self._forward(batch.strong))

    def __call__(self, batch: Batch, moment: Moment) -> StepOutput:
        """Run `forward` (typed here because `nn.Module.__call__` is not)."""
        output: StepOutput = super().__call__(batch, moment)
        return output

    def _forward(self, images: Tensor) -> Features:
        with self.precision.autocast():
            features = self._observe(self.preprocess(images))
        if self.precision.name == "float32":
            return features
        return dataclasses.replace(
            features,
            logits=at_least_float(features.logits),
            pooled=at_least_float(features.pooled),
        )
