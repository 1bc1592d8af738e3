"""Pooled features of some images in two dimensions: principal components and t-SNE."""

from dataclasses import dataclass

import numpy as np
import threadpoolctl
from jaxtyping import Float, Int

MAP_CLASSES = 10
MAP_IMAGES = 300
MAP_SEED = 0
PERPLEXITY = 30.0
TSNE_STEPS = 500
FEWEST_FOR_MAP = 5


def images_to_map(labels: Int[np.ndarray, " N"], *, seed: int = MAP_SEED) -> Int[np.ndarray, " K"]:
    """Return which images an embedding shows, in order: few enough to compute and to tell apart.

    Of many classes ten are shown, evenly spaced among those that have images.
    """
    present = np.unique(labels)
    places = np.linspace(0, len(present) - 1, min(len(present), MAP_CLASSES)).round()
    candidates = np.flatnonzero(np.isin(labels, present[places.astype(np.int64)]))
    indices = np.random.default_rng(seed).permutation(candidates)[:MAP_IMAGES]
    return np.sort(indices)


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
