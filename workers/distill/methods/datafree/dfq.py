"""Data-free adversarial distillation with the teacher's statistics.

A generator is trained to make images on which student and teacher disagree. Three terms keep its
images near real ones: the inputs of the teacher's batch norms must have the stored moments, the
teacher must be confident, and all classes must be equally frequent.

Source: Choi et al., CVPR Workshops 2020, arXiv:2005.04136.
Differs: the paper distils into a quantised student; as in CMI's benchmark (Fang et al., IJCAI
2021), from which all weights come, the student here keeps its precision. Its batch norms are
matched by the Euclidean distance of moments, not by a divergence of Gaussians.
Checked against: zju-vipa/CMI, datafree/synthesis/generative.py (terms; published values).
"""

from pydantic import Field

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.functional import adversaries, entropies, statistics
from workers.distill.methods import parameters
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.datafree.base import AdversarialInversionMethod, SynthesisBatch


class DFQ(AdversarialInversionMethod):
    """Distil on images where the student is wrong, near the teacher's training data."""

    name = "dfq"
    title = "Data-free adversarial distillation with the teacher's statistics"
    source = Source(
        "Data-Free Network Quantization With Adversarial Knowledge Distillation",
        venue="CVPR Workshops 2020",
        arxiv="2005.04136",
    )
    synthesizer = "stream"
    image_weights = ("bn_weight", "onehot_weight", "balance_weight")
    adversarial_weights = ("adversarial_weight",)
    norm_weights = ("bn_weight",)

    class Params(AdversarialInversionMethod.Params):
        """A temperature for the student, four weights for the generator, and the budget."""

        temperature: parameters.SoftTargetTemperature = 1.0
        adversarial_weight: parameters.AdversarialWeight = 1.0
        bn_weight: parameters.BNWeight = 1.0
        onehot_weight: parameters.PredictedOneHotWeight = 1.0
        balance_weight: parameters.Weight = Field(
            20.0,
            description="Weight of the negative entropy of the mean class distribution.",
        )
        synthesis: StreamSynthesis = Field(
            parameters.STREAM_OF_TEN, description=parameters.STREAM_BUDGET
        )

    params: Params

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return the negative divergence, moment distance, cross-entropy and class balance."""
        params, logits = self.params, batch.teacher.features.logits
        return {
            "adversarial": batch.student_term(
                -params.adversarial_weight, adversaries.discrepancy, masked=False
            ),
            "bn": batch.term(params.bn_weight, statistics.moment_distance, batch.teacher.norms),
            "onehot": batch.term(params.onehot_weight, entropies.mean_cross_entropy, logits),
            "balance": batch.term(params.balance_weight, adversaries.class_balance, logits),
        }
