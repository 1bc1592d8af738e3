"""How far the confidence of a classifier can be trusted."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

CALIBRATION_BINS = 15
"""Bins of confidence, for the calibration error of the scores and the report's picture alike."""


@dataclass(frozen=True)
class Reliability:
    """How often a network is right where it is so sure, in bins of equal width over 0..1.

    `confidence` and `accuracy` are means over a bin's images, and 0 in an empty bin.
    """

    counts: Int[np.ndarray, " B"]
    confidence: Float[np.ndarray, " B"]
    accuracy: Float[np.ndarray, " B"]

    @property
    def error(self) -> float:
        """Return the expected calibration error: the mean gap, weighted by the counts."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float((gaps * self.counts).sum() / self.counts.sum())


def reliability(
    logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], *, bins: int = CALIBRATION_BINS
) -> Reliability:
    """Sort the images into bins by the probability of the predicted class (Guo et al., 2017)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    sure = 1.0 / np.exp(shifted).sum(1)  # softmax of the largest logit
    right = logits.argmax(1) == labels
    # Bins are closed on the right.
    places = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    filled = np.maximum(counts, 1)
    return Reliability(
        counts=counts,
        confidence=np.bincount(places, weights=sure, minlength=bins) / filled,
        accuracy=np.bincount(places, weights=right, minlength=bins) / filled,
    )
