"""Small-scale data-free distillation.

A student that trains on a tenth of the images needs well-chosen ones. During synthesis a factor phi
weighs each image's cross-entropy: it is small where the target class is frequent in the buffer, and
where the teacher already sees that class for sure. During training, images with a large divergence
between student and teacher are drawn more often, and importance weights omega correct the mean for
that. Images are generated as by Fast-DFKD.

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
one maximum; moment distance and cross-entropy are minimised here, as they must be, and only the
divergence from the student is maximised. Target classes are drawn evenly, as in Fast-DFKD; the
paper mentions the teacher's own predictions (`target` argmax). phi belongs to the target, as in the
paper, where target and prediction are one: with phi of the prediction and targets at random, an
image that is surely taken for another class would never be pulled to its own. phi compares with the
buffer before the present call. A drawn member is updated by the same recursion as in a refresh of
all: its next weight follows from the shares after the update. In dense tasks phi belongs to a
position, whose target is the class that the teacher predicts there.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from workers.distill.config import chosen
from workers.distill.config.descriptions import Condition, Contradiction
from workers.distill.config.synthesis import MetaSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, entropies, modulation
from workers.distill.functional.priorities import Priority
from workers.distill.functional.rows import per_image, rows
from workers.distill.methods import parameters
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import (
    BufferStats,
    Eviction,
    SmoothedInversionMethod,
    SynthesisBatch,
)
from workers.distill.networks.interface import Features, Network

BETA_SHARE = 1.0
"""Of all epochs, over which beta changes: the 200 of the code that the method extends."""


def modulated_loss(
    logits: Float[Tensor, "N C *S"],
    classes: Int[Tensor, " N"] | None,
    phi: Float[Tensor, " R"],
) -> Float[Tensor, ""]:
    """Return the mean over rows of phi times cross-entropy.

    `classes` None takes each row's largest logit as its target.
    """
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
    divergence = divergences.softened_kl(
        rows(student_logits), rows(teacher_logits), temperature=temperature
    )
    weights = omega / omega.max() if normalise else omega
    return temperature**2 * (weights * per_image(divergence, len(omega))).mean()


class SSDKD(SmoothedInversionMethod):
    """Distil on a small buffer of synthetic images with balanced classes and difficulty."""

    name = "ssdkd"
    title = "Small-scale data-free distillation"
    source = Source(
        "Small Scale Data-Free Knowledge Distillation", venue="CVPR 2024", arxiv="2406.07876"
    )
    image_weights = ("bn_weight", "onehot_weight")
    adversarial_weights = ("adversarial_weight",)
    norm_weights = ("bn_weight",)
    warms_up_alone = False  # as in Fast-DFKD's code
    smallest_classes = 2
    contradictions = (
        Contradiction(
            when=(
                Condition(field="eviction", comparison="==", value="lowest"),
                Condition(field="prioritise", comparison="==", value=False),
            ),
            field="eviction",
            code="no_priorities",
            message="eviction lowest follows priorities, which are kept only where prioritise is "
            "true; set eviction to oldest, or prioritise to true",
        ),
    )

    class Params(SmoothedInversionMethod.Params):
        """Weights of synthesis, the factor phi, priorities, and the student's loss."""

        temperature: parameters.SoftTargetTemperature = Field(
            20.0, description=f"{parameters.SOFT_TARGET_TEMPERATURE} Not established; Fast-DFKD's."
        )
        bn_weight: parameters.BNWeight = Field(
            10.0, description=f"{parameters.BN_WEIGHT} Not established; Fast-DFKD's."
        )
        onehot_weight: parameters.OneHotWeight = Field(
            0.5,
            description=f"{parameters.ONEHOT_WEIGHT} phi lowers it further. Not established; "
            "Fast-DFKD has 0.5, and 0.4 for wide residual networks.",
        )
        adversarial_weight: parameters.AdversarialWeight = Field(
            1.0,
            description=f"{parameters.ADVERSARIAL_WEIGHT} Not established; Fast-DFKD has 1.1 for "
            "wide residual networks, 1.33 for a ResNet-34, and 1 for a VGG-11.",
        )
        masked: parameters.Masked = Field(
            True, description=f"{parameters.MASKED} Not established; Fast-DFKD does."
        )
        target: parameters.Target = Field(
            "random",
            description=f"{parameters.TARGET} Not established: the paper mentions the teacher's "
            "predictions.",
        )
        bn_momentum: parameters.BNMomentum = Field(
            0.9, description=f"{parameters.BN_MOMENTUM} Not established; Fast-DFKD's."
        )
        diversity: bool = Field(
            True,
            description="Include in phi 1 minus the share of the buffer that the teacher assigns "
            "to the target class of the image.",
        )
        difficulty: bool = Field(
            True,
            description="Include in phi (1 - the teacher's probability of the target class)^gamma.",
        )
        gamma: float = Field(
            2.0,
            ge=0,
            le=100,
            description="Exponent of 1 minus the teacher's probability of the target class in phi. "
            "Not established.",
        )
        modulation_gradient: bool = Field(
            False,
            description="Let the gradient pass through phi. Not established.",
        )
        normalise_modulation: bool = Field(
            False,
            description="Divide phi by its mean over the batch, so that its mean is 1. Not in the "
            "paper.",
        )
        prioritise: bool = Field(
            True,
            description="Draw images for the student by priority: the divergence of the student "
            "from the teacher times the image's last weight. False draws evenly.",
        )
        alpha: float = Field(
            1.0,
            ge=0,
            le=10,
            description="Exponent of a priority; 0 draws evenly. Not established; 1 is the form "
            "that the paper describes.",
        )
        beta: parameters.Decay = Field(
            0.4,
            description="Exponent of the importance weights (N * probability)^-beta; below 1, "
            "since the weights enter the next priorities, which would oscillate. Not established.",
        )
        final_beta: parameters.Decay | None = Field(
            None,
            description="beta after `beta_epochs` epochs, reached linearly; null keeps beta. "
            "Not established.",
        )
        beta_epochs: parameters.Count | None = Field(
            None,
            description="Epochs over which beta changes to `final_beta`; ignored where that is "
            "null. Null takes all `epochs`. Not established.",
            json_schema_extra={chosen.SHARE: BETA_SHARE},
        )
        epsilon: float = Field(
            1e-6,
            gt=0,
            le=1e3,
            description="Added to each priority, so that every image can be drawn. Not "
            "established.",
        )
        eviction: Eviction = Field(
            "oldest",
            description="Which images of a full buffer are replaced: the oldest, or those of the "
            "lowest priority, which needs `prioritise`. Not established.",
        )
        correct_loss: bool = Field(
            True,
            description="Multiply each image's loss by its importance weight; false uses weights "
            "in priorities alone. Not established.",
        )
        normalise_weights: bool = Field(
            False,
            description="Divide the weights in the loss by the largest of the batch, which lowers "
            "the student's rate; those in priorities are not divided. Not in the paper.",
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
            description=f"{parameters.ROUND_BUDGET} Established is "
            "`data_scale` 0.1; not established are all other numbers here, `buffer_images` (as "
            "many as `data_scale` says), `meta`, and the student's epochs, rate and optimizer in "
            "`training`. Fast-DFKD has as rates of the generator and the latent vectors 5e-3 and "
            "0.015 with 2 steps, 3e-3 and 0.01 with 5, 2e-3 and 0.01 with 10, and trains its "
            "student for 200 epochs of batches of 256 with sgd, a rate of 0.2 that falls along a "
            "cosine, momentum 0.9 and weight decay 1e-4.",
        )

    params: Params
    finished_epochs: Tensor
    beta_epochs: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        # For checkpoints; read only when a state is loaded, as reading waits for the device.
        self.register_buffer("finished_epochs", torch.zeros((), dtype=torch.int64))
        self._finished = 0
        # Those that beta changes over; 0 until the first step tells a share of which length.
        self._beta_epochs = params.beta_epochs or 0
        self.register_buffer("beta_epochs", torch.tensor(self._beta_epochs))
        self.register_load_state_dict_pre_hook(_add_beta_epochs)  # type: ignore[no-untyped-call]  # torch's stub
        self.register_load_state_dict_post_hook(_restore_finished)  # type: ignore[no-untyped-call]  # torch's stub

    @property
    def beta(self) -> float:
        """Exponent of the importance weights in the present epoch."""
        params = self.params
        if params.final_beta is None or self._finished == 0:
            return params.beta
        share = min(self._finished / self._beta_epochs, 1.0)
        return (1 - share) * params.beta + share * params.final_beta

    @property
    def priority(self) -> Priority | None:
        """Return the constants of priority sampling, or None if it is off."""
        params = self.params
        if not params.prioritise:
            return None
        return Priority(alpha=params.alpha, beta=self.beta, epsilon=params.epsilon)

    @property
    def eviction(self) -> Eviction:
        """Return which images of a full buffer are replaced."""
        return self.params.eviction

    def phi(
        self,
        logits: Float[Tensor, "N C *S"],
        buffer: BufferStats,
        targets: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, " R"]:
        """Return the weight of each row's cross-entropy; ones without both factors.

        Its class is the one that the cross-entropy aims at: the row's target, or the class that
        the teacher predicts where `targets` is None. While the buffer is empty, class shares are
        those of the batch itself.
        """
        params = self.params
        shares = buffer.class_shares.to(logits.dtype)
        if buffer.images == 0:
            shares = modulation.class_shares(logits).mean(0)
        gamma = params.gamma if params.difficulty else 0.0
        phi = modulation.modulation(
            logits, shares, gamma=gamma, diversity=params.diversity, targets=targets
        )
        if not params.modulation_gradient:
            phi = phi.detach()
        if params.normalise_modulation:
            # A buffer of one class gives only zeros, which stay zeros.
            phi = phi / phi.mean().clamp_min(torch.finfo(phi.dtype).tiny)
        return phi

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return moment distance, modulated cross-entropy and the negative divergence."""
        params, logits = self.params, batch.teacher.features.logits
        # In dense tasks a position's target is always the teacher's prediction.
        predicted = params.target == "argmax" or logits.dim() > 2
        classes = None if predicted else batch.targets
        phi = self.phi(logits, batch.buffer, classes)
        return {
            "bn": batch.term(params.bn_weight, self.memory.distance, batch.teacher.norms),
            "onehot": batch.term(params.onehot_weight, modulated_loss, logits, classes, phi),
            "adversarial": batch.student_term(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
        }

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the divergence from the teacher's outputs, with importance weights."""
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
        """Count finished epochs, on which beta depends."""
        if self._beta_epochs == 0:
            self._beta_epochs = moment.given_or_share(self.params.beta_epochs, BETA_SHARE)
            self.beta_epochs.fill_(self._beta_epochs)
        finished = moment.epoch if moment.closes_epoch else moment.epoch - 1
        if finished != self._finished:
            self._finished = finished
            self.finished_epochs.fill_(finished)


# Any: torch's own arguments of such hooks.
def _add_beta_epochs(method: SSDKD, state: dict[str, Any], prefix: str, *_: Any) -> None:
    # Checkpoints of earlier versions have none: there `beta_epochs` was always given.
    state.setdefault(f"{prefix}beta_epochs", method.beta_epochs)


def _restore_finished(
    method: SSDKD, _keys: Any
) -> None:  # Any: torch's list of keys that did not fit
    method._finished = int(method.finished_epochs)
    method._beta_epochs = int(method.beta_epochs)
