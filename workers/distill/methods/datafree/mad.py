"""Momentum adversarial distillation.

A generator that competes with the student moves on from what the student has just learned, and the
student forgets. So half of what the student sees comes from a moving average of the generator,
which changes slowly and still makes what earlier generators made.

Source: Do et al., NeurIPS 2022, arXiv:2209.10359.
Differs: that both generators have the same share of a batch is our choice. The average keeps less
of itself in its first calls than `average_decay` says, since it would long remember the random
start; 0.95 is the usual value, not checked against the paper. For data sets of many
classes the paper conditions the generator on a class; here it never is. The terms of the generator
are those of DFQ without the balance of classes, with the weights of CMI's benchmark (Fang et al.,
IJCAI 2021), not the paper's own.
"""

from pydantic import Field

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, entropies, statistics
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features


class MAD(DataFreeMethod):
    """Remind the student of what the generator used to make."""

    name = "mad"
    title = "Momentum adversarial distillation"
    source = Source(
        "Momentum Adversarial Distillation: Handling Large Distribution Shifts in Data-Free "
        "Knowledge Distillation",
        venue="NeurIPS 2022",
        arxiv="2209.10359",
    )
    synthesizer = "stream"

    class Params(DataFreeMethod.Params):
        """A temperature for the student, three weights for the generator, and the budget."""

        temperature: float = Field(
            1.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        adversarial_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the divergence of the student from the teacher, which images "
            "are to raise.",
        )
        bn_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms. At 0 "
            "the teacher needs none.",
        )
        onehot_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with the class that an image is to "
            "show. That is the class that the teacher decides for.",
        )
        synthesis: StreamSynthesis = Field(
            StreamSynthesis(
                steps=1,
                student_steps=10,
                calls_per_epoch=40,
                buffer_images=1024,
                augmentation="none",
                generator="large",
                average_decay=0.95,
            ),
            description="How images are invented: budget and generator, of which `average_decay` "
            "is the method's own. The buffer keeps the newest images to be looked at, the student "
            "never sees them again.",
        )

    params: Params

    @property
    def uses_bn_statistics(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return self.params.bn_weight > 0

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
        return self.params.adversarial_weight > 0

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return the agreement of both networks, and how far images are from real ones."""
        params, logits = self.params, shown.teacher.features.logits
        return {
            "adversarial": shown.against_student(
                -params.adversarial_weight, adversaries.discrepancy, masked=False
            ),
            "bn": shown.term(params.bn_weight, statistics.moment_distance, shown.teacher.norms),
            "onehot": shown.term(params.onehot_weight, entropies.mean_cross_entropy, logits),
        }

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's outputs, on images of both generators."""
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}
