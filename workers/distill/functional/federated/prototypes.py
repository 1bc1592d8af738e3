"""Class prototypes: mean embeddings, the pull towards them, and prediction by the nearest.

Source: Tan et al., AAAI 2022, arXiv 2105.00243 (FedProto).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill.functional.federated import label_means
from workers.distill.functional.federated.label_means import LabelMeans


def class_distance(
    embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], prototypes: LabelMeans
) -> Float[Tensor, ""]:
    """Return the sum over the batch's labels of ||mean embedding - prototype||^2.

    Labels without a prototype are left out; the result is 0 where none is left.
    """
    classes = len(prototypes.held)
    members = (labels[:, None] == torch.arange(classes, device=labels.device)).to(embeddings.dtype)
    counts = members.sum(0)
    own = members.T @ embeddings / counts.clamp_min(1)[:, None]
    apart = (own - prototypes.rows.detach()).square().sum(1)
    return (apart * ((counts > 0) & prototypes.held)).sum()


def sample_distance(
    embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], prototypes: LabelMeans
) -> Float[Tensor, ""]:
    """Return the mean squared difference of each embedding and its label's prototype.

    The mean is over samples and the embedding's values, as in the released code. Samples without a
    prototype count as 0.
    """
    apart = (embeddings - prototypes.rows.detach()[labels]).square().mean(1)
    return (apart * prototypes.held[labels]).mean()


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


def aggregate(uploads: LabelMeans, counts: Float[Tensor, "K C"] | None = None) -> LabelMeans:
    """Return the prototypes of all clients: means over the holders, weighted by label counts.

    Without counts each holder counts the same, as in the released code.
    Differs: equation 6 of the paper divides by the number of holders once more, which would shrink
    prototypes towards 0.
    """
    return label_means.mean_of_holders(uploads, counts)
