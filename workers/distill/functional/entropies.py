"""Cross-entropy with a target class per image, or with the predicted class; in nats."""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill.functional.rows import rows


def cross_entropies(
    logits: Float[Tensor, "N C *S"], classes: Int[Tensor, " N"] | None = None
) -> Float[Tensor, " R"]:
    """Return each row's cross-entropy with its image's class or its own predicted class.

    The predicted class is the target where no classes are given, and in dense tasks, where an
    image's class is not that of each pixel. No gradient flows through that choice.
    """
    flat = rows(logits)
    if classes is None or logits.dim() > 2:
        classes = flat.detach().argmax(1)
    return F.cross_entropy(flat, classes, reduction="none")


def mean_cross_entropy(
    logits: Float[Tensor, "N C *S"], classes: Int[Tensor, " N"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean of `cross_entropies` over images and positions."""
    return cross_entropies(logits, classes).mean()
