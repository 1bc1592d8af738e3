"""Weight of a synthetic image's task loss: higher for rare classes and low confidence.

Source: Liu et al., CVPR 2024, arXiv 2406.07876 (SSD-KD, modulating function).
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill.functional.rows import rows


def confidence(
    logits: Float[Tensor, "N C *S"],
) -> tuple[Float[Tensor, " R"], Int[Tensor, " R"]]:
    """Return each row's largest probability, and the class that has it."""
    largest, predicted = rows(logits).softmax(1).max(1)
    return largest, predicted


def modulation(
    logits: Float[Tensor, "N C *S"],
    class_shares: Float[Tensor, " C"],
    *,
    gamma: float,
    diversity: bool = True,
    targets: Int[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """Return (1 - share of the row's class) * (1 - probability of that class)^gamma.

    The class of a row is its target, or the class with its largest logit where `targets` is None.
    `class_shares` are the shares of the buffer of each class; `diversity` False omits the first
    factor. The gradient goes through the second. There are at least two classes.
    """
    given = rows(logits)
    chosen = given.argmax(1) if targets is None else targets
    own = chosen[:, None] == torch.arange(given.shape[1], device=given.device)
    # The other classes' probability by its logarithm: 1 - p would round to 0, where a power
    # with gamma below 1 has an infinite slope.
    doubt = F.log_softmax(given, dim=1).masked_fill(own, -math.inf).logsumexp(1)
    weights = (gamma * doubt).exp()
    return (1 - class_shares[chosen]) * weights if diversity else weights


def class_shares(logits: Float[Tensor, "N C *S"]) -> Float[Tensor, "N C"]:
    """Return for each image the share of its rows that are predicted as each class.

    Without positions, an image has one row, and its share is 1 for one class.
    """
    images, classes = logits.shape[:2]
    predicted = logits.argmax(1).reshape(images, -1, 1)
    # Compared, not scattered: scattered sums have no reproducible order on a GPU.
    hits = predicted == torch.arange(classes, device=logits.device)
    return hits.sum(1).to(logits.dtype) / predicted.shape[1]
