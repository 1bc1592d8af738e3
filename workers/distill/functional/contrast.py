"""Contrastive loss between each image's two views and the views of all other images."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from torch import Tensor


def bank_contrast(
    local: Float[Tensor, "R D"],
    other: Float[Tensor, "R D"],
    *,
    temperature: float,
    current: int,
) -> Float[Tensor, ""]:
    """Return the mean loss of the first `current` rows plus that of the rest, the bank.

    The positive of row i of `local` is row i of `other`, by cosine; `other` gets no gradient.
    Without a bank it is the plain mean.

    Source: Fang et al., IJCAI 2021, arXiv 2105.08584 (CMI, contrastive regularisation).
    """
    one, fixed = F.normalize(local, dim=1), F.normalize(other.detach(), dim=1)
    own = torch.arange(len(local), device=local.device)
    losses = F.cross_entropy(one @ fixed.T / temperature, own, reduction="none")
    if current == len(local):
        return losses.mean()
    return losses[:current].mean() + losses[current:].mean()
