"""Distances between maps of equal shape: plain, at several scales, weighted by position.

Those over several pairs of maps (the levels of a pyramid, the stages of a network) are summed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from torch import Tensor

from workers.distill.functional import maps

GRIDS = (4, 2, 1)
"""Sides at which maps are compared besides their own, each with half the weight of the last."""
SMALLEST_VARIANCE = 1e-6
"""Maps that vary less are not magnified further."""


def mean_square(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, by_variance: bool
) -> Float[Tensor, ""]:
    """Return the mean squared difference, summed over pairs of equal maps [N, c, h, w].

    With `by_variance` each pair's is divided by the variance of all values of the teacher's maps,
    so that levels of different magnitude count alike.
    """
    distances = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        distance = F.mse_loss(student, teacher)
        if by_variance:
            distance = distance / teacher.var(correction=0).clamp_min(SMALLEST_VARIANCE)
        distances.append(distance)
    return torch.stack(distances).sum()


def multiscale_square(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return the hierarchical context loss, summed over pairs of equal maps [N, c, h, w].

    Source: Chen et al., CVPR 2021, arXiv:2104.09044 (ReviewKD).
    """
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([_multiscale_square(one, other) for one, other in pairs]).sum()


def _multiscale_square(
    student: Float[Tensor, "N c h w"], teacher: Float[Tensor, "N c h w"]
) -> Float[Tensor, ""]:
    # Averaging is linear, so the difference is averaged once instead of both maps.
    difference = student - teacher
    height, width = difference.shape[2:]
    loss, total, share = difference.square().mean(), 1.0, 1.0
    for side in GRIDS:
        if side < max(height, width):
            share /= 2
            pooled = maps.average_to(difference, (min(side, height), min(side, width)))
            loss = loss + share * pooled.square().mean()
            total += share
    return loss / total


def sum_of_squares(
    student: Float[Tensor, "N c h w"],
    teacher: Float[Tensor, "N c h w"],
    weights: Float[Tensor, "N #c #h #w"] | None = None,
) -> Float[Tensor, ""]:
    """Return the sum of squared differences over everything, each times its weight."""
    squares = (student - teacher).square()
    return (squares if weights is None else weights * squares).sum()


def confidence(logits: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 1 h w"]:
    """Return the largest sigmoid of a position over classes, without a gradient.

    Source: Du et al., NeurIPS 2021, arXiv:2111.00674 (FRS).
    """
    return logits.detach().sigmoid().amax(1, keepdim=True)


def weighted_square(
    student: Float[Tensor, "N c h w"],
    teacher: Float[Tensor, "N c h w"],
    weights: Float[Tensor, "N 1 h w"],
) -> Float[Tensor, ""]:
    """Return the squared distance at a position, averaged with these weights; 0 if all are 0.

    A position's distance is the sum over channels (FRS, feature term).
    """
    return sum_of_squares(student, teacher, weights) / _at_least_something(weights)


def weighted_bce(
    student_logits: Float[Tensor, "N C h w"],
    teacher_logits: Float[Tensor, "N C h w"],
    weights: Float[Tensor, "N 1 h w"],
) -> Float[Tensor, ""]:
    """Return the cross-entropy of sigmoids at a position, averaged with these weights; nats.

    A position's is the sum over classes, with the teacher's probabilities as targets (FRS, class
    term). It is 0 if all weights are 0.
    """
    entropies = F.binary_cross_entropy_with_logits(
        student_logits, teacher_logits.sigmoid(), reduction="none"
    )
    return (weights * entropies).sum() / _at_least_something(weights)


def drop_positions(
    features: Float[Tensor, "N c h w"], *, share: float, generator: torch.Generator | None = None
) -> Float[Tensor, "N c h w"]:
    """Return the maps with each position set to 0 in all channels with probability `share`.

    Source: Yang et al., ECCV 2022, arXiv:2205.01529 (MGD).
    """
    images, _, height, width = features.shape
    drawn = torch.rand(images, 1, height, width, generator=generator, device=features.device)
    return features * (drawn >= share)


def _at_least_something(weights: Float[Tensor, "N 1 h w"]) -> Float[Tensor, ""]:
    total = weights.sum()
    # A sum of zeros is divided by 1, not by 0.
    return torch.where(total > 0, total, 1)
