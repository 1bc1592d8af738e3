"""DeepInversion: images from a teacher's batch norms.

A trained network's batch norms remember the moments of all that it has seen. Pixels that begin as
noise are moved until the teacher sees the wanted class in them and its batch norms receive maps of
those moments, while a prior keeps them smooth. With competition (adaptive DeepInversion) images
are to be those, too, on which the student differs from the teacher.

Source: Yin et al., CVPR 2020, arXiv:1912.08795, equations 2 to 8.
Differs: defaults of competition and of the student's moments are those of a later benchmark (Fang
et al., IJCAI 2021), whose numbers for the method are cited most; set `competition_weight` and
`student_bn_weight` to 0 for plain DeepInversion. Competition ends at a divergence of 1, as in the
authors' code, unless told otherwise. The norm of images is the mean of an image's, as in their code
for ImageNet, not that of the whole batch. Classes of a batch take turns; where there are more
classes than images, each call draws as many different ones as it has images, so that no class is
left out. In dense tasks each position is pulled to the class that the teacher sees there.
Checked against: NVlabs/DeepInversion, cifar10/deepinversion_cifar10.py; zju-vipa/Fast-Datafree,
datafree/synthesis/deepinversion.py (weights and schedule).
"""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from workers.distill.functional.adversaries import clamped_js
from workers.distill.functional.divergences import softened_kl
from workers.distill.functional.rows import rows
from workers.distill.functional.statistics import mean_norm, moment_distance, total_variation_l2
from workers.distill.method import Batch, Moment, Source, Terms
from workers.distill.networks.interface import Features
from workers.distill.synthesis import DataFreeMethod, Invented, PixelSynthesis, aims


def competition(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    *,
    clamped: bool,
) -> Float[Tensor, ""]:
    """Return a loss that falls as both networks differ: 1 - divergence, in 0..1, or -divergence.

    Source: equation 8, and the authors' code, for the clamped form.
    """
    apart = clamped_js(student_logits, teacher_logits)
    return 1 - apart.clamp(0, 1) if clamped else -apart


class DeepInversion(DataFreeMethod):
    """Learn from pixels that were moved until they fit the teacher's batch norms."""

    name = "deepinversion"
    title = "DeepInversion"
    source = Source(
        "Dreaming to Distill: Data-Free Knowledge Transfer via DeepInversion",
        venue="CVPR 2020",
        arxiv="1912.08795",
        equations="2-8",
    )
    inverter = "pixels"
    wants_student_norms = True

    class Params(DataFreeMethod.Params):
        """Weights of synthesis, and the student's temperature."""

        temperature: float = Field(
            20.0, gt=0, le=1e4, description="Divides the logits of both networks before softmax."
        )
        bn_weight: float = Field(
            10.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms.",
        )
        onehot_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of cross-entropy with the class that an image is to show.",
        )
        tv_weight: float = Field(
            1e-3,
            ge=0,
            le=1e6,
            description="Weight of the differences of neighbouring pixels: their Euclidean norm "
            "over the batch, after normalisation, summed over four directions.",
        )
        l2_weight: float = Field(
            0.0,
            ge=0,
            le=1e6,
            description="Weight of an image's Euclidean norm after normalisation, averaged over "
            "images.",
        )
        competition_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of making images on which the student differs from the teacher "
            "(adaptive DeepInversion); 0 is plain DeepInversion.",
        )
        competition_clamped: bool = Field(
            True,
            description="End competition at a divergence of 1, as the authors do; false goes on.",
        )
        student_bn_weight: float = Field(
            1e-3,
            ge=0,
            le=1e6,
            description="Share of `bn_weight` by which images are to move away from the moments "
            "in the student's batch norms; the authors have none.",
        )
        balanced: bool = Field(
            True,
            description="Let classes take turns in a batch; false draws each image's class.",
        )
        synthesis: PixelSynthesis = Field(
            PixelSynthesis(steps=1000),
            description="How images are invented: budget, pixels, buffer.",
        )

    params: Params

    def targets(self, count: int) -> Int[Tensor, " N"]:
        """Return classes in turn, or drawn evenly where they shall not be balanced."""
        if not self.params.balanced:
            return super().targets(count)
        turns = torch.arange(count) % self.classes
        # In the authors' order, unless some classes would never have a turn.
        return torch.randperm(self.classes)[turns] if count < self.classes else turns

    @property
    def reads_norms(self) -> bool:
        """Whether the distance of moments counts."""
        return self.params.bn_weight > 0

    @property
    def competes(self) -> bool:
        """Whether anything counts of what the student sees."""
        params = self.params
        return params.competition_weight > 0 or params.bn_weight * params.student_bn_weight > 0

    def synthesis_terms(self, shown: Invented) -> Terms:
        """Return distance of moments, cross-entropy, priors, and both terms of the student."""
        params, logits = self.params, shown.teacher.features.logits
        aimed = aims(logits, shown.targets, predicted=False)
        # At least a zero without gradient, so that each step has all terms.
        nothing = logits.new_zeros(())
        bn = smoothness = size = nothing
        if self.reads_norms:
            bn = params.bn_weight * moment_distance(shown.teacher.norms)
        if params.tv_weight > 0:
            smoothness = params.tv_weight * total_variation_l2(shown.seen)
        if params.l2_weight > 0:
            size = params.l2_weight * mean_norm(shown.seen)
        return {
            "bn": bn,
            "onehot": params.onehot_weight * cross_entropy(rows(logits), aimed),
            "tv": smoothness,
            "l2": size,
            "competition": nothing,
            "student_bn": nothing,
            **self._student_terms(shown),
        }

    def _student_terms(self, shown: Invented) -> Terms:
        params, terms = self.params, Terms()
        if shown.student is None:
            return terms
        if params.competition_weight > 0:
            loss = competition(
                shown.student.features.logits,
                shown.teacher.features.logits,
                clamped=params.competition_clamped,
            )
            terms["competition"] = params.competition_weight * loss
        weight = params.bn_weight * params.student_bn_weight
        # A student without batch norms has no moments to move away from.
        if weight > 0 and shown.student.norms:
            terms["student_bn"] = -weight * moment_distance(shown.student.norms)
        return terms

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, in nats times temperature^2."""
        temperature = self.params.temperature
        apart = softened_kl(rows(student.logits), rows(teacher.logits), temperature=temperature)
        return {"kd": temperature**2 * apart.mean()}
