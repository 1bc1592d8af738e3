"""Data-free learning of student networks.

A generator is trained so that the teacher's outputs for its images resemble those for real ones:
confident, with strong features, and with all classes equally frequent. The student is distilled on
the images that the generator makes during its training.

Source: Chen et al., ICCV 2019, arXiv:1904.01186.
Differs: the defaults are those of CMI's benchmark (Fang et al., IJCAI 2021): another generator,
natural logarithms in the balance term, and several steps of the student on new images for each of
the generator. The authors make one joint step on the same images (`student_steps` 1, `reuse`
images) and end their generator in a batch norm, not a sigmoid. A class that never appears is
counted with probability 1e-12, where their logarithm is infinite.
Checked against: zju-vipa/CMI, datafree/synthesis/generative.py (terms; published values).
"""

from typing import ClassVar, Literal, TypeAlias

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.functional import adversaries, entropies
from workers.distill.methods import parameters
from workers.distill.methods.base import FeatureName, Source, Terms
from workers.distill.methods.datafree.base import SoftTargetMethod, SynthesisBatch

Logarithm: TypeAlias = Literal["e", "10"]


def activation_loss(pooled: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return the negative mean of |features|; minimising it makes features strong."""
    return -pooled.abs().mean()


class DAFL(SoftTargetMethod):
    """Distil on generated images for which the teacher is confident, strong and balanced."""

    name = "dafl"
    title = "Data-free learning"
    source = Source("Data-Free Learning of Student Networks", venue="ICCV 2019", arxiv="1904.01186")
    needs = ("teacher", "equal_classes")
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("embedding",)
    synthesizer = "stream"
    image_weights = ("onehot_weight", "balance_weight", "activation_weight")

    class Params(SoftTargetMethod.Params):
        """A temperature for the student, three weights for the generator, and the budget."""

        temperature: parameters.SoftTargetTemperature = 1.0
        onehot_weight: parameters.OneHotWeight = Field(
            1.0,
            description=f"{parameters.PREDICTED_ONEHOT_WEIGHT} Published: "
            "1 on MNIST, 0.05 on CIFAR-10, 0.5 on CIFAR-100.",
        )
        balance_weight: parameters.Weight = Field(
            20.0,
            description="Weight of the negative entropy of the mean class distribution. Published: "
            "5 on MNIST and CIFAR-10, 20 on CIFAR-100, all with `balance_base` 10.",
        )
        balance_base: Logarithm = Field(
            "e", description="Base of the logarithm in that entropy; the authors' code has 10."
        )
        activation_weight: parameters.Weight = Field(
            0.001,
            description="Weight of the mean strength of the features before the classifier. "
            "Published: 0.1 on MNIST and CIFAR-100, 0.01 on CIFAR-10.",
        )
        synthesis: StreamSynthesis = Field(
            parameters.STREAM.model_copy(update={"latent_size": 512}),
            description=f"{parameters.STREAM_BUDGET} Published: `student_steps` 1, `reuse` images "
            "and `calls_per_epoch` 120, with `latent_size` 100, `batch_size` 512 and "
            "`learning_rate` 0.2 on MNIST, 1000, 1024 and 0.02 on CIFAR-10.",
        )

    params: Params

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return the teacher's cross-entropy, class imbalance and negative feature strength."""
        params, features = self.params, batch.teacher.features
        return {
            "onehot": batch.term(
                params.onehot_weight, entropies.mean_cross_entropy, features.logits
            ),
            "balance": batch.term(
                params.balance_weight,
                adversaries.class_balance,
                features.logits,
                base_ten=params.balance_base == "10",
            ),
            "activation": batch.term(params.activation_weight, activation_loss, features.pooled),
        }
