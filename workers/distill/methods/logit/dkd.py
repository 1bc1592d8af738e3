"""Decoupled knowledge distillation.

Softened KL mixes the divergence of the true class's probability with that among all other classes,
and scales the second by the teacher's uncertainty. Here both have their own weights: beta should
grow with the teacher's confidence (2 to 8 for the published pairs of CIFAR-100), and `auto` takes
it from there. `samples` distils the other classes from the half of the training images alone of
whose true class the teacher is most, or least, confident. With `standardize` both networks' logits
are compared as z-scores (LSKD).

Source: Zhao et al., CVPR 2022, arXiv:2203.08679, equations 5 to 7, table 5 (`samples`); Sun et al.,
CVPR 2024, arXiv:2403.01427.
Differs: the true class is left out by gathering the others, not by subtracting 1000 from its logit,
and both log-probabilities of the target part come from log-sum-exp; the authors' code returns NaN
or infinity for logits some hundreds apart. LSKD's paper reads as the deviation over C, its code
takes that over C - 1; both are available, neither is the default: z-scores need other weights and
temperatures. The paper wants beta to grow with the teacher's confidence and gives no rule: `auto`
is ours, the teacher's log-odds of the true class, averaged over the unaugmented training images and
held between 1 and 10. `samples` ranks those images by the same log-odds once, before training; an
image that is left out counts as 0 in the batch's mean, so that all others weigh what they always
weigh.
Checked against: megvii-research/mdistiller, mdistiller/distillers/DKD.py (published values).
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from workers.distill.config.descriptions import Condition, Contradiction
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
from workers.distill.networks.interface import Features, Network

SMALLEST_BETA, LARGEST_BETA = 1.0, 10.0
"""Bounds of the automatic beta: 1 leaves both parts alike, and no published beta is above 10."""


def dkd_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    *,
    alpha: float,
    beta: float | Float[Tensor, " N"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return alpha * TCKD + beta * NCKD, averaged over the batch; `beta` may be each image's own.

    Units: nats times temperature squared, so gradients keep their size (Hinton et al., 2015).
    """
    return divergences.decoupled_kl(
        student_logits, teacher_logits, labels, alpha=alpha, beta=beta, temperature=temperature
    ).mean()


class DKD(LogitMethod):
    """Weigh the divergences of the true class and of the others separately."""

    name = "dkd"
    auto_balanced = True  # weights that were tuned for one number of classes
    title = "Decoupled knowledge distillation"
    source = Source(
        "Decoupled Knowledge Distillation", venue="CVPR 2022", arxiv="2203.08679", equations="5-7"
    )
    accepts_mixed = False  # the parts are split at one true class
    smallest_classes = 2
    reads_labels = True
    contradictions: ClassVar[tuple[Contradiction, ...]] = (
        Contradiction(
            when=(
                Condition(field="samples", comparison="==", value="all"),
                Condition(field="share", comparison="!=", value=0.5),
            ),
            field="share",
            code="no_samples_chosen",
            message="share {share} has no effect while samples is all; set samples to "
            "most_confident or least_confident, or leave share out",
        ),
    )

    class Params(LogitMethod.Params):
        """Two weights, of which images, a temperature, a warm-up and a switch."""

        alpha: TCKDWeight = 1.0
        beta: NCKDWeight | Literal["auto"] = Field(
            8.0,
            description="Weight of the non-target part (NCKD); larger if the teacher is confident. "
            "auto: the teacher's log-odds of the true class in nats, averaged over the training "
            "images, at least 1 and at most 10; the result's `method.beta` tells which.",
        )
        samples: Literal["all", "most_confident", "least_confident"] = Field(
            "all",
            description="Of which training images the non-target part counts, by the teacher's "
            "probability of their true class: all; the most confident `share`; or the least "
            "confident one.",
        )
        share: float = Field(
            0.5,
            gt=0,
            lt=1,
            description="Share of the training images that `samples` chooses; counts unless that "
            "is all.",
        )
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
    auto_beta: Tensor | None
    chosen: Tensor | None

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        # Filled before training; in checkpoints, so that a resumed run has the very same.
        self.register_buffer("auto_beta", None)
        self.register_buffer("chosen", None)

    @property
    def reads_teacher_first(self) -> bool:
        """Whether the teacher's confidence decides about beta or the images."""
        return self.params.beta == "auto" or self.params.samples != "all"

    def read_teacher(self, outputs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take beta from the teacher's confidence, and rank the training images by it."""
        params = self.params
        odds = torch.cat([divergences.log_odds(logits, labels) for labels, logits in outputs])
        if params.beta == "auto":
            self.auto_beta = odds.mean().clamp(SMALLEST_BETA, LARGEST_BETA)
        if params.samples != "all":
            order = odds.argsort(descending=params.samples == "most_confident", stable=True)
            # One image at least: a share of nothing would leave the part out without a word.
            count = max(1, round(params.share * len(odds)))
            self.chosen = torch.zeros_like(odds, dtype=torch.bool)
            self.chosen[order[:count]] = True

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Return the automatic beta, and of how many images the non-target part counts."""
        facts: dict[str, Any] = {}
        if self.auto_beta is not None:
            facts["beta"] = round(float(self.auto_beta), 4)
        if self.chosen is not None:
            facts[self.params.samples] = int(self.chosen.sum())
        return facts

    def beta_of(self, batch: Batch) -> float | Float[Tensor, " N"]:
        """Return the weight of the non-target part, each image's own unless one is given for all.

        Raises `RuntimeError` where the teacher's outputs were to be read before, and were not.
        """
        params = self.params
        auto = self.auto_beta if params.beta == "auto" else params.beta
        if auto is None or (params.samples != "all" and self.chosen is None):
            raise RuntimeError(
                "method dkd has not read the teacher's outputs for the training split before its "
                "first step"
            )
        weight = auto.expand(len(batch.index)) if isinstance(auto, Tensor) else auto
        return weight if self.chosen is None else weight * self.chosen[batch.index]

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the decoupled divergence, with its warm-up."""
        params = self.params
        warmup = moment.given_or_share(params.warmup_epochs, WARMUP_SHARE)
        loss = dkd_loss(
            standardization.standardized(student.logits, by=params.standardize),
            standardization.standardized(teacher.logits, by=params.standardize),
            batch.labels,
            alpha=params.alpha,
            beta=self.beta_of(batch),
            temperature=params.temperature,
        )
        return {**self.task(student, batch), "dkd": moment.ramp(warmup) * loss}
