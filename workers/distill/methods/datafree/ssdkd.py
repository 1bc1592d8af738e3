"""Small-scale data-free distillation.

Where a student sees a tenth of the images, they must be well chosen. While images are made, a
factor phi weighs their cross-entropy: little for classes that fill the buffer already and for
images that the teacher is sure of. While the student learns, images on which it is wrong are drawn
more often, and weights omega undo what that does to the mean. Images are made as by Fast-DFKD.

Source: Liu et al., CVPR 2024, arXiv:2406.07876.
Differs: the authors published no code, and what is public of the paper does not state its
constants, so every one of them is a parameter, marked "not established" where it is described. Not
established are gamma, beta and its schedule, alpha, epsilon, the size of the buffer and which
images leave it, the weights of the terms, the number of steps, rates and epochs of generator and
student, the temperature, whether images are meta-learned, whether phi carries a gradient, and
whether omega counts in the student's loss. Established are a tenth of the training images for each
epoch, both factors of phi, and what priorities are made of. Defaults are those of the code that the
method extends (Fast-DFKD, without its meta-learning), of the focal loss (gamma 2) and of
prioritised replay (beta 0.4). The authors' objective prints all three terms of the generator under
one maximum; distance of moments and cross-entropy are minimised here, as they must be, and only the
divergence from the student is raised. Images are to show classes that are drawn evenly, as in
Fast-DFKD; the paper speaks of the teacher's own predictions (`target` argmax). phi compares with
the buffer before the present call. A member that was drawn is measured by the same recursion as in
a refresh of all: its next weight follows from the shares after the measurement. In dense tasks phi
belongs to a position, and each is pulled to the class that the teacher decides for there.
"""

from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from workers.distill import errors
from workers.distill.config.synthesis import MetaSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, entropies, modulation
from workers.distill.functional.priorities import Priority
from workers.distill.functional.rows import per_image, rows
from workers.distill.functional.statistics import MomentMemory
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import (
    BufferStats,
    DataFreeMethod,
    Eviction,
    SynthesisBatch,
)
from workers.distill.networks.interface import Features, Network, batch_norms


def modulated_loss(
    logits: Float[Tensor, "N C *S"],
    classes: Int[Tensor, " N"] | None,
    phi: Float[Tensor, " R"],
) -> Float[Tensor, ""]:
    """Return the mean over rows of phi times cross-entropy, by default with their own classes."""
    return (phi * entropies.cross_entropies(logits, classes)).mean()


def corrected_kd(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    omega: Float[Tensor, " N"],
    *,
    temperature: float,
    normalise: bool,
) -> Float[Tensor, ""]:
    """Return the softened divergence of each image times its weight, averaged over images.

    `normalise` divides the weights by their largest in the batch. Units: nats times temperature
    squared.
    """
    apart = divergences.softened_kl(
        rows(student_logits), rows(teacher_logits), temperature=temperature
    )
    weights = omega / omega.max() if normalise else omega
    return temperature**2 * (weights * per_image(apart, len(omega))).mean()


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
            20.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss. "
            "Not established; Fast-DFKD's.",
        )
        bn_weight: float = Field(
            10.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms. At 0 "
            "the teacher needs none. Not established; Fast-DFKD's.",
        )
        onehot_weight: float = Field(
            0.5,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with the class that an image is to "
            "show. phi lowers it further. Not established; Fast-DFKD has 0.5, and 0.4 for wide "
            "residual networks.",
        )
        adversarial_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the divergence of the student from the teacher, which images "
            "are to raise. Not established; Fast-DFKD has 1.1 for wide residual networks, 1.33 for "
            "a ResNet-34, and 1 for a VGG-11.",
        )
        masked: bool = Field(
            True,
            description="Count the divergence only where both networks decide for the same class. "
            "Not established; Fast-DFKD does.",
        )
        target: Literal["random", "argmax"] = Field(
            "random",
            description="The class that an image is to show: one drawn evenly, or that which the "
            "teacher decides for. In dense tasks it is always the latter, at each position. "
            "Not established: the paper speaks of the teacher's predictions.",
        )
        bn_momentum: float = Field(
            0.9,
            ge=0,
            lt=1,
            description="Share of the moments that is remembered from earlier calls; 0 compares "
            "those of the batch alone. Not established; Fast-DFKD's.",
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
            2.0,
            ge=0,
            le=100,
            description="Exponent of the teacher's doubt in phi. Not established.",
        )
        modulation_gradient: bool = Field(
            False,
            description="Let the gradient pass through the teacher's doubt in phi. Not "
            "established.",
        )
        normalise_modulation: bool = Field(
            False,
            description="Divide phi by its mean over the batch, so that it moves weight between "
            "images and takes none away. Not in the paper.",
        )
        prioritise: bool = Field(
            True,
            description="Draw images for the student by priority: by how far the student is from "
            "the teacher on them, times their last weight. False draws evenly.",
        )
        alpha: float = Field(
            1.0,
            ge=0,
            le=10,
            description="Exponent of a priority; 0 draws evenly. Not established; 1 is the form "
            "that the paper's words describe.",
        )
        beta: float = Field(
            0.4,
            ge=0,
            lt=1,
            description="How much of uneven drawing the weights (N * probability)^-beta undo; "
            "below 1, since the weights enter the next priorities and would swing for ever. Not "
            "established.",
        )
        final_beta: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="beta after `beta_epochs` epochs, reached in equal steps; null keeps beta. "
            "Not established.",
        )
        beta_epochs: int = Field(
            200,
            ge=1,
            le=1_000_000,
            description="Epochs over which beta moves to `final_beta`; counts where that is given. "
            "Not established.",
        )
        epsilon: float = Field(
            1e-6,
            gt=0,
            le=1e3,
            description="What is added to a priority, so that each image can be drawn. Not "
            "established.",
        )
        eviction: Eviction = Field(
            "oldest",
            description="Which images a full buffer gives up: those that came first, or those of "
            "the lowest priority, which needs `prioritise`. Not established.",
        )
        correct_loss: bool = Field(
            True,
            description="Multiply an image's loss by its weight; false uses weights in priorities "
            "alone. Not established.",
        )
        normalise_weights: bool = Field(
            True,
            description="Divide the weights in the loss by the largest of the batch; those in "
            "priorities stay as they are. Not in the paper.",
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
            description="How images are invented: budget, generator, buffer. Established is "
            "`data_scale` 0.1; not established are all other numbers here, `buffer_images` (as "
            "many as `data_scale` says), `meta`, and the student's epochs, rate and optimizer in "
            "`training`. Fast-DFKD has as rates of the generator and the latent vectors 5e-3 and "
            "0.015 with 2 steps, 3e-3 and 0.01 with 5, 2e-3 and 0.01 with 10, and trains its "
            "student for 200 epochs of batches of 256 with sgd, a rate of 0.2 that falls along a "
            "cosine, momentum 0.9 and weight decay 1e-4.",
        )

        @model_validator(mode="after")
        def _priorities_are_kept(self) -> Self:
            if self.eviction == "lowest" and not self.prioritise:
                raise ValueError(
                    "eviction lowest follows priorities, which are kept only where prioritise is "
                    "true; set eviction to oldest, or prioritise to true"
                )
            return self

    params: Params
    finished_epochs: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        if self.classes < 2:
            raise errors.IncompatibleNetworks(
                f"method ssdkd needs at least 2 classes, got {self.classes}",
                teacher_classes=self.classes,
            )
        known = batch_norms(teacher) if teacher is not None and self.uses_bn_statistics else {}
        self.memory = MomentMemory(known, rate=params.bn_momentum)
        # For checkpoints; read again only when a state is loaded, as a look waits for the device.
        self.register_buffer("finished_epochs", torch.zeros((), dtype=torch.int64))
        self._finished = 0
        self.register_load_state_dict_post_hook(_recall)  # type: ignore[no-untyped-call]  # torch's stub

    @property
    def uses_bn_statistics(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return self.params.bn_weight > 0

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
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

    def phi(self, logits: Float[Tensor, "N C *S"], buffer: BufferStats) -> Float[Tensor, " R"]:
        """Return the weight of each row's cross-entropy; ones without both factors.

        The classes of an empty buffer are those of the batch itself.
        """
        params = self.params
        shares = buffer.class_shares.to(logits.dtype)
        if buffer.images == 0:
            shares = modulation.class_shares(logits).mean(0)
        gamma = params.gamma if params.difficulty else 0.0
        phi = modulation.modulation(logits, shares, gamma=gamma, diversity=params.diversity)
        if not params.modulation_gradient:
            phi = phi.detach()
        if params.normalise_modulation:
            # A buffer of one class gives nothing but zeros, which stay so.
            phi = phi / phi.mean().clamp_min(torch.finfo(phi.dtype).tiny)
        return phi

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return distance of moments, modulated cross-entropy, and the divergence taken off."""
        params, logits = self.params, shown.teacher.features.logits
        wanted = None if params.target == "argmax" else shown.targets
        phi = self.phi(logits, shown.buffer)
        return {
            "bn": shown.term(params.bn_weight, self.memory.distance, shown.teacher.norms),
            "onehot": shown.term(params.onehot_weight, modulated_loss, logits, wanted, phi),
            "adversarial": shown.against_student(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
        }

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Remember the moments of the last step."""
        if self.uses_bn_statistics:
            self.memory.remember(last.teacher.norms)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's outputs, corrected for how images were drawn."""
        params = self.params
        logits = student.logits, teacher.logits
        if batch.weights is None or not params.correct_loss:
            return {"kd": divergences.scaled_kl(*logits, temperature=params.temperature)}
        loss = corrected_kd(
            *logits,
            batch.weights,
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
