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
    """Return the share with which each member is drawn: (|delta| + epsilon)^alpha, normalised.

    A member that matters nothing is still drawn now and then, as long as `epsilon` is above 0.
    """
    return (alpha * (delta.abs() + epsilon).log()).softmax(0)


def importance(shares: Float[Tensor, " N"], *, beta: float) -> Float[Tensor, " N"]:
    """Return (N * share)^-beta, which undoes for a mean what drawing unevenly did to it.

    At `beta` 1 it undoes all of that, at 0 nothing; a share of 0 would count infinitely.
    """
    return (len(shares) * shares).pow(-beta)
