"""Knowledge distillation through softened outputs.

At a raised temperature the teacher's probabilities show how it ranks the wrong classes; the student
imitates that whole distribution besides training on the labels. Weights are those used for
CIFAR-100 by MDistiller and RepDistiller. With `stop_epoch` it is ESKD: distil in the first epochs,
then train on labels alone. With `standardize` it is LSKD: both networks' logits are compared as
z-scores, so that the student need not match the teacher's scale.

Source: Hinton et al., 2015, arXiv:1503.02531, equation 1; Cho & Hariharan, ICCV 2019; Sun et al.,
CVPR 2024, arXiv:2403.01427.
Differs: the loss is a divergence, not a soft cross-entropy, so it is zero when both agree; the
gradient is the same. LSKD's paper reads as the deviation over C, its code takes that over C - 1;
both are available, neither is the default: z-scores need other weights and temperatures.
Checked against: megvii-research/mdistiller, mdistiller/distillers/KD.py;
sunshangquan/logit-standardization-KD, mdistiller/distillers/KD.py (published values).
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import divergences, standardization
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.methods.parameters import KDWeight, TaskWeight, Temperature
from workers.distill.networks.interface import Features


def kd_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the softened KL divergence, averaged over the batch.

    Units: nats times temperature squared, so gradients keep their size whatever the temperature.
    """
    divergence = divergences.softened_kl(student_logits, teacher_logits, temperature=temperature)
    return temperature**2 * divergence.mean()


class KD(LogitMethod):
    """Imitate the teacher's softened outputs."""

    name = "kd"
    title = "Knowledge distillation"
    source = Source(
        "Distilling the Knowledge in a Neural Network",
        venue="NIPS 2014 Deep Learning Workshop",
        arxiv="1503.02531",
        equations="1",
    )

    class Params(LogitMethod.Params):
        """Two weights, a temperature, and two switches."""

        task_weight: TaskWeight = 0.1
        kd_weight: KDWeight = 0.9
        temperature: Temperature = 4.0
        stop_epoch: int | None = Field(
            None,
            ge=0,
            description="Last epoch with the distillation term (ESKD); then only the task term "
            "is left, with its weight unchanged. Null keeps it to the end.",
        )
        standardize: standardization.Deviation = Field(
            "none",
            description="Standard deviation by which each sample's centred logits are divided "
            "before the temperature (LSKD, arXiv 2403.01427): none is plain KD; population is how "
            "the paper reads; sample is its authors' code, used there with task_weight 0.1, "
            "kd_weight 9 and temperature 2. Where balance holds the teacher (auto, a number), "
            "task_weight is 1 unless it is given.",
        )

    params: Params

    @property
    def is_auto_balanced(self) -> bool:
        """Whether the logits are standardized: their loss has no scale of its own."""
        return self.params.standardize != "none"

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the imitation."""
        params = self.params
        stopped = params.stop_epoch is not None and moment.epoch > params.stop_epoch
        if stopped:
            return {**self.task(student, batch), "kd": student.logits.new_zeros(())}
        loss = kd_loss(
            standardization.standardized(student.logits, by=params.standardize),
            standardization.standardized(teacher.logits, by=params.standardize),
            temperature=params.temperature,
        )
        return {**self.task(student, batch), "kd": params.kd_weight * loss}
