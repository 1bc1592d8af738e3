"""How alike two networks are: correlations between the logits of classes, CKA of features."""

import numpy as np
from jaxtyping import Float

FEWEST_FOR_CKA = 4


def correlation(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "C C"]:
    """Return Pearson's correlation of every two classes' logits over the images.

    A class whose logit never changes correlates with nothing: its entries are NaN.
    """
    centred = logits.astype(np.float64) - logits.mean(0, dtype=np.float64)
    sizes = np.sqrt((centred**2).sum(0))
    sizes[sizes == 0] = np.nan
    scaled = centred / sizes
    correlations: Float[np.ndarray, "C C"] = np.clip(scaled.T @ scaled, -1.0, 1.0)
    return correlations


def cka(one: Float[np.ndarray, "N D"], other: Float[np.ndarray, "N E"]) -> float:
    """Return linear centred kernel alignment of two networks' features of the same images.

    1 is alike up to rotation and scale, 0 is what unrelated features have on average. The usual
    estimate is far above 0 for unrelated features wider than there are images, so this is the
    unbiased one (Kornblith et al., 2019, with HSIC by Song et al., 2012, equation 5). NaN where
    features never change, or are not finite.
    """
    if len(one) < FEWEST_FOR_CKA:
        raise ValueError(f"CKA needs at least {FEWEST_FOR_CKA} images, got {len(one)}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan")  # the loop reports by itself that a student diverged
    first, second = _gram(one), _gram(other)
    both, alone, beside = _hsic(first, second), _hsic(first, first), _hsic(second, second)
    if not (alone > 0 and beside > 0):
        return float("nan")
    return float(both / np.sqrt(alone * beside))


def _gram(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N N"]:
    """Return inner products of centred features of unit mean square, with a zero diagonal."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    size = float((centred**2).mean()) * features.shape[1]
    inner: Float[np.ndarray, "N N"] = centred @ centred.T / (size or 1.0)
    np.fill_diagonal(inner, 0.0)
    return inner


def _hsic(first: Float[np.ndarray, "N N"], second: Float[np.ndarray, "N N"]) -> float:
    """Return the unbiased Hilbert-Schmidt independence criterion of two such matrices."""
    count = len(first)
    traced = float((first * second).sum())
    sums = float(first.sum() * second.sum()) / ((count - 1) * (count - 2))
    crossed = 2.0 * float(first.sum(0) @ second.sum(0)) / (count - 2)
    return (traced + sums - crossed) / (count * (count - 3))
