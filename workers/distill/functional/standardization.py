"""Logits as z-scores: centred and divided by their standard deviation.

Networks whose logits differ in shift and scale only have equal z-scores.
"""

from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

Deviation: TypeAlias = Literal["none", "population", "sample"]
"""What logits are divided by: nothing, or a standard deviation over C or over C - 1."""

EPS = 1e-7


def standardized(logits: Float[Tensor, "N C"], *, by: Deviation) -> Float[Tensor, "N C"]:
    """Return the z-scores of each sample's logits, or the logits themselves by "none".

    The gradient passes through mean and deviation. A single class has z-score 0.
    """
    if by == "none":
        return logits
    # At most C - 1, so that one class gives 0 and not 0 / 0.
    correction = min(1 if by == "sample" else 0, logits.shape[1] - 1)
    deviation = logits.std(1, correction=correction, keepdim=True)
    return (logits - logits.mean(1, keepdim=True)) / (deviation + EPS)
