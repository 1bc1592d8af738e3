"""Which tensors of a network float16 can hold, and which stay float32.

float16 ends at 65,504. A batch norm divides by the root of its running variance, so that the
network never shows how large the variance is; rounded to infinity it makes a channel constant.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from workers.distill import errors

LARGEST = torch.finfo(torch.float16).max
NAMED = 3
"""So many tensors are told by name."""


def rounded(network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Return a network's tensors by name with weights as float16, and what is to be told of them.

    Buffers, which are few values beside the weights, stay float32, as do weights with a value that
    float16 cannot hold.
    """
    state = network.state_dict()
    buffers = {name for name, tensor in network.named_buffers() if tensor.is_floating_point()}
    stored_buffers = buffers & set(state)
    too_large = set(beyond_range(state)) - stored_buffers
    kept = stored_buffers | too_large
    notes = []
    if stored_buffers:
        notes.append(
            f"float16: {len(stored_buffers)} tensors that are no weights, such as the running "
            "variances of batch norms, stay float32; load all of them into a network of float32"
        )
    if too_large:
        notes.append(
            f"float16: {_named(too_large)} stay float32: they have values beyond {LARGEST:,.0f}, "
            "which float16 cannot hold"
        )
    halved = {
        name: tensor.half() if tensor.is_floating_point() and name not in kept else tensor
        for name, tensor in state.items()
    }
    return halved, notes


def compute_in_half(module: nn.Module) -> None:
    """Turn a module into one that computes in float16, batch norms with statistics of float32.

    Raises: `NotExportable` where another tensor has a value that float16 cannot hold.
    """
    norms = {
        name: (norm, copy.deepcopy(norm.state_dict()))
        for name, norm in module.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    }
    others = {
        name: tensor
        for name, tensor in {**module.state_dict(), **dict(module.named_buffers())}.items()
        if name.rpartition(".")[0] not in norms
    }
    if too_large := set(beyond_range(others)):
        raise errors.NotExportable(
            f"precision 'float16': {_named(too_large)} have values beyond {LARGEST:,.0f}, which a "
            "program of float16 cannot compute with; choose float32"
        )
    module.half()
    for norm, state in norms.values():
        norm.float()
        # What has become infinite in between does not come back by itself.
        norm.load_state_dict(state)


def beyond_range(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Yield the names of finite tensors of which float16 would make an infinite one."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool((tensor.half().isinf() & tensor.isfinite()).any()):
            yield name


def _named(names: set[str]) -> str:
    first = sorted(names)
    further = f" and {len(first) - NAMED} more" if len(first) > NAMED else ""
    return ", ".join(first[:NAMED]) + further
