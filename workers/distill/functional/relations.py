"""Relations between the rows of a batch: distances, angles, cosines, correlations.

Every function stays finite, with a finite gradient, for equal rows, for rows of zeros and for a
single row: where a direction does not exist it is the zero vector, and no gradient passes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SHORTEST = 1e-12
"""Vectors no longer than this have no direction."""


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
    one: Float[Tensor, "N D"], other: Float[Tensor, "N D"], *, eps: float
) -> Float[Tensor, " N"]:
    """Return the correlation of corresponding rows; 0 where one is constant."""
    one = one - one.mean(1, keepdim=True)
    other = other - other.mean(1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
    return (one * other).sum(1) / (lengths + eps)
