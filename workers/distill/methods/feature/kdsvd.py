"""Distillation by singular value decomposition.

Each stage's maps are reduced to their leading singular vectors. The student matches the teacher's
radial kernel between the vectors of one stage and those of the stage before.

Source: Lee, Kim and Song, ECCV 2018, arXiv:1807.06819.
Differs: two public codes lay out a stage's matrix in two ways. By default its rows are the rows of
all its maps, so vectors have the length of the width, as in MDistiller; the larger map is pooled
first, so that any pair of networks can be compared. With `layout: channels` a row is a position and
vectors have the length of the channels, as in RepDistiller; those must be equally many. Signs of
singular vectors are arbitrary: the teacher's are turned so that their largest entry is positive,
the student's follow the teacher's. Vectors come from the Gram matrix, in float32 at least, and
where singular values are equal up to rounding the gradient between their vectors, which is
infinite, is zero. Where the networks have different numbers of stages, each of the fewer is paired
with the one closest in size, in order, instead of cutting the longer list.
Checked against: megvii-research/mdistiller, mdistiller/distillers/KDSVD.py (published values).
"""

import itertools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import maps, singular
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.feature.base import StagePairsMethod
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Shape

Layout: TypeAlias = Literal["width", "channels"]
MORE = 3
"""The student keeps so many more vectors, since its order of them may differ."""


def kdsvd_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, vectors: int, layout: Layout
) -> Float[Tensor, ""]:
    """Return the squared difference of kernels between neighbouring stages.

    It is summed over kernels and stages, and averaged over the batch; maps are [N, c, h, w],
    shallow to deep.
    """
    condensed = [
        _condense(one, other, vectors=vectors, layout=layout)
        for one, other in zip(student_maps, teacher_maps, strict=True)
    ]
    losses = []
    for (before, taught_before), (after, taught_after) in itertools.pairwise(condensed):
        difference = _kernel(after, before) - _kernel(taught_after, taught_before)
        losses.append(difference.square().sum() / len(difference))
    return torch.stack(losses).sum()


def _condense(
    student: Float[Tensor, "N c h w"],
    teacher: Float[Tensor, "N d i j"],
    *,
    vectors: int,
    layout: Layout,
) -> tuple[Float[Tensor, "N p k"], Float[Tensor, "N p k"]]:
    """Return the vectors of both, aligned and scaled by the teacher's singular values."""
    student, teacher = maps.at_least_float(student), maps.at_least_float(teacher)
    if layout == "width":
        student, teacher = maps.pool_to_smaller(student, teacher)
    ours, theirs = _matrices(student, layout), _matrices(teacher, layout)
    teacher_vectors, values = singular.right_vectors(theirs, vectors)
    teacher_vectors = teacher_vectors * _largest_sign(teacher_vectors)
    student_vectors, _ = singular.right_vectors(ours, min(vectors + MORE, *ours.shape[1:]))
    scale = F.normalize(values, dim=1)[:, None]
    return _align(student_vectors, teacher_vectors) * scale, teacher_vectors * scale


def _matrices(stage: Float[Tensor, "N c h w"], layout: Layout) -> Float[Tensor, "N r p"]:
    return stage.flatten(1, 2) if layout == "width" else stage.flatten(2).mT


def _largest_sign(vectors: Float[Tensor, "N p k"]) -> Float[Tensor, "N 1 k"]:
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def _align(
    student_vectors: Float[Tensor, "N p m"], teacher_vectors: Float[Tensor, "N p k"]
) -> Float[Tensor, "N p k"]:
    """Return for each vector of the teacher the most similar of the student's, same sign."""
    cosines = (student_vectors.mT @ teacher_vectors).detach()
    best = cosines.abs().amax(1, keepdim=True)
    return student_vectors @ torch.where(cosines.abs() == best, cosines.sign(), 0)


def _kernel(
    after: Float[Tensor, "N p k"], before: Float[Tensor, "N q k"]
) -> Float[Tensor, "N p q k"]:
    return torch.exp(-(after[:, :, None] - before[:, None]).square() / 8)


class KDSVD(StagePairsMethod):
    """Match the kernels between singular vectors of neighbouring stages."""

    name = "kdsvd"
    title = "Distillation by singular value decomposition"
    source = Source(
        "Self-supervised Knowledge Distillation Using Singular Value Decomposition",
        venue="ECCV 2018",
        arxiv="1807.06819",
    )
    tasks = ("classification", "embedding")

    class Params(StagePairsMethod.Params):
        """A weight, a number of vectors and a layout."""

        kdsvd_weight: Weight = Field(1.0, description="Weight of the kernels' difference.")
        vectors: int = Field(
            1, ge=1, le=64, description="Singular vectors that are kept of each stage."
        )
        layout: Layout = Field(
            "width",
            description="Axis of the vectors: width, the rows of the maps; channels, which must be "
            "equally many and cost more.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        given, wanted = self.student_shapes.stages, self.teacher_shapes.stages
        names = {
            "student": student.reference,
            "teacher": "" if teacher is None else teacher.reference,
        }
        if len(self.pairs) < 2:
            raise errors.IncompatibleNetworks(
                f"method kdsvd compares neighbouring stages, so it needs at least 2; the student "
                f"{names['student']} returns {len(given)}, the teacher {names['teacher']} "
                f"{len(wanted)}",
                **names,
            )
        for one, other in self.pairs:
            mismatch = _mismatch(params, given[one], wanted[other])
            if mismatch:
                raise errors.IncompatibleNetworks(
                    f"method kdsvd cannot compare stage {one + 1} of the student "
                    f"{names['student']}, {given[one]}, with stage {other + 1} of the teacher "
                    f"{names['teacher']}, {wanted[other]} (channels, height, width): {mismatch}",
                    **names,
                )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the kernels' difference."""
        loss = kdsvd_loss(
            *self.paired(student, teacher),
            vectors=self.params.vectors,
            layout=self.params.layout,
        )
        return {**self.task(student, batch), "kdsvd": self.params.kdsvd_weight * loss}


def _mismatch(params: KDSVD.Params, given: Shape, wanted: Shape) -> str | None:
    """Return why a pair of stages does not fit the parameters, if it does not."""
    if params.layout == "channels" and given[0] != wanted[0]:
        return "layout channels needs equal channels; choose layout width"
    if params.layout == "channels":
        most = min(given[0], given[1] * given[2], wanted[1] * wanted[2])
    else:
        height, width = min(given[1], wanted[1]), min(given[2], wanted[2])
        most = min(width, height * min(given[0], wanted[0]))
    if params.vectors > most:
        return f"it has {most} singular vectors at most; choose vectors of that or less"
    return None
