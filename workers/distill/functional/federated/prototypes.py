"""Class prototypes: mean embeddings, the pull towards them, and prediction by the nearest.

Source: Tan et al., AAAI 2022, arXiv 2105.00243 (FedProto).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workers.distill.functional.federated import label_means
from workers.distill.functional.federated.label_means import LabelMeans

NEVER = 1e4
"""How far below all others the score of a class lies that must not be predicted."""


def class_distance(
    embeddings: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    prototypes: LabelMeans,
    *,
    counted: Bool[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Return the sum over the batch's labels of ||mean embedding - prototype||^2.

    Labels without a prototype are left out, as are samples that are not `counted` (padding); the
    result is 0 where none is left.
    """
    classes = len(prototypes.held)
    members = labels[:, None] == torch.arange(classes, device=labels.device)
    shares = (members if counted is None else members & counted[:, None]).to(embeddings.dtype)
    counts = shares.sum(0)
    own = shares.T @ embeddings / counts.clamp_min(1)[:, None]
    apart = (own - prototypes.rows.detach()).square().sum(1)
    return (apart * ((counts > 0) & prototypes.held)).sum()


def sample_distances(
    embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], prototypes: LabelMeans
) -> Float[Tensor, " N"]:
    """Return the mean squared difference of each embedding and its label's prototype.

    The mean is over the embedding's values; the released code averages it over samples. Samples
    without a prototype have 0.
    """
    apart = (embeddings - prototypes.rows.detach()[labels]).square().mean(1)
    return apart * prototypes.held[labels]


def nearest_scores(
    embeddings: Float[Tensor, "N D"], prototypes: LabelMeans
) -> Float[Tensor, "N C"]:
    """Return -||embedding - prototype||^2 of each class, -inf of classes without a prototype.

    The largest is the nearest prototype. Raises `ValueError` where there is no prototype.
    """
    if not bool(prototypes.held.any()):
        raise ValueError("no class has a prototype yet")
    apart = (embeddings[:, None] - prototypes.rows).square().sum(2)
    return torch.where(prototypes.held, -apart, -torch.inf)


def as_classifier(prototypes: LabelMeans) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
    """Return weight and bias of the linear classifier that predicts the nearest prototype.

    2 e p - ||p||^2 is `nearest_scores` plus ||e||^2, which is the same for all classes. The bias of
    a class without a prototype is low enough that it is never predicted, and finite.
    """
    rows = torch.where(prototypes.held[:, None], prototypes.rows, 0.0)
    squares = rows.square().sum(1)
    return 2 * rows, torch.where(prototypes.held, -squares, -squares.max() - NEVER)


def aggregate(uploads: LabelMeans, counts: Float[Tensor, "K C"] | None = None) -> LabelMeans:
    """Return the prototypes of all clients: means over the holders, weighted by label counts.

    Without counts each holder counts the same, as in the released code.
    Differs: equation 6 of the paper divides by the number of holders once more, which would shrink
    prototypes towards 0.
    """
    return label_means.mean_of_holders(uploads, counts)
