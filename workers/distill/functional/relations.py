"""Relations between the rows of a batch: distances, angles, cosines, correlations.

Every function stays finite, with a finite gradient, for equal rows, for rows of zeros and for a
single row: where a direction does not exist it is the zero vector, and no gradient passes.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workers.distill.functional import divergences

SHORTEST = 1e-12
"""Vectors no longer than this have no direction."""
ROUNDING = 8
"""So many units in the last place a row may vary and still count as constant."""
CORRELATION_EPS = 1e-8
"""Added to the product of lengths by DIST's authors."""


class CorrelationGaps(NamedTuple):
    """How far the probabilities of two networks are from correlated: in each row, each column."""

    inter: Float[Tensor, ""]
    intra: Float[Tensor, ""]


def unit_vectors(vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Return vectors of length 1; those without a direction become zero."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    # Divided by infinity, not by a small number, which would turn rounding into huge gradients.
    return vectors / lengths.masked_fill(lengths <= SHORTEST, math.inf)


def pairwise_distances(rows: Float[Tensor, "N D"], *, eps: float) -> Float[Tensor, "N N"]:
    """Return sqrt(max(squared distance, eps)) between all rows; zero between a row and itself."""
    # Not through a^2 + b^2 - 2ab, which in float32 is inexact for small distances.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    others = 1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return distances.clamp_min(math.sqrt(eps)) * others


def pairwise_angles(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N N N"]:
    """Return the cosine of the angle at row i between rows j and k.

    Zero where j or k lies on i. Memory is N * N * max(N, D).
    """
    directions = unit_vectors(rows[None] - rows[:, None])
    return directions @ directions.mT


def similarity_shares(rows: Float[Tensor, "N D"], *, eps: float) -> Float[Tensor, "N N"]:
    """Return cosines scaled to 0..1 and divided by each row's sum, its own included."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    units = rows / (lengths + eps)
    similarities = (units @ units.mT + 1) / 2
    return similarities / similarities.sum(1, keepdim=True)


def pearson(
    one: Float[Tensor, "*rows D"], other: Float[Tensor, "*rows D"], *, eps: float
) -> Float[Tensor, "*rows"]:
    """Return the correlation of corresponding rows; 0 without a gradient where one is constant."""
    left, right = _deviations(one), _deviations(other)
    lengths: Tensor = torch.linalg.vector_norm(left, dim=-1)
    lengths = lengths * torch.linalg.vector_norm(right, dim=-1)
    # Divided by a tiny number instead, a pixel that is equally likely of all classes would get a
    # gradient that outweighs those of all others. The product is masked, not its factors: a factor
    # of infinity turns the other one's gradient of 0 into NaN.
    constant = _is_constant(left, one) | _is_constant(right, other)
    return (left * right).sum(-1) / (lengths.masked_fill(constant, math.inf) + eps)


def _deviations(rows: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    return rows - rows.mean(-1, keepdim=True)


def _is_constant(
    deviations: Float[Tensor, "*rows D"], rows: Float[Tensor, "*rows D"]
) -> Bool[Tensor, "*rows"]:
    """Return whether deviations are no more than rounding."""
    rounding = ROUNDING * torch.finfo(rows.dtype).eps
    length, whole = (torch.linalg.vector_norm(x.detach(), dim=-1) for x in (deviations, rows))
    found: Tensor = length <= rounding * whole
    return found


def correlation_gaps(
    student_logits: Float[Tensor, "*sets N C"],
    teacher_logits: Float[Tensor, "*sets N C"],
    *,
    temperature: float,
) -> CorrelationGaps:
    """Return 1 - mean correlation over classes of each sample, and over samples of each class.

    Units: multiplied by the squared temperature, so gradients keep their size. One sample has no
    relation to others, so its second part is 0. Axes before the last two are averaged over.

    Source: Huang et al., NeurIPS 2022, arXiv:2205.10536 (DIST).
    """
    student = (student_logits / temperature).softmax(-1)
    teacher = (teacher_logits / temperature).softmax(-1)
    inter = 1 - pearson(student, teacher, eps=CORRELATION_EPS).mean()
    if student.shape[-2] > 1:
        intra = 1 - pearson(student.mT, teacher.mT, eps=CORRELATION_EPS).mean()
    else:
        intra = (student - student).sum()
    return CorrelationGaps(temperature**2 * inter, temperature**2 * intra)


def position_cosine_gap(
    student_maps: Float[Tensor, "N c h w"], teacher_maps: Float[Tensor, "N d h w"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the cosines between all positions of an image.

    Memory is N * (h * w)^2.

    Source: Liu et al., CVPR 2019, arXiv:1903.04197 (SKD).
    """
    student, teacher = (_directions(each) for each in (student_maps, teacher_maps))
    return (student @ student.mT - teacher @ teacher.mT).square().mean()


def cross_image_kl(
    student_maps: Float[Tensor, "N c h w"],
    teacher_maps: Float[Tensor, "N d h w"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of the softened cosines of a position to those of an image.

    It is averaged over all positions of the batch, and over all images that they are compared with,
    their own included. Units are nats. Memory is (N * h * w)^2.

    Source: Yang et al., CVPR 2022, arXiv:2204.06986 (CIRKD).
    """
    scores = []
    for each in (student_maps, teacher_maps):
        directions = _directions(each)
        every = directions.flatten(0, 1)
        # Position, image that it is compared with, position there.
        cosines = (every @ every.mT).view(len(every), *directions.shape[:2])
        scores.append(cosines.flatten(0, 1))
    return divergences.softened_kl(*scores, temperature=temperature).mean()


def memory_kl(
    student: Float[Tensor, "R D"],
    teacher: Float[Tensor, "R D"],
    memory: Float[Tensor, "M D"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of the softened cosines of a row to all vectors of a memory.

    It is averaged over rows; 0 without any. The memory's vectors have unit length. Units are nats.

    Source: Yang et al., CVPR 2022, arXiv:2204.06986 (CIRKD), equations 9 to 14.
    """
    scores = [unit_vectors(each) @ memory.mT for each in (student, teacher)]
    return divergences.softened_kl(*scores, temperature=temperature).sum() / max(1, len(student))


def _directions(maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N P c"]:
    return unit_vectors(maps.flatten(2).mT)
