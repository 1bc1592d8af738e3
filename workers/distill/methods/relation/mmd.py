"""Maximum mean discrepancy.

A batch is a sample of the distribution of a network's embeddings. The student is trained until its
sample matches the teacher's distribution: the difference of their means under a kernel is
minimised. Single images are not compared.

Source: Zhou et al., IJCAI 2024, arXiv:2401.11824 (in its ablation, as what CKA bounds); Gretton et
al., JMLR 2012 (the biased estimate).
Differs: neither paper gives weight or bandwidth for this use. The bandwidth is by default the
median distance between all rows of a batch, without a gradient; a trained linear layer brings the
student's embedding to the teacher's width where they differ.
"""

import functools
from typing import ClassVar, Literal, TypeAlias

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.descriptions import ChosenFeature, Condition, NetworkDescription
from workers.distill.data.types import Batch
from workers.distill.functional import kernels
from workers.distill.methods.base import Moment, RelationMethod, Source, Terms, check_equal_classes
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network

KernelName: TypeAlias = Literal["linear", "polynomial", "rbf"]


def mmd_loss(
    student_rows: Float[Tensor, "N D"],
    teacher_rows: Float[Tensor, "N D"],
    *,
    kernel: KernelName,
    degree: int = 2,
    offset: float = 0.0,
    bandwidth: float | None = None,
) -> Float[Tensor, ""]:
    """Return the squared discrepancy of both sets of rows under a kernel."""
    kernel_function: kernels.Kernel
    match kernel:
        case "linear":
            return (student_rows.mean(0) - teacher_rows.mean(0)).square().sum()
        case "polynomial":
            kernel_function = functools.partial(kernels.polynomial, degree=degree, offset=offset)
        case "rbf":
            width = (
                kernels.median_bandwidth(student_rows, teacher_rows)
                if bandwidth is None
                else bandwidth
            )
            kernel_function = functools.partial(kernels.gaussian, bandwidth=width)
    return kernels.mmd(student_rows, teacher_rows, kernel_function)


class MMD(RelationMethod):
    """Match the distributions of a batch's embeddings or logits."""

    name = "mmd"
    title = "Maximum mean discrepancy"
    source = Source(
        "Rethinking Centered Kernel Alignment in Knowledge Distillation",
        venue="IJCAI 2024",
        arxiv="2401.11824",
    )
    tasks = ("classification", "embedding")

    chosen_features: ClassVar[tuple[ChosenFeature, ...]] = (
        ChosenFeature(
            role="teacher",
            feature="embedding",
            when=Condition(field="compare", comparison="==", value="pooled"),
        ),
    )
    logits_when: ClassVar[tuple[Condition, ...]] = (
        Condition(field="compare", comparison="==", value="logits"),
    )

    class Params(RelationMethod.Params):
        """A weight, what is compared, and by which kernel."""

        mmd_weight: Weight = Field(1.0, description="Weight of the discrepancy.")
        compare: Literal["pooled", "logits"] = Field(
            "pooled", description="Whether embeddings or logits are compared."
        )
        kernel: KernelName = Field(
            "rbf",
            description="linear compares means alone, polynomial moments up to its degree, rbf "
            "(a Gaussian of distances) whole distributions.",
        )
        degree: int = Field(2, ge=1, le=8, description="Degree of the polynomial kernel.")
        offset: float = Field(
            0.0, ge=0, le=1e6, description="Added to inner products by the polynomial kernel."
        )
        bandwidth: float | None = Field(
            None,
            gt=0,
            le=1e6,
            description="Width of the rbf kernel; null takes the median distance in the batch.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.projection: nn.Linear | None = None
        widths = (student.pooled_width, 0 if teacher is None else teacher.pooled_width)
        if params.compare == "pooled" and teacher is not None and not widths[1]:
            lacking = NetworkDescription(
                teacher.reference, shows=frozenset(), limits=teacher.limits
            )
            errors.refuse(
                rules.of_chosen_features(self.describe(), params.model_dump(), "teacher", lacking),
                errors.IncompatibleNetworks,
            )
        if params.compare == "pooled" and teacher is not None:
            teacher.enable_features(("embedding",))
        if params.compare == "logits" and teacher is not None:
            check_equal_classes(self.name, student, teacher)
        elif widths[0] != widths[1]:
            self.projection = nn.Linear(*widths)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the discrepancy."""
        params = self.params
        compares_logits = params.compare == "logits"
        student_rows = student.logits if compares_logits else student.pooled
        if self.projection is not None:
            student_rows = self.projection(student_rows)
        loss = mmd_loss(
            student_rows,
            teacher.logits if compares_logits else teacher.pooled,
            kernel=params.kernel,
            degree=params.degree,
            offset=params.offset,
            bandwidth=params.bandwidth,
        )
        return {**self.task(student, batch), "mmd": params.mmd_weight * loss}
