"""Data-free adversarial distillation.

A generator is trained to make images on which the logits of student and teacher differ most, and
the student is trained to make them equal. Logits are compared instead of probabilities, as their
gradient does not vanish where both networks are confident.

Source: Fang et al., 2019, arXiv:1912.11006.
Differs: the generator ends in a sigmoid and emits plain pixels; the authors' emits normalised ones.
The student is in evaluation mode while images are generated, theirs in training mode.
Checked against: VainF/Data-Free-Adversarial-Distillation, DFAD_cifar.py and DFAD_nyu_deeplab.py
(signs, reductions; published values).
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries
from workers.distill.methods import parameters
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features


def contest(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    *,
    log_loss: bool,
) -> Float[Tensor, ""]:
    """Return the generator's loss: -d, or -log(d + 1), d the mean |student - teacher|.

    The logarithm reduces its gradient where the networks differ much already.
    """
    gap = adversaries.mean_difference(student_logits, teacher_logits)
    return -gap.log1p() if log_loss else -gap


class DFAD(DataFreeMethod):
    """Distil on images for which the student's logits are far from the teacher's."""

    name = "dfad"
    title = "Data-free adversarial distillation"
    source = Source("Data-Free Adversarial Distillation", venue="arXiv 2019", arxiv="1912.11006")
    needs = ("teacher", "equal_classes")
    synthesizer = "stream"
    learns_from_student_only = True

    class Params(DataFreeMethod.Params):
        """The form of the generator's loss, and the budget."""

        log_loss: bool | None = Field(
            None,
            description="Whether the generator's loss is the logarithm of the difference plus one; "
            "null means only in dense tasks, like the authors.",
        )
        synthesis: StreamSynthesis = Field(
            parameters.STREAM,
            description=f"{parameters.STREAM_BUDGET} Published: `calls_per_epoch` 50 and `beta1` "
            "0.9; for segmentation `batch_size` 64 and `generator` dcgan.",
        )

    params: Params

    @property
    def uses_student(self) -> bool:
        """Whether the loss of synthesis uses the student's outputs: always."""
        return True

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return the negative difference between student and teacher."""
        log_loss, is_dense = self.params.log_loss, batch.teacher.features.logits.dim() > 2
        log_loss = is_dense if log_loss is None else log_loss
        return {"adversarial": batch.student_term(1.0, contest, log_loss=log_loss)}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the mean absolute difference of the logits."""
        return {"difference": adversaries.mean_difference(student.logits, teacher.logits)}
