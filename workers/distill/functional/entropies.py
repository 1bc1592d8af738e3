"""How far answers are from a class that they are to show, in nats."""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill.functional.rows import rows


def cross_entropies(
    logits: Float[Tensor, "N C *S"], classes: Int[Tensor, " N"] | None = None
) -> Float[Tensor, " R"]:
    """Return each row's cross-entropy with the class of its image, or with its own largest logit.

    Its own is meant where no classes are given, and wherever there are positions: the class of a
    whole image says nothing of one of its pixels. No gradient flows through that choice.
    """
    answers = rows(logits)
    if classes is None or logits.dim() > 2:
        classes = answers.detach().argmax(1)
    return F.cross_entropy(answers, classes, reduction="none")


def mean_cross_entropy(
    logits: Float[Tensor, "N C *S"], classes: Int[Tensor, " N"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean of `cross_entropies` over images and positions."""
    return cross_entropies(logits, classes).mean()
