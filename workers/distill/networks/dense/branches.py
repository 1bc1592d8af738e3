"""The branches of a dense head, cut behind one of their convolutions.

A branch is a row of convolutions, each with an activation and mostly a norm before it, and a last
layer. CrossKD ends a student's branch inside of the teacher's, so both are run in two parts here.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def depth(branch: Any) -> int:  # Any: a branch of torchvision, here and below
    """Return how many convolutions a branch has before its last layer."""
    return len(_activations(_layers(branch)))


def before(branch: Any, levels: Sequence[Tensor], convs: int) -> list[Tensor]:
    """Return each level's map after so many convolutions, before the activation of the last."""
    first = nn.Sequential(*_layers(branch)[: _cut(branch, convs)])
    return [first(level) for level in levels]


def after(branch: Any, levels: Sequence[Tensor], convs: int) -> Any:
    """Return what a branch gives for maps that `before` returned, of any network."""
    rest = copy.copy(branch)
    # A module keeps its parts in a dictionary, which a copy would share.
    rest._modules = {
        **branch._modules,
        "conv": nn.Sequential(*_layers(branch)[_cut(branch, convs) :]),
    }
    return rest(list(levels))


def _layers(branch: Any) -> list[nn.Module]:
    return [
        layer
        for block in branch.conv
        for layer in (block if isinstance(block, nn.Sequential) else [block])
    ]


def _activations(layers: Sequence[nn.Module]) -> list[int]:
    return [place for place, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]


def _cut(branch: Any, convs: int) -> int:
    return _activations(_layers(branch))[convs - 1] if convs else 0
