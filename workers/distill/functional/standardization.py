"""Logits or maps as z-scores: centred and divided by their standard deviation.

Networks whose values differ in shift and scale only have equal z-scores.
"""

from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

Deviation: TypeAlias = Literal["none", "population", "sample"]
"""What logits are divided by: nothing, or a standard deviation over C or over C - 1."""

EPS = 1e-7
GAP_EPS = 1e-6
"""Added to deviations by PKD's authors."""


def standardized(
    logits: Float[Tensor, "N C"], *, by: Deviation, eps: float = EPS
) -> Float[Tensor, "N C"]:
    """Return the z-scores of each sample's logits, or the logits themselves by "none".

    The gradient passes through mean and deviation. A single class has z-score 0.
    """
    if by == "none":
        return logits
    # At most C - 1, so that one class gives 0 and not 0 / 0.
    correction = min(1 if by == "sample" else 0, logits.shape[1] - 1)
    deviation = logits.std(1, correction=correction, keepdim=True)
    return (logits - logits.mean(1, keepdim=True)) / (deviation + eps)


def z_score_gap(one: Float[Tensor, "N D"], other: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return half the mean squared difference of z-scores, those of each row.

    With D values a row it is (D - 1) / D * (1 - Pearson's correlation), averaged over rows.
    """
    left, right = (standardized(each, by="sample", eps=GAP_EPS) for each in (one, other))
    return (left - right).square().mean() / 2
