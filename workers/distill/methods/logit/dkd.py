"""Decoupled knowledge distillation.

Softened KL mixes what the teacher says of the true class with what it says of all the others, and
damps the second by the teacher's own confidence. Weigh the two apart: beta should grow with that
confidence (2 to 8 for the published pairs of CIFAR-100). With `standardize` both networks' logits
are compared as z-scores (LSKD).

Source: Zhao et al., CVPR 2022, arXiv:2203.08679, equations 5 to 7; Sun et al., CVPR 2024,
arXiv:2403.01427.
Differs: the true class is left out by gathering the others, not by subtracting 1000 from its
logit, and both log-probabilities of the target part come from log-sum-exp; the authors' code
returns NaN or infinity for logits some hundreds apart. LSKD's paper reads as the deviation over C,
its code takes that over C - 1; both are offered, and neither unless asked for: z-scores want other
weights and temperatures.
Checked against: megvii-research/mdistiller, mdistiller/distillers/DKD.py (published values).
"""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import divergences, standardization
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.networks.interface import Features


def dkd_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return alpha * TCKD + beta * NCKD, averaged over the batch.

    Units: nats times temperature squared, so gradients keep their size (Hinton et al., 2015).
    """
    target = divergences.target_kl(student_logits, teacher_logits, labels, temperature=temperature)
    others = divergences.non_target_kl(
        student_logits, teacher_logits, labels, temperature=temperature
    )
    return temperature**2 * (alpha * target + beta * others).mean()


class DKD(LogitMethod):
    """Weigh the teacher's word on the true class and on the others apart."""

    name = "dkd"
    title = "Decoupled knowledge distillation"
    source = Source(
        "Decoupled Knowledge Distillation", venue="CVPR 2022", arxiv="2203.08679", equations="5-7"
    )
    accepts_mixed = False  # the parts are split at one true class
    smallest_classes = 2

    class Params(LogitMethod.Params):
        """Two weights, a temperature, a warm-up and a switch."""

        alpha: float = Field(
            1.0, ge=0, le=1e6, description="Weight of the target-class part (TCKD)."
        )
        beta: float = Field(
            8.0,
            ge=0,
            le=1e6,
            description="Weight of the non-target part (NCKD); larger for a surer teacher.",
        )
        temperature: float = Field(
            4.0, gt=0, le=1e4, description="Divides the logits of both networks before softmax."
        )
        warmup_epochs: int = Field(
            20,
            ge=0,
            le=100_000,
            description="Epochs over which the term fades in, as min(epoch / warmup_epochs, 1); "
            "0 starts at full weight.",
        )
        standardize: standardization.Deviation = Field(
            "none",
            description="Standard deviation by which each sample's centred logits are divided "
            "before the temperature (LSKD, arXiv 2403.01427): none is plain DKD; population is "
            "how the paper reads; sample is its authors' code, used there with alpha and beta "
            "times 9 and temperature 2.",
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the decoupled divergence, faded in."""
        params = self.params
        loss = dkd_loss(
            standardization.standardized(student.logits, by=params.standardize),
            standardization.standardized(teacher.logits, by=params.standardize),
            batch.labels,
            alpha=params.alpha,
            beta=params.beta,
            temperature=params.temperature,
        )
        return {**self.task(student, batch), "dkd": moment.ramp(params.warmup_epochs) * loss}
