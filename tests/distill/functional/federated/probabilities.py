"""What must hold of rows that a consensus, an attack or noise has made."""

from jaxtyping import Bool, Float
from torch import Tensor

from workers.distill.config.messages import SUM_TOLERANCE


def are_probabilities(probs: Float[Tensor, "*N C"]) -> Bool[Tensor, "*N"]:
    """Return for each row whether it is finite, not negative, and has the sum 1."""
    sound = probs.isfinite().all(-1) & (probs >= 0).all(-1)
    return sound & ((probs.sum(-1) - 1).abs() <= SUM_TOLERANCE)
