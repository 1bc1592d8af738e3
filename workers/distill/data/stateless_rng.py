"""Random numbers without state: each is a pure function of a seed and of its indices.

So a view of an image can be drawn again in any order and in any attempt, without drawing the views
before it.
"""

import functools

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def mix(*numbers: int) -> int:
    """Return a seed hashed from several numbers."""
    mixed = 0
    for number in numbers:  # the finaliser of SplitMix64, chained
        mixed = (mixed + number + _GOLDEN) % 2**64
        mixed = ((mixed ^ (mixed >> 30)) * _FIRST) % 2**64
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


class StatelessRNG:
    """One stream of random numbers per row, fixed by a seed and the row's own numbers."""

    def __init__(self, seed: int, *numbers: Int[Tensor, " N"]) -> None:
        self._seed = seed
        self._numbers = numbers
        self._drawn = 0

    @functools.cached_property
    def _state(self) -> NDArray[np.uint64]:
        # Made when it is read: most trainings have streams of which nothing is drawn.
        state = np.full(len(self._numbers[0]), mix(self._seed), dtype=np.uint64)
        for column in self._numbers:
            state = _scrambled(state + column.numpy().astype(np.uint64))
        return state

    def shares(self) -> Float[Tensor, " N"]:
        """Return the next number of each stream, uniform in [0, 1), in float64."""
        # The upper 53 bits: as many as a float64 holds.
        return torch.from_numpy((self._next() >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def whole(self, high: int) -> Int[Tensor, " N"]:
        """Return the next integer of each stream, uniform in 0..high-1."""
        return (self.shares() * high).long()

    def coins(self) -> Bool[Tensor, " N"]:
        """Return the next boolean of each stream, True with probability 1/2."""
        return self.shares() < 0.5

    def some_of(self, count: int, high: int) -> Int[Tensor, "N k"]:
        """Return `count` different integers of 0..high-1 for each row, uniformly."""
        # Floyd's sampling: draw among 0..last; what was drawn before stands for `last` itself.
        chosen = torch.empty(len(self._state), 0, dtype=torch.int64)
        for last in range(high - count, high):
            candidates = self.whole(last + 1)[:, None]
            again = (chosen == candidates).any(1, keepdim=True)
            chosen = torch.cat([chosen, torch.where(again, last, candidates)], dim=1)
        return chosen

    def _next(self) -> NDArray[np.uint64]:
        self._drawn += 1
        return _scrambled(self._state + np.uint64(mix(self._drawn)))


def _scrambled(mixed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = mixed + np.uint64(_GOLDEN)  # arrays of unsigned numbers wrap around
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))
