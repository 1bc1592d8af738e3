"""Decoupled knowledge distillation.

Softened KL mixes the divergence of the true class's probability with that among all other classes,
and scales the second by the teacher's uncertainty. Here both have their own weights: beta should
grow with the teacher's confidence (2 to 8 for the published pairs of CIFAR-100). With `standardize`
both networks' logits are compared as z-scores (LSKD).

Source: Zhao et al., CVPR 2022, arXiv:2203.08679, equations 5 to 7; Sun et al., CVPR 2024,
arXiv:2403.01427.
Differs: the true class is left out by gathering the others, not by subtracting 1000 from its logit,
and both log-probabilities of the target part come from log-sum-exp; the authors' code returns NaN
or infinity for logits some hundreds apart. LSKD's paper reads as the deviation over C, its code
takes that over C - 1; both are available, neither is the default: z-scores need other weights and
temperatures.
Checked against: megvii-research/mdistiller, mdistiller/distillers/DKD.py (published values).
"""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import divergences, standardization
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.methods.parameters import (
    WARMUP_SHARE,
    NCKDWeight,
    SharedWarmupEpochs,
    TCKDWeight,
    Temperature,
)
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
    return divergences.decoupled_kl(
        student_logits, teacher_logits, labels, alpha=alpha, beta=beta, temperature=temperature
    ).mean()


class DKD(LogitMethod):
    """Weigh the divergences of the true class and of the others separately."""

    name = "dkd"
    title = "Decoupled knowledge distillation"
    source = Source(
        "Decoupled Knowledge Distillation", venue="CVPR 2022", arxiv="2203.08679", equations="5-7"
    )
    accepts_mixed = False  # the parts are split at one true class
    smallest_classes = 2

    class Params(LogitMethod.Params):
        """Two weights, a temperature, a warm-up and a switch."""

        alpha: TCKDWeight = 1.0
        beta: NCKDWeight = 8.0
        temperature: Temperature = 4.0
        warmup_epochs: SharedWarmupEpochs = None
        standardize: standardization.Deviation = Field(
            "none",
            description="Standard deviation by which each sample's centred logits are divided "
            "before the temperature (LSKD, arXiv 2403.01427): none is plain DKD; population is "
            "how the paper reads; sample is its authors' code, used there with alpha and beta "
            "times 9 and temperature 2.",
        )

    params: Params

    @property
    def is_auto_balanced(self) -> bool:
        """Whether the logits are standardized: their loss has no scale of its own."""
        return self.params.standardize != "none"

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the decoupled divergence, with its warm-up."""
        params = self.params
        warmup = moment.given_or_share(params.warmup_epochs, WARMUP_SHARE)
        loss = dkd_loss(
            standardization.standardized(student.logits, by=params.standardize),
            standardization.standardized(teacher.logits, by=params.standardize),
            batch.labels,
            alpha=params.alpha,
            beta=params.beta,
            temperature=params.temperature,
        )
        return {**self.task(student, batch), "dkd": moment.ramp(warmup) * loss}
