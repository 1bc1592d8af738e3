"""What a malicious client may send instead of its predictions: to measure a rule's robustness.

All results are rows of probabilities, so no check of a message refuses them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def noise_rows(
    probs: Float[Tensor, "N C"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "N C"]:
    """Return rows drawn evenly from all rows of probabilities: an attack without coordination."""
    drawn = torch.rand(probs.shape, dtype=probs.dtype, generator=generator)
    # Exponential values, normalised, are uniform on the simplex; 1 - drawn is never 0.
    values = (-(1 - drawn).log()).clamp_min(torch.finfo(probs.dtype).tiny)
    return (values / values.sum(1, keepdim=True)).to(probs.device)


def shift_classes(probs: Float[Tensor, "N C"], *, places: int = 1) -> Float[Tensor, "N C"]:
    """Return each class's probability given to the class `places` later, the last to the first.

    Attackers that all do so agree on a wrong class: a coordinated attack.
    """
    return probs.roll(places, dims=1)


def flip_labels(labels: Int[Tensor, " N"], classes: int) -> Int[Tensor, " N"]:
    """Return each label replaced by classes - 1 - label: training data of a malicious client."""
    return classes - 1 - labels
