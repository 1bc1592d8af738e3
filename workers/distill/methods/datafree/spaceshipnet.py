"""Feature exchange and activation regions.

Exchanging half of the channels between two images of a batch inside the generator gives new, more
diverse images. They are noisier, too; so the student matches not only the teacher's outputs but
also its class activation maps, that is where its evidence for each class lies.

Source: Yu et al., CVPR 2023, "Data-Free Knowledge Distillation via Feature Exchange and Activation
Region Constraint".
Differs: channels are exchanged once, in the last step of a call, whose images are kept; the authors
keep the maps inside the generator, of 8 to 64 thousand numbers an image, and exchange those of
random pairs anew at each of the student's steps. Partners are of one batch. Regions are compared on
class activation maps alone: the authors also compare Grad-CAM maps of earlier stages, which need
the gradient of the teacher's logits with respect to its stages, and the teacher's forward pass has
no graph. Maps of different sizes are compared at the smaller one. KL is summed over classes; the
authors' code averages it over them, so that there the maps weigh as with a `cam_weight` that is
multiplied by the number of classes. Each call starts with a new generator, as in CMI; the published
code keeps one generator, as `renews` false does.
Checked against: skgyu/SpaceshipNet, model_CFE_mSARC_base_V37.py (weights and schedule).
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from workers.distill.config.descriptions import Condition, Contradiction
from workers.distill.config.job import Task
from workers.distill.config.synthesis import LatentSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import classifiers, divergences, entropies, maps, statistics
from workers.distill.methods import parameters
from workers.distill.methods.base import FeatureName, Moment, Source, Terms
from workers.distill.methods.datafree.base import InversionMethod, SynthesisBatch
from workers.distill.networks import generators
from workers.distill.networks.interface import Features, Network

PLACES = 3
"""Maps may be exchanged before the first block, the second, and what follows it."""


def exchanged(maps_in: Float[Tensor, "N k i j"]) -> Float[Tensor, "N k i j"]:
    """Return maps in which each image has half of its own channels and half of another's.

    The channels are drawn for each image; the other images are a random order of the batch.
    """
    images, channels = maps_in.shape[:2]
    partners = torch.randperm(images, device=maps_in.device)
    order = torch.rand(images, channels, device=maps_in.device).argsort(1)
    own = order < channels // 2
    return torch.where(own[:, :, None, None], maps_in, maps_in[partners])


def region_loss(
    student_maps: Float[Tensor, "N C h w"], teacher_maps: Float[Tensor, "N C i j"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of class activation maps, at the smaller size."""
    return mse_loss(*maps.pool_to_smaller(student_maps, teacher_maps))


class ExchangeGenerator(generators.Convolutional):
    """A generator that exchanges channels between images in the last step of a call."""

    def __init__(self, made_of: generators.Parts, *, steps: int, probability: float) -> None:
        super().__init__(made_of)
        self.steps = steps
        self.probability = probability
        self._step = 0
        self._place: int | None = None

    def start_round(self) -> None:
        """Set the step counter to 0 for a new call."""
        self._step = 0

    def forward(self, latent: Float[Tensor, "N *z"]) -> Float[Tensor, "N c h w"]:
        """Return images with pixels in 0..1; in training mode, count this as a step."""
        self._place = None
        if self.training:
            self._step += 1
            # Drawn on the host: no step waits for the device.
            if self._step == self.steps and float(torch.rand(())) < self.probability:
                self._place = int(torch.randint(PLACES, ()))
        return super().forward(latent)

    def between(self, grown: Float[Tensor, "N k i j"], place: int) -> Float[Tensor, "N k i j"]:
        """Return the maps, with channels exchanged if this is the drawn place."""
        return exchanged(grown) if place == self._place else grown

    def get_extra_state(self) -> int:
        """Return the number of steps of the call, to be saved with the weights."""
        return self._step

    def set_extra_state(self, state: Any) -> None:  # Any: torch types it so
        """Load the number of steps of the call."""
        self._step = state


class SpaceshipNet(InversionMethod):
    """Distil outputs and class activation maps on images with exchanged channels."""

    name = "spaceshipnet"
    title = "Feature exchange and activation regions"
    source = Source(
        "Data-Free Knowledge Distillation via Feature Exchange and Activation Region Constraint",
        venue="CVPR 2023",
    )
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("final", "classifier")
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("final", "classifier")
    renews_generator = True
    image_weights = ("bn_weight", "onehot_weight")
    norm_weights = ("bn_weight",)
    contradictions = (
        Contradiction(
            when=(
                Condition(field="exchange_probability", comparison=">", value=0),
                Condition(field="synthesis.keep", comparison="!=", value="last"),
            ),
            field="synthesis.keep",
            code="exchange_not_kept",
            message="synthesis.keep is {synthesis.keep}, and channels are exchanged in the last "
            "step of a call; set synthesis.keep to last, or exchange_probability to 0",
        ),
    )

    class Params(InversionMethod.Params):
        """Weights of synthesis and of the student's terms, and how channels are exchanged."""

        temperature: parameters.SoftTargetTemperature = 30.0
        cam_weight: parameters.Weight = Field(
            1.0,
            description="Weight of the difference of class activation maps in the student's loss.",
        )
        bn_weight: parameters.BNWeight = 1.0
        onehot_weight: parameters.OneHotWeight = 0.5
        exchange_probability: parameters.Share = Field(
            0.7,
            description="Share of calls whose images exchange channels, at one of three places.",
        )
        renews: bool = Field(
            True, description="Start each call with a new generator; false keeps one."
        )
        synthesis: LatentSynthesis = Field(
            LatentSynthesis(
                steps=200,
                student_steps=2000,
                learning_rate=1e-3,
                latent_learning_rate=0,
                keep="last",
            ),
            description=f"{parameters.ROUND_BUDGET} Channels are exchanged in the last step, so "
            "`keep` must be last.",
        )

    params: Params
    weight: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        weight, _ = classifiers.frozen(teacher.pooled_classifier() if teacher else None)
        self.register_buffer("weight", weight, persistent=False)
        # In a tuple, so that it stays the student's own and is not saved twice.
        self._classifier: tuple[nn.Linear | None] = (student.pooled_classifier(),)

    def make_generator(self) -> ExchangeGenerator:
        """Return a new generator that exchanges channels."""
        budget = self.params.synthesis
        made_of = generators.parts(
            budget.generator,
            image_shape=self.image_shape,
            latent_size=budget.latent_size,
            width=budget.width,
        )
        probability = self.params.exchange_probability
        return ExchangeGenerator(made_of, steps=budget.steps, probability=probability)

    def renews_at(self, call: int) -> bool:
        """Whether calls start with a new generator."""
        return self.params.renews

    def targets(self, count: int) -> Int[Tensor, " N"]:
        """Return all classes in turn, cycle after cycle."""
        return self.in_turn(count)

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return moment distance and cross-entropy."""
        params, logits = self.params, batch.teacher.features.logits
        return {
            "bn": batch.term(params.bn_weight, statistics.moment_distance, batch.teacher.norms),
            "onehot": batch.term(
                params.onehot_weight, entropies.mean_cross_entropy, logits, batch.targets
            ),
        }

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the divergence of outputs (nats times temperature squared) and of activation maps.

        The second gives the student's classifier no gradient, as in the authors' code.
        """
        return {
            "kd": divergences.scaled_kl(
                student.logits, teacher.logits, temperature=self.params.temperature
            ),
            "cam": self.params.cam_weight * self._regions(student, teacher),
        }

    def _regions(self, student: Features, teacher: Features) -> Float[Tensor, ""]:
        (classifier,) = self._classifier
        weight, _ = classifiers.layer(classifier)
        return region_loss(
            classifiers.class_maps(classifiers.last_map(student.final), weight.detach()),
            classifiers.class_maps(classifiers.last_map(teacher.final), self.weight),
        )
