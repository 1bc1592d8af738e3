"""Fast data-free distillation by a meta-learned generator.

Images of one class that match the moments in the teacher's batch norms have much in common. So a
generator that is meta-learned as an initialisation reaches them in a few steps, where methods that
start from fresh weights need hundreds. Batch-norm moments are smoothed over calls, since one batch
of images need not match those of the whole training set.

Source: Fang et al., AAAI 2022, arXiv:2112.06253, equations 2 to 8.
Differs: published for classification; in dense tasks the target of each position is the class that
the teacher predicts there, as a whole image has no single class. Its variant for ImageNet, which
also meta-learns the latent vectors, is left out.
Checked against: zju-vipa/Fast-Datafree, datafree/synthesis/fast_meta.py (weights and schedule).
"""

from pydantic import Field

from workers.distill.config.synthesis import MetaSynthesis
from workers.distill.functional import adversaries, entropies
from workers.distill.methods import parameters
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.datafree.base import SmoothedInversionMethod, SynthesisBatch


class Fast(SmoothedInversionMethod):
    """Distil on images that a meta-learned generator makes in a few steps."""

    name = "fast"
    title = "Fast data-free distillation"
    source = Source(
        "Up to 100x Faster Data-Free Knowledge Distillation",
        venue="AAAI 2022",
        arxiv="2112.06253",
        equations="2-8",
    )
    image_weights = ("bn_weight", "onehot_weight")
    adversarial_weights = ("adversarial_weight",)
    norm_weights = ("bn_weight",)
    warms_up_alone = False  # as the authors count their calls

    class Params(SmoothedInversionMethod.Params):
        """Weights and smoothing of synthesis, the student's temperature, and the budget."""

        temperature: parameters.SoftTargetTemperature = 20.0
        bn_weight: parameters.BNWeight = 10.0
        onehot_weight: parameters.OneHotWeight = Field(
            0.5,
            description=f"{parameters.ONEHOT_WEIGHT} Published: 0.5, and 0.4 for wide residual "
            "networks.",
        )
        adversarial_weight: parameters.AdversarialWeight = Field(
            1.0,
            description=f"{parameters.ADVERSARIAL_WEIGHT} Published: 1.1 for wide residual "
            "networks, 1.33 for a ResNet-34, and 1 for a VGG-11.",
        )
        masked: parameters.Masked = True
        target: parameters.Target = "random"
        bn_momentum: parameters.BNMomentum = 0.9
        synthesis: MetaSynthesis = Field(
            MetaSynthesis(
                steps=5,
                warmup_calls=20,
                learning_rate=3e-3,
                latent_learning_rate=0.01,
                meta="fomaml",
                restart_epoch=120,
            ),
            description=f"{parameters.ROUND_BUDGET} Published learning rates of the generator and "
            "the latent vectors: 5e-3 and 0.015 with 2 steps, 3e-3 and 0.01 with 5, 2e-3 and 0.01 "
            "with 10.",
        )

    params: Params

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return moment distance, cross-entropy and the negative divergence."""
        params, logits = self.params, batch.teacher.features.logits
        classes = None if params.target == "argmax" else batch.targets
        return {
            "bn": batch.term(params.bn_weight, self.memory.distance, batch.teacher.norms),
            "onehot": batch.term(
                params.onehot_weight, entropies.mean_cross_entropy, logits, classes
            ),
            "adversarial": batch.student_term(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
        }
