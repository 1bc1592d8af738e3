"""Which images of a replay buffer are worth seeing again, and how much each then counts.

Source: Liu et al., CVPR 2024, arXiv 2406.07876 (SSD-KD, priority sampling), after Schaul et al.,
ICLR 2016, arXiv 1511.05952 (prioritised replay).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Priority:
    """Constants of priority sampling; `beta` is below 1, or the recursion never settles."""

    alpha: float
    beta: float
    epsilon: float


def probabilities(
    delta: Float[Tensor, " N"], *, alpha: float, epsilon: float
) -> Float[Tensor, " N"]:
    """Return the share with which each member is drawn: (|delta| + epsilon)^alpha, normalised."""
    raise NotImplementedError


def importance(shares: Float[Tensor, " N"], *, beta: float) -> Float[Tensor, " N"]:
    """Return (N * share)^-beta, which undoes for a mean what drawing unevenly did to it."""
    raise NotImplementedError
