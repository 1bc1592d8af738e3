"""Data-free adversarial distillation.

A generator looks for images on which the logits of student and teacher lie far apart, and the
student brings them together. Logits, not probabilities: their gradient does not fade where both
networks are sure.

Source: Fang et al., 2019, arXiv:1912.11006.
Differs: the generator ends in a sigmoid and emits plain pixels; the authors' emits normalised ones.
The student is in evaluation mode while images are invented, theirs in training mode.
Checked against: VainF/Data-Free-Adversarial-Distillation, DFAD_cifar.py and DFAD_nyu_deeplab.py
(signs, reductions; published values).
"""

from typing import Self

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features


def contest(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    *,
    log_loss: bool,
) -> Float[Tensor, ""]:
    """Return what the generator lessens: -d, or -log(d + 1), d the mean |student - teacher|.

    The logarithm holds the generator back where the networks are far apart already.
    """
    gap = adversaries.mean_difference(student_logits, teacher_logits)
    return -gap.log1p() if log_loss else -gap


class DFAD(DataFreeMethod):
    """Invent images on which the student's logits are far from the teacher's."""

    name = "dfad"
    title = "Data-free adversarial distillation"
    source = Source("Data-Free Adversarial Distillation", venue="arXiv 2019", arxiv="1912.11006")
    needs = ("teacher", "equal_classes")
    synthesizer = "stream"

    class Params(DataFreeMethod.Params):
        """A switch for the generator's loss, and the budget."""

        log_loss: bool | None = Field(
            None,
            description="Whether the generator follows the logarithm of the difference plus one; "
            "null does so in dense tasks alone, like the authors.",
        )
        synthesis: StreamSynthesis = Field(
            StreamSynthesis(
                steps=1,
                student_steps=5,
                calls_per_epoch=80,
                buffer_images=1024,
                augmentation="none",
                generator="large",
            ),
            description="How images are invented: budget and generator. The buffer keeps the "
            "newest images to be looked at, the student never sees them again. Published: "
            "`calls_per_epoch` 50 and `beta1` 0.9; for segmentation `batch_size` 64 and "
            "`generator` dcgan.",
        )

        @model_validator(mode="after")
        def _the_student_is_there(self) -> Self:
            if self.synthesis.warmup_calls:
                raise ValueError(
                    "synthesis.warmup_calls must be 0: the generator learns from nothing but the "
                    f"student, which is not there during warm-up; got {self.synthesis.warmup_calls}"
                )
            return self

    params: Params

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too: it looks at nothing else."""
        return True

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return the closeness of student and teacher: their difference with a minus."""
        chosen, is_dense = self.params.log_loss, shown.teacher.features.logits.dim() > 2
        log_loss = is_dense if chosen is None else chosen
        return {"adversarial": shown.against_student(1.0, contest, log_loss=log_loss)}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the mean absolute difference of the logits."""
        return {"difference": adversaries.mean_difference(student.logits, teacher.logits)}
