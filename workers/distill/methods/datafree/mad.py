"""Momentum adversarial distillation.

A generator trained against the student keeps changing its images, and the student forgets earlier
ones. So half of each of the student's batches comes from an exponential moving average of the
generator, which changes slowly and still makes images like those of earlier generators.

Source: Do et al., NeurIPS 2022, arXiv:2209.10359.
Differs: that both generators have the same share of a batch is our choice. In its first calls the
average decays faster than `average_decay` says, so that the random initial weights are forgotten
soon; 0.95 is the usual value, not checked against the paper. For data sets of many classes the
paper conditions the generator on a class; here it never is. The terms of the generator are those of
DFQ without the balance of classes, with the weights of CMI's benchmark (Fang et al., IJCAI 2021),
not the paper's own.
"""

from pydantic import Field

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.functional import adversaries, entropies, statistics
from workers.distill.methods import parameters
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.datafree.base import AdversarialInversionMethod, SynthesisBatch


class MAD(AdversarialInversionMethod):
    """Distil on images of the present generator and of its moving average."""

    name = "mad"
    title = "Momentum adversarial distillation"
    source = Source(
        "Momentum Adversarial Distillation: Handling Large Distribution Shifts in Data-Free "
        "Knowledge Distillation",
        venue="NeurIPS 2022",
        arxiv="2209.10359",
    )
    synthesizer = "stream"
    image_weights = ("bn_weight", "onehot_weight")
    adversarial_weights = ("adversarial_weight",)
    norm_weights = ("bn_weight",)

    class Params(AdversarialInversionMethod.Params):
        """A temperature for the student, three weights for the generator, and the budget."""

        temperature: parameters.SoftTargetTemperature = 1.0
        adversarial_weight: parameters.AdversarialWeight = 1.0
        bn_weight: parameters.BNWeight = 1.0
        onehot_weight: parameters.PredictedOneHotWeight = 1.0
        synthesis: StreamSynthesis = Field(
            parameters.STREAM_OF_TEN.model_copy(update={"average_decay": 0.95}),
            description=f"{parameters.STREAM_BUDGET} `average_decay` is the method's own.",
        )

    params: Params

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return the negative divergence, moment distance and cross-entropy."""
        params, logits = self.params, batch.teacher.features.logits
        return {
            "adversarial": batch.student_term(
                -params.adversarial_weight, adversaries.discrepancy, masked=False
            ),
            "bn": batch.term(params.bn_weight, statistics.moment_distance, batch.teacher.norms),
            "onehot": batch.term(params.onehot_weight, entropies.mean_cross_entropy, logits),
        }
