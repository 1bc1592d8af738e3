"""How far a score of a test split might be off by the choice of its images."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 200
SEED = 0

Score = Callable[[NDArray[np.float64]], float | None]
"""Returns the score of the images, each counted as often as drawn; None where it has no value."""


def interval(
    score: Score, images: int, *, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of a score, by drawing images with replacement.

    The draws depend on the number of images alone. None where no draw has a score.

    Source: Efron, Annals of Statistics, 1979.
    """
    draw = np.random.default_rng(SEED)
    values = []
    for _ in range(resamples):
        chosen = draw.integers(0, images, images)
        value = score(np.bincount(chosen, minlength=images).astype(np.float64))
        if value is not None:
            values.append(value)
    if not values:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
