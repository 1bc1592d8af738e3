"""Fast data-free distillation by a meta-learned generator.

Images that show a class and stir the teacher's batch norms as real ones did have much in common.
So a generator that is meta-learned to be a good start reaches them in a few steps, where methods
that begin anew need hundreds. The moments that batch norms see are smoothed over calls, since one
batch of images need not have all of the training set's.

Source: Fang et al., AAAI 2022, arXiv:2112.06253, equations 2 to 8.
Differs: published for classification; in dense tasks each position is pulled to the class that the
teacher decides for there, as one class means nothing for a whole image. Its variant for ImageNet,
which also meta-learns the latent vectors, is left out.
Checked against: zju-vipa/Fast-Datafree, datafree/synthesis/fast_meta.py (weights and schedule).
"""

from typing import Literal

from pydantic import Field

from workers.distill.config.synthesis import MetaSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, entropies
from workers.distill.functional.statistics import MomentMemory
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features, Network, batch_norms


class Fast(DataFreeMethod):
    """Learn from images that a meta-learned generator makes in a few steps."""

    name = "fast"
    title = "Fast data-free distillation"
    source = Source(
        "Up to 100x Faster Data-Free Knowledge Distillation",
        venue="AAAI 2022",
        arxiv="2112.06253",
        equations="2-8",
    )

    class Params(DataFreeMethod.Params):
        """Three weights of synthesis, its memory, and the student's temperature."""

        temperature: float = Field(
            20.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        bn_weight: float = Field(
            10.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms. At 0 "
            "the teacher needs none.",
        )
        onehot_weight: float = Field(
            0.5,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with the class that an image is to "
            "show. Published: 0.5, and 0.4 for wide residual networks.",
        )
        adversarial_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the divergence of the student from the teacher, which images "
            "are to raise. Published: 1.1 for wide residual networks, 1.33 for a ResNet-34, and 1 "
            "for a VGG-11.",
        )
        masked: bool = Field(
            True,
            description="Count the divergence only where both networks decide for the same class.",
        )
        target: Literal["random", "argmax"] = Field(
            "random",
            description="The class that an image is to show: one drawn evenly, or that which the "
            "teacher decides for. In dense tasks it is always the latter, at each position.",
        )
        bn_momentum: float = Field(
            0.9,
            ge=0,
            lt=1,
            description="Share of the moments that is remembered from earlier calls; 0 compares "
            "those of the batch alone.",
        )
        synthesis: MetaSynthesis = Field(
            MetaSynthesis(
                steps=5,
                warmup_calls=20,
                learning_rate=3e-3,
                latent_learning_rate=0.01,
                meta="fomaml",
                restart_epoch=120,
            ),
            description="How images are invented: budget, generator, buffer. Published rates of "
            "the generator and the latent vectors: 5e-3 and 0.015 with 2 steps, 3e-3 and 0.01 "
            "with 5, 2e-3 and 0.01 with 10.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        known = batch_norms(teacher) if teacher is not None and self.uses_bn_statistics else {}
        self.memory = MomentMemory(known, rate=params.bn_momentum)

    @property
    def uses_bn_statistics(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return self.params.bn_weight > 0

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
        return self.params.adversarial_weight > 0

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return distance of moments, cross-entropy, and the divergence taken off."""
        params, logits = self.params, shown.teacher.features.logits
        wanted = None if params.target == "argmax" else shown.targets
        return {
            "bn": shown.term(params.bn_weight, self.memory.distance, shown.teacher.norms),
            "onehot": shown.term(
                params.onehot_weight, entropies.mean_cross_entropy, logits, wanted
            ),
            "adversarial": shown.against_student(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
        }

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Remember the moments of the last step, as the authors' code does."""
        if self.uses_bn_statistics:
            self.memory.remember(last.teacher.norms)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, in nats times temperature^2."""
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}
