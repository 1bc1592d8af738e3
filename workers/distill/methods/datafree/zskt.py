"""Zero-shot knowledge transfer.

A generator is trained to make images on which student and teacher disagree, and the student is
trained to agree with the teacher on them.

Source: Micaelli and Storkey, NeurIPS 2019, arXiv:1905.09768.
Differs: the defaults are those of CMI's benchmark (Fang et al., IJCAI 2021): no attention transfer,
divergences summed over classes, another generator, 5 steps of the student on new images. The
authors' weight of 250 belongs to their mean over classes too (`element_mean`). The student is in
evaluation mode while images are generated; theirs stays in training mode, so that its batch norms
are updated by images that it is not trained on. Attention maps of different sizes are compared at
the smaller one. The generator's divergence keeps temperature 1.
Checked against: polo5/ZeroShotKnowledgeTransfer, solver.py; zju-vipa/CMI,
datafree/synthesis/generative.py (published values).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill import errors
from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, maps
from workers.distill.methods import parameters
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import SoftTargetMethod, SynthesisBatch
from workers.distill.networks import shapes
from workers.distill.networks.interface import Features, Network


def attention_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of attention maps, summed over pairs of maps [N, c, h, w].

    Means are over images and positions.
    """
    distances = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        pair = maps.pool_to_smaller(maps.at_least_float(student), maps.at_least_float(teacher))
        ours, theirs = (maps.attention(each, power=2.0) for each in pair)
        distances.append((ours - theirs).square().mean())
    return torch.stack(distances).sum()


class ZSKT(SoftTargetMethod):
    """Distil on images on which the student disagrees with the teacher."""

    name = "zskt"
    title = "Zero-shot knowledge transfer"
    source = Source(
        "Zero-shot Knowledge Transfer via Adversarial Belief Matching",
        venue="NeurIPS 2019",
        arxiv="1905.09768",
    )
    needs = ("teacher", "equal_classes")
    synthesizer = "stream"
    learns_from_student_only = True

    class Params(SoftTargetMethod.Params):
        """Temperature, attention weight and scale of the student's loss, and the budget."""

        temperature: parameters.SoftTargetTemperature = 1.0
        attention_weight: parameters.Weight = Field(
            0.0,
            description="Weight of attention transfer, which needs networks with equally many "
            "stages. Published: 250, with `element_mean`.",
        )
        element_mean: bool = Field(
            False,
            description="Divide divergences by the number of classes, as the authors' code does.",
        )
        synthesis: StreamSynthesis = Field(
            parameters.STREAM,
            description=f"{parameters.STREAM_BUDGET} Published: `student_steps` 10 with `reuse` "
            "latent, `batch_size` 128, `latent_size` 100 and `clip_norm` 5.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        if params.attention_weight > 0 and teacher is not None:
            _check_stages(student, teacher)

    @property
    def uses_student(self) -> bool:
        """Whether the loss of synthesis uses the student's outputs: always."""
        return True

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return the negative divergence between student and teacher."""
        weight = -1 / self._divisor(batch.teacher.features.logits)
        adversarial = batch.student_term(weight, adversaries.discrepancy, masked=False)
        return {"adversarial": adversarial}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the divergence from the teacher's outputs, and that of the attention maps."""
        params = self.params
        kd = divergences.scaled_kl(student.logits, teacher.logits, temperature=params.temperature)
        attention = student.logits.new_zeros(())
        if params.attention_weight > 0:
            attention = params.attention_weight * attention_loss(student.stages, teacher.stages)
        return {"kd": kd / self._divisor(student.logits), "attention": attention}

    def _divisor(self, logits: Float[Tensor, "N C *S"]) -> int:
        return logits.shape[1] if self.params.element_mean else 1


def _check_stages(student: Network, teacher: Network) -> None:
    """Raise `IncompatibleNetworks` unless both networks return maps of equally many stages."""
    counts = []
    for network in (student, teacher):
        network.enable_features(("stages",))
        counts.append(len(shapes.measure(network).stages))
    if counts[0] != counts[1] or counts[0] == 0:
        raise errors.IncompatibleNetworks(
            "method zskt compares attention stage by stage, so both networks must return "
            f"equally many; the student returns {counts[0]}, the teacher {counts[1]}; set "
            "attention_weight to 0, or choose another student",
            student_stages=counts[0],
            teacher_stages=counts[1],
        )
