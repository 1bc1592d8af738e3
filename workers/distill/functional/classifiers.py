"""A network's last feature map and its linear classifier.

Averaging over positions and a linear layer commute, so the classifier can be applied at every
position, and one network's classifier to another's maps.
"""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from torch import Tensor, nn

from workers.distill.functional import maps


def last_map(final: Float[Tensor, "N c h w"] | None) -> Float[Tensor, "N c h w"]:
    """Return a last map in float32 at least; raises `ValueError` where it is None."""
    if final is None:
        raise ValueError("the features hold no last map, which the method asked for")
    return maps.at_least_float(final)


def layer(classifier: nn.Linear | None) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
    """Return weight and bias of a classifier, zeros where it has no bias.

    Raises `ValueError` where there is no classifier.
    """
    if classifier is None:
        raise ValueError("the network shows no classifier, which the method asked for")
    weight, bias = classifier.weight, classifier.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def frozen(classifier: nn.Linear | None) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
    """Return copies of weight and bias, without a gradient.

    To be kept as buffers: registered as a module, they would be trained with the student.
    """
    weight, bias = layer(classifier)
    return weight.detach().clone(), bias.detach().clone()


def class_maps(
    final: Float[Tensor, "N D h w"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"] | None = None,
    *,
    add_bias: bool = False,
) -> Float[Tensor, "N C h w"]:
    """Return class activation maps (CAM) of a classifier.

    A map is the weighted sum of features, without the classifier's bias, as CAM is defined; its
    average over positions is the logit less that bias. `add_bias` adds it at every position.
    """
    return F.conv2d(final, weight[:, :, None, None], bias if add_bias else None)
