"""Data-free learning of student networks.

A generator is trained so that the teacher answers its images as it answers real ones: surely, with
strong features, and each class as often as the others. The student imitates the teacher on what
the generator makes along the way.

Source: Chen et al., ICCV 2019, arXiv:1904.01186.
Differs: the defaults are those of CMI's benchmark (Fang et al., IJCAI 2021): another generator,
natural logarithms in the balance term, and several steps of the student on new images for each of
the generator. The authors make one joint step on the same images (`student_steps` 1, `reuse`
images) and end their generator in a batch norm, not a sigmoid. A class that never appears is
counted with probability 1e-12, where their logarithm is infinite.
Checked against: zju-vipa/CMI, datafree/synthesis/generative.py (terms; published values).
"""

from typing import Literal, TypeAlias

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, entropies
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features

Logarithm: TypeAlias = Literal["e", "10"]


def activation_loss(pooled: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return the negative mean of |features|: the stronger they are, the less."""
    return -pooled.abs().mean()


class DAFL(DataFreeMethod):
    """Invent images that the teacher answers as it answers real ones."""

    name = "dafl"
    title = "Data-free learning"
    source = Source("Data-Free Learning of Student Networks", venue="ICCV 2019", arxiv="1904.01186")
    needs = ("teacher", "equal_classes")
    synthesizer = "stream"

    class Params(DataFreeMethod.Params):
        """A temperature for the student, three weights for the generator, and the budget."""

        temperature: float = Field(
            1.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        onehot_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with the class that an image is to "
            "show. That is the class that the teacher decides for. Published: 1 on MNIST, "
            "0.05 on CIFAR-10, 0.5 on CIFAR-100.",
        )
        balance_weight: float = Field(
            20.0,
            ge=0,
            le=1e6,
            description="Weight of the negative entropy of the mean class distribution. Published: "
            "5 on MNIST and CIFAR-10, 20 on CIFAR-100, all with `balance_base` 10.",
        )
        balance_base: Logarithm = Field(
            "e", description="Base of the logarithm in that entropy; the authors' code has 10."
        )
        activation_weight: float = Field(
            0.001,
            ge=0,
            le=1e6,
            description="Weight of the mean strength of the features before the classifier. "
            "Published: 0.1 on MNIST and CIFAR-100, 0.01 on CIFAR-10.",
        )
        synthesis: StreamSynthesis = Field(
            StreamSynthesis(
                steps=1,
                student_steps=5,
                calls_per_epoch=80,
                buffer_images=1024,
                augmentation="none",
                generator="large",
                latent_size=512,
            ),
            description="How images are invented: budget and generator. The buffer keeps the "
            "newest images to be looked at, the student never sees them again. Published: "
            "`student_steps` 1, `reuse` images and `calls_per_epoch` 120, with `latent_size` 100, "
            "`batch_size` 512 and `learning_rate` 0.2 on MNIST, 1000, 1024 and 0.02 on CIFAR-10.",
        )

    params: Params

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return how unsure, how uneven and how weak the teacher's answers are."""
        params, seen = self.params, shown.teacher.features
        return {
            "onehot": shown.term(params.onehot_weight, entropies.mean_cross_entropy, seen.logits),
            "balance": shown.term(
                params.balance_weight,
                adversaries.class_balance,
                seen.logits,
                base_ten=params.balance_base == "10",
            ),
            "activation": shown.term(params.activation_weight, activation_loss, seen.pooled),
        }

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, in nats times temperature^2."""
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}
