"""Losses and figures of targets that are probabilities: cross-entropy, divergence, entropy, nats.

In federated distillation parties exchange rows that are softmax outputs already: `probs`, each row
not negative and with sum 1. What has not passed a softmax is called `logits` or `scores`.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from torch import Tensor


def cross_entropies(
    logits: Float[Tensor, "N C"], targets: Float[Tensor, "N C"]
) -> Float[Tensor, " N"]:
    """Return -sum_c target_c log softmax(logits)_c of each row.

    For fixed targets its gradient is that of `kl_divergences`; the value is larger by their
    entropy.
    """
    return -(targets * F.log_softmax(logits, dim=1)).sum(1)


def kl_divergences(
    logits: Float[Tensor, "N C"], targets: Float[Tensor, "N C"]
) -> Float[Tensor, " N"]:
    """Return KL(target || softmax(logits)) of each row; a target of 0 counts as 0."""
    return cross_entropies(logits, targets) - entropies(targets)


def entropies(probs: Float[Tensor, "*N C"]) -> Float[Tensor, "*N"]:
    """Return -sum_c p_c log p_c of each row, between 0 and log C."""
    return -torch.xlogy(probs, probs).sum(-1)
