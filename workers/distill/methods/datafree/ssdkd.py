"""Small-scale data-free distillation.

Where a student sees a tenth of the images, they must be well chosen. While images are made, a
factor phi weighs their cross-entropy: little for classes that fill the buffer already and for
images that the teacher is sure of. While the student learns, images on which it is wrong are drawn
more often, and weights omega undo what that does to the mean. Images are made as by Fast-DFKD.

Source: Liu et al., CVPR 2024, arXiv:2406.07876.
Differs: the authors published no code, and what is public does not state the constants, so every
one of them is a parameter. Not established are gamma, beta and its schedule, epsilon, the size of
the buffer and which images leave it, the weights of the terms, the number of steps, rates and
epochs, the temperature, and whether images are meta-learned, phi carries a gradient, and omega
counts in the student's loss. Defaults are those of the code that the method extends (Fast-DFKD),
of the focal loss (gamma 2) and of prioritised replay (beta 0.4). The authors' objective prints all
three terms of the generator under one maximum; distance of moments and cross-entropy are
minimised here, as they must be, and only the divergence from the student is raised. In dense tasks
phi belongs to a position, and each is pulled to the class that the teacher sees there.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from workers.distill import errors
from workers.distill.functional.adversaries import discrepancy
from workers.distill.functional.divergences import softened_kl
from workers.distill.functional.modulation import class_shares, modulation
from workers.distill.functional.priorities import Priority
from workers.distill.functional.rows import per_image, rows
from workers.distill.functional.statistics import MomentMemory
from workers.distill.method import Batch, Moment, Source, Terms
from workers.distill.networks.interface import Features, Network, batch_norms
from workers.distill.synthesis import (
    DataFreeMethod,
    Eviction,
    Invented,
    MetaSynthesis,
    Stock,
    aims,
)


def modulated_loss(
    logits: Float[Tensor, "N C *S"], aimed: Int[Tensor, " R"], phi: Float[Tensor, " R"]
) -> Float[Tensor, ""]:
    """Return the mean over rows of phi times cross-entropy with the class that is aimed at."""
    return (phi * cross_entropy(rows(logits), aimed, reduction="none")).mean()


def corrected_kd(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    omega: Float[Tensor, " N"] | None,
    *,
    temperature: float,
    normalise: bool,
) -> Float[Tensor, ""]:
    """Return the softened divergence of each image times its weight, averaged over images.

    `normalise` divides the weights by their largest in the batch; None counts all as 1. Units:
    nats times temperature squared.
    """
    student, teacher = rows(student_logits), rows(teacher_logits)
    apart = softened_kl(student, teacher, temperature=temperature)
    if omega is not None:
        weights = omega / omega.max() if normalise else omega
        apart = weights * per_image(apart, len(student_logits))
    return temperature**2 * apart.mean()


class SSDKD(DataFreeMethod):
    """Learn from a small buffer of invented images, whose kinds and difficulty are balanced."""

    name = "ssdkd"
    title = "Small-scale data-free distillation"
    source = Source(
        "Small Scale Data-Free Knowledge Distillation", venue="CVPR 2024", arxiv="2406.07876"
    )

    class Params(DataFreeMethod.Params):
        """Weights of synthesis, the factor phi, priorities, and the student's loss."""

        temperature: float = Field(
            20.0, gt=0, le=1e4, description="Divides the logits of both networks before softmax."
        )
        bn_weight: float = Field(
            10.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms.",
        )
        onehot_weight: float = Field(
            0.5,
            ge=0,
            le=1e6,
            description="Weight of cross-entropy with the class that an image is to show, which "
            "phi lowers further.",
        )
        adversarial_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the teacher's divergence from the student, which images are to "
            "raise.",
        )
        masked: bool = Field(
            True,
            description="Count the divergence only where both networks decide for one class.",
        )
        target: Literal["random", "argmax"] = Field(
            "random",
            description="The class that an image is to show: one drawn evenly, or that which the "
            "teacher sees most of.",
        )
        bn_momentum: float = Field(
            0.9,
            ge=0,
            lt=1,
            description="Share of the moments that is remembered from earlier calls; 0 compares "
            "those of the batch alone.",
        )
        diversity: bool = Field(
            True,
            description="Let phi lower the cross-entropy of classes that fill the buffer: 1 minus "
            "the share of the buffer that the teacher takes for the image's class.",
        )
        difficulty: bool = Field(
            True,
            description="Let phi lower the cross-entropy of images that the teacher is sure of: "
            "(1 - its largest probability)^gamma.",
        )
        gamma: float = Field(
            2.0, ge=0, le=100, description="Exponent of the teacher's doubt in phi."
        )
        modulation_gradient: bool = Field(
            False, description="Let the gradient pass through the teacher's doubt in phi."
        )
        normalise_modulation: bool = Field(
            False,
            description="Divide phi by its mean over the batch, so that it moves weight between "
            "images and takes none away.",
        )
        prioritise: bool = Field(
            True,
            description="Draw images for the student by priority: by how far the student is from "
            "the teacher on them, times their last weight. False draws evenly.",
        )
        alpha: float = Field(
            1.0, ge=0, le=10, description="Exponent of a priority; 0 draws evenly."
        )
        beta: float = Field(
            0.4,
            ge=0,
            lt=1,
            description="How much of uneven drawing the weights (N * probability)^-beta undo; "
            "below 1, since the weights enter the next priorities and would swing for ever.",
        )
        final_beta: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="beta after `beta_epochs` epochs, reached in equal steps; null keeps beta.",
        )
        beta_epochs: int = Field(
            200,
            ge=1,
            le=1_000_000,
            description="Epochs over which beta moves to `final_beta`; counts where that is given.",
        )
        epsilon: float = Field(
            1e-6,
            gt=0,
            le=1e3,
            description="What is added to a priority, so that each image can be drawn.",
        )
        eviction: Eviction = Field(
            "oldest",
            description="Which images a full buffer gives up: those that came first, or those of "
            "the lowest priority.",
        )
        correct_loss: bool = Field(
            True,
            description="Multiply an image's loss by its weight; false uses weights in priorities "
            "alone.",
        )
        normalise_weights: bool = Field(
            True,
            description="Divide the weights in the loss by the largest of the batch; those in "
            "priorities stay as they are.",
        )
        synthesis: MetaSynthesis = Field(
            MetaSynthesis(
                steps=5,
                student_steps=None,
                data_scale=0.1,
                warmup_calls=20,
                learning_rate=3e-3,
                latent_learning_rate=0.01,
            ),
            description="How images are invented: budget, generator, buffer. The code that the "
            "method extends has as rates of the generator and the latent vectors 5e-3 and 0.015 "
            "with 2 steps, 3e-3 and 0.01 with 5, 2e-3 and 0.01 with 10.",
        )

    params: Params
    finished_epochs: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        if self.classes < 2:
            raise errors.IncompatibleNetworks(
                f"method ssdkd needs at least 2 classes, got {self.classes}",
                teacher_classes=self.classes,
            )
        known = batch_norms(teacher) if teacher is not None and self.reads_norms else {}
        self.memory = MomentMemory(known, rate=params.bn_momentum)
        # For checkpoints; read again only when a state is loaded, as a look waits for the device.
        self.register_buffer("finished_epochs", torch.zeros((), dtype=torch.int64))
        self._finished = 0
        self.register_load_state_dict_post_hook(_recall)  # type: ignore[no-untyped-call]  # torch's stub

    @property
    def reads_norms(self) -> bool:
        """Whether the distance of moments counts."""
        return self.params.bn_weight > 0

    @property
    def competes(self) -> bool:
        """Whether images are to raise the teacher's divergence from the student."""
        return self.params.adversarial_weight > 0

    @property
    def beta(self) -> float:
        """How much of uneven drawing the weights undo in the present epoch."""
        params = self.params
        if params.final_beta is None:
            return params.beta
        share = min(self._finished / params.beta_epochs, 1.0)
        return (1 - share) * params.beta + share * params.final_beta

    @property
    def priority(self) -> Priority | None:
        """Return the constants of priority sampling, unless it is switched off."""
        params = self.params
        if not params.prioritise:
            return None
        return Priority(alpha=params.alpha, beta=self.beta, epsilon=params.epsilon)

    @property
    def eviction(self) -> Eviction:
        """Return which images leave a full buffer."""
        return self.params.eviction

    def phi(self, logits: Float[Tensor, "N C *S"], stock: Stock) -> Float[Tensor, " R"]:
        """Return the weight of each row's cross-entropy; ones without both factors.

        The classes of an empty buffer are those of the batch itself.
        """
        params = self.params
        shares = stock.class_shares.to(logits.dtype)
        if stock.images == 0:
            shares = class_shares(logits).mean(0)
        gamma = params.gamma if params.difficulty else 0.0
        phi = modulation(logits, shares, gamma=gamma, diversity=params.diversity)
        if not params.modulation_gradient:
            phi = phi.detach()
        if params.normalise_modulation:
            # A buffer of one class gives nothing but zeros, which stay so.
            phi = phi / phi.mean().clamp_min(torch.finfo(phi.dtype).tiny)
        return phi

    def synthesis_terms(self, shown: Invented) -> Terms:
        """Return distance of moments, modulated cross-entropy, and the divergence taken off."""
        params, logits = self.params, shown.teacher.features.logits
        aimed = aims(logits, shown.targets, predicted=params.target == "argmax")
        # At least a zero without gradient, so that each step has all terms.
        bn = adversarial = logits.new_zeros(())
        if self.reads_norms:
            bn = params.bn_weight * self.memory.distance(shown.teacher.norms)
        if self.competes and shown.student is not None:
            apart = discrepancy(shown.student.features.logits, logits, masked=params.masked)
            adversarial = -params.adversarial_weight * apart
        onehot = modulated_loss(logits, aimed, self.phi(logits, shown.stock))
        return {"bn": bn, "onehot": params.onehot_weight * onehot, "adversarial": adversarial}

    def after_call(self, last: Invented, kept: Invented) -> None:
        """Remember the moments of the last step."""
        if self.reads_norms:
            self.memory.remember(last.teacher.norms)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, corrected for the drawing."""
        params = self.params
        loss = corrected_kd(
            student.logits,
            teacher.logits,
            batch.weights if params.correct_loss else None,
            temperature=params.temperature,
            normalise=params.normalise_weights,
        )
        return {"kd": loss}

    def after_step(self, moment: Moment) -> None:
        """Count the epochs that are over, which beta follows."""
        finished = moment.epoch if moment.closes_epoch else moment.epoch - 1
        if finished != self._finished:
            self._finished = finished
            self.finished_epochs.fill_(finished)


def _recall(method: SSDKD, _keys: Any) -> None:  # Any: torch's list of keys that did not fit
    method._finished = int(method.finished_epochs)
