"""Embeddings of positions, whose number follows from the size of the images.

Weights of a transformer for images of another size differ from a network's in these tensors alone.
They can be interpolated, which changes what the network answers; so it is done on request only.

Source: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, section 3.2 (bicubic here, as in timm); for
tables of relative positions Liu et al., ICCV 2021, arXiv:2103.14030, section 3.2.
"""

import importlib
import math
from typing import Any

from torch import Tensor, nn

ABSOLUTE = ("pos_embed", "encoder.pos_embedding")
RELATIVE = "relative_position_bias_table"


def are_positions(key: str) -> bool:
    """Whether a key is that of positions."""
    return key in ABSOLUTE or key.endswith(RELATIVE)


def resized(network: nn.Module, key: str, stored: Tensor) -> Tensor | None:
    """Return positions interpolated to a network's size, or None where that is not possible."""
    target = network.state_dict()[key]
    layers: Any = importlib.import_module("timm.layers")
    if key.endswith(RELATIVE):
        module: Any = network.get_submodule(key.rpartition(".")[0])
        if stored.dim() != 2 or stored.shape[1:] != target.shape[1:] or window(stored) is None:
            return None
        table: Tensor = layers.resize_rel_pos_bias_table(
            stored.float(),
            new_window_size=tuple(module.window_size),
            new_bias_shape=tuple(target.shape),
        )
        return table
    kept, grid = prefix_tokens(network), _grid(network)
    if grid is None or side_of(stored, kept) is None or stored.shape[2:] != target.shape[2:]:
        return None
    positions: Tensor = layers.resample_abs_pos_embed(
        stored.float(), new_size=list(grid), num_prefix_tokens=kept
    )
    return positions


def explanation(network: nn.Module, key: str, stored: Tensor) -> str:
    """Return for which images stored positions are, and the ways out."""
    ways_out = (
        "give that size as the input, or resize_positions true to have the positions interpolated"
    )
    if key.endswith(RELATIVE):
        trained = window(stored) if stored.dim() == 2 else None
        if trained is None:
            return ""
        module: Any = network.get_submodule(key.rpartition(".")[0])
        own = tuple(module.window_size)
        return (
            f"The file is for windows of {trained}x{trained} positions, and this network for "
            f"images of this size has {own[0]}x{own[1]}; {ways_out}."
        )
    side, patch = side_of(stored, prefix_tokens(network)), _patch(network)
    if side is None or patch is None:
        return ""
    return (
        f"The file is for images of {side * patch[0]}x{side * patch[1]} (a grid of {side}x{side} "
        f"patches); {ways_out}."
    )


def prefix_tokens(network: nn.Module) -> int:
    """Return how many embeddings are no positions: those of class tokens."""
    if getattr(network, "no_embed_class", False):
        return 0
    return int(getattr(network, "num_prefix_tokens", 1))


def side_of(stored: Tensor, kept: int) -> int | None:
    """Return the side of the square grid of stored positions [1, N, D], or None for another."""
    if stored.dim() != 3 or stored.shape[0] != 1 or stored.shape[1] <= kept:
        return None
    side = math.isqrt(stored.shape[1] - kept)
    return side if side * side == stored.shape[1] - kept else None


def window(stored: Tensor) -> int | None:
    """Return the side of the window of a table of (2 W - 1)^2 relative positions."""
    side = math.isqrt(stored.shape[0])
    return (side + 1) // 2 if side * side == stored.shape[0] and side % 2 else None


def _patch(network: nn.Module) -> tuple[int, int] | None:
    part: Any = getattr(network, "patch_embed", network)
    size: Any = getattr(part, "patch_size", None)
    if isinstance(size, int):
        return size, size
    return tuple(size) if isinstance(size, tuple | list) and len(size) == 2 else None


def _grid(network: Any) -> tuple[int, int] | None:
    own: Any = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if own is not None:
        return tuple(own)
    patch, shape = _patch(network), getattr(network, "image_shape", None)
    if patch is None or shape is None:
        return None
    return shape[1] // patch[0], shape[2] // patch[1]
