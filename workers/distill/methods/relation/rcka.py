"""Relation-based centred kernel alignment.

The student matches the teacher's similarities instead of its values: those between the images of a
batch by their logits and by their last feature maps, and those between classes by their logits over
the batch. Each of the three terms is 1 - CKA, between 0 and 1.

Source: Zhou et al., IJCAI 2024, arXiv:2401.11824 (CKA: Kornblith et al., ICML 2019,
arXiv:1905.00414).
Differs: kernels are centred, as the definition says; the released code leaves that out (`centered:
false`) and can divide each row of a kernel by the norm of its image (`row_norm`), which makes it
asymmetric. Both together are in neither paper nor code: here the released, divided kernel is
centred, so that `centered` means the same with and without `row_norm`. Terms are 1 - CKA, not -CKA:
same gradient, never negative. A term with too few rows (fewer than 3 images or classes if centred)
is 0. The weights of the logit terms are those of the authors' classification code; the feature
term's could not be read and is set equal. Maps are flattened as they are, without the
transformation that the paper allows.
Checked against: Klayand/PCKA, released code (published values).
"""

from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import classifiers, kernels
from workers.distill.methods.base import FeatureName, Moment, Need, RelationMethod, Source, Terms
from workers.distill.methods.parameters import Centered, Weight
from workers.distill.networks.interface import Features


def samples_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    *,
    centered: bool,
    row_norm: bool = False,
    temperature: float | None = None,
) -> Float[Tensor, ""]:
    """Return 1 - CKA of the images, by their logits or, softened, by their probabilities."""
    if temperature is not None:
        student_logits = (student_logits / temperature).softmax(1)
        teacher_logits = (teacher_logits / temperature).softmax(1)
    return kernels.cka_gap(student_logits, teacher_logits, centered=centered, row_norm=row_norm)


def classes_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    *,
    centered: bool,
    row_norm: bool = False,
) -> Float[Tensor, ""]:
    """Return 1 - CKA of the classes, by their logits over the batch."""
    return kernels.cka_gap(
        student_logits.mT, teacher_logits.mT, centered=centered, row_norm=row_norm
    )


def features_loss(
    student_maps: Float[Tensor, "N c h w"],
    teacher_maps: Float[Tensor, "N d i j"],
    *,
    centered: bool,
    row_norm: bool = False,
) -> Float[Tensor, ""]:
    """Return 1 - CKA of the images, by their flattened maps; shapes may differ."""
    return kernels.cka_gap(
        student_maps.flatten(1), teacher_maps.flatten(1), centered=centered, row_norm=row_norm
    )


class RCKA(RelationMethod):
    """Align the similarities between images and between classes."""

    name = "rcka"
    title = "Relation-based centred kernel alignment"
    source = Source(
        "Rethinking Centered Kernel Alignment in Knowledge Distillation",
        venue="IJCAI 2024",
        arxiv="2401.11824",
    )
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("final",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("final",)
    smallest_batch = 3

    class Params(RelationMethod.Params):
        """Three weights, and how kernels are made."""

        samples_weight: Weight = Field(
            15.0, description="Weight of the similarities between images by their logits."
        )
        classes_weight: Weight = Field(
            15.0, description="Weight of the similarities between classes by their logits."
        )
        features_weight: Weight = Field(
            15.0,
            description="Weight of the similarities between images by their last maps.",
        )
        centered: Centered = True
        row_norm: bool = Field(
            False,
            description="Divide each row of a kernel by the norm of its sample, as the released "
            "code can; before centring, where `centered` is on.",
        )
        temperature: float | None = Field(
            None,
            gt=0,
            le=1e4,
            description="Softens the logits of the samples term into probabilities; null compares "
            "the logits as they are.",
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and one term for samples, classes and features each."""
        params = self.params
        centered, row_norm = params.centered, params.row_norm
        samples = classes = features = student.logits.new_zeros(())
        pair = (student.logits, teacher.logits)
        if params.samples_weight:
            samples = samples_loss(
                *pair, centered=centered, row_norm=row_norm, temperature=params.temperature
            )
        if params.classes_weight:
            classes = classes_loss(*pair, centered=centered, row_norm=row_norm)
        if params.features_weight:
            final = (classifiers.last_map(student.final), classifiers.last_map(teacher.final))
            features = features_loss(*final, centered=centered, row_norm=row_norm)
        return {
            **self.task(student, batch),
            "rcka_samples": params.samples_weight * samples,
            "rcka_classes": params.classes_weight * classes,
            "rcka_features": params.features_weight * features,
        }
