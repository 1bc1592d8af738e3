"""Sampling probabilities and importance weights of a replay buffer's images.

Source: Liu et al., CVPR 2024, arXiv 2406.07876 (SSD-KD, priority sampling), after Schaul et al.,
ICLR 2016, arXiv 1511.05952 (prioritised replay).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Priority:
    """Constants of priority sampling; `beta` is below 1, or the recursion does not converge."""

    alpha: float
    beta: float
    epsilon: float


def probabilities(
    delta: Float[Tensor, " N"], *, alpha: float, epsilon: float
) -> Float[Tensor, " N"]:
    """Return the probability of drawing each member: (|delta| + epsilon)^alpha, normalised.

    A member of priority 0 can still be drawn where `epsilon` is above 0.
    """
    return (alpha * (delta.abs() + epsilon).log()).softmax(0)


def importance(shares: Float[Tensor, " N"], *, beta: float) -> Float[Tensor, " N"]:
    """Return (N * share)^-beta: importance weights that correct a mean for uneven sampling.

    At `beta` 1 the correction is complete, at 0 there is none; a share of 0 has weight infinity.
    """
    return (len(shares) * shares).pow(-beta)
