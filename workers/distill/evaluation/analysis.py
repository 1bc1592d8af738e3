"""Answers what a network's outputs say beyond one score: pure numbers, from arrays to arrays.

Where it errs, how its logits hang together, how far its confidence can be trusted, how its
features lie, and how alike the features of two networks are.
"""

from dataclasses import dataclass

import numpy as np
import threadpoolctl
from jaxtyping import Float, Int

BINS = 15
MAP_CLASSES = 10
MAP_IMAGES = 300
MAP_SEED = 0
PERPLEXITY = 30.0
TSNE_STEPS = 500
FEWEST_FOR_MAP = 5
FEWEST_FOR_CKA = 4


def confusion(
    logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> Int[np.ndarray, "C C"]:
    """Return how many images of each class (row) were taken for each class (column)."""
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def correlation(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "C C"]:
    """Return Pearson's correlation of every two classes' logits over the images.

    A class whose logit never changes correlates with nothing: its entries are NaN.
    """
    centred = logits.astype(np.float64) - logits.mean(0, dtype=np.float64)
    sizes = np.sqrt((centred**2).sum(0))
    sizes[sizes == 0] = np.nan
    scaled = centred / sizes
    found: Float[np.ndarray, "C C"] = np.clip(scaled.T @ scaled, -1.0, 1.0)
    return found


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
    logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], *, bins: int = BINS
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


def images_to_map(labels: Int[np.ndarray, " N"], *, seed: int = MAP_SEED) -> Int[np.ndarray, " K"]:
    """Return which images an embedding shows, in order: few enough to compute and to tell apart.

    Of many classes ten are shown, evenly spaced among those that have images.
    """
    present = np.unique(labels)
    places = np.linspace(0, len(present) - 1, min(len(present), MAP_CLASSES)).round()
    candidates = np.flatnonzero(np.isin(labels, present[places.astype(np.int64)]))
    drawn = np.random.default_rng(seed).permutation(candidates)[:MAP_IMAGES]
    return np.sort(drawn)


@dataclass(frozen=True)
class Plane:
    """Points in two dimensions, and which share of the variance each dimension holds."""

    points: Float[np.ndarray, "K 2"]
    shares: tuple[float, float]


def pca(features: Float[np.ndarray, "K D"]) -> Plane:
    """Return the features in the plane of their two largest principal components.

    The largest weight of each component is positive, so that nothing is mirrored by chance.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    variances = sizes**2
    points = np.zeros((len(features), 2))
    shares = [0.0, 0.0]
    for place, direction in enumerate(directions[:2]):
        sign = 1.0 if direction[np.abs(direction).argmax()] >= 0 else -1.0
        points[:, place] = sign * centred @ direction
        shares[place] = float(variances[place] / max(variances.sum(), np.finfo(float).tiny))
    return Plane(points, (shares[0], shares[1]))


def tsne(
    features: Float[np.ndarray, "K D"],
    *,
    seed: int = MAP_SEED,
    perplexity: float = PERPLEXITY,
    steps: int = TSNE_STEPS,
) -> Float[np.ndarray, "K 2"]:
    """Return a plane in which near features stay near (van der Maaten and Hinton, 2008).

    It starts from the principal components; distances between far groups mean nothing.
    """
    # Imported here because it takes seconds, which a start should not pay.
    from sklearn import manifold

    start = pca(features).points
    spread = start[:, 0].std()
    noise = np.random.default_rng(seed).normal(size=start.shape)
    start = start / spread if spread > 0 else noise  # equal features still need two places
    method = manifold.TSNE(
        perplexity=min(perplexity, (len(features) - 1) / 3),
        init=(1e-4 * start).astype(np.float32),
        max_iter=steps,
        random_state=seed,
    )
    # Sums split over another number of threads round differently, and a small difference grows.
    with threadpoolctl.threadpool_limits(1):
        points: Float[np.ndarray, "K 2"] = method.fit_transform(features.astype(np.float32))
    return points.astype(np.float64)


def can_be_mapped(features: Float[np.ndarray, "K D"]) -> bool:
    """Whether there are enough features, all of them finite."""
    return len(features) >= FEWEST_FOR_MAP and bool(np.isfinite(features).all())


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
        return float("nan")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan")  # the loop says by itself that a student diverged
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
