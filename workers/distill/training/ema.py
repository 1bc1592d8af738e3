"""Exponential moving averages of weights.

Averaged are the parameters and the running moments of batch norm, of the student and of its method:
both can be part of what is delivered, and averaged weights need moments of their own time. Other
buffers, such as memory banks and counters, stay as they are.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm


class EMA:
    """An exponential moving average of modules, which can replace their weights for a while."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self._decay = decay
        tensors = averaged_tensors(modules)
        self._names = list(tensors)
        self._sources = list(tensors.values())
        self._values = [source.clone() for source in self._sources]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights after a step (from 1).

        The first steps count for more: an average with its full decay would keep much of
        the random start for long.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._values, self._sources, 1 - decay)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the weights by their averages inside the context."""
        originals = [source.clone() for source in self._sources]
        with torch.no_grad():
            torch._foreach_copy_(self._sources, self._values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._sources, originals)

    @torch.no_grad()
    def copy_to(self, modules: Mapping[str, nn.Module]) -> None:
        """Copy the averages into modules of the same structure."""
        tensors = averaged_tensors(modules)
        torch._foreach_copy_([tensors[name] for name in self._names], self._values)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return dict(zip(self._names, self._values, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for name, value in zip(self._names, self._values, strict=True):
            value.copy_(state[name])


def averaged_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return what is averaged, each tensor once, by the name of its module and its own."""
    averaged: dict[str, Tensor] = {}
    ids: set[int] = set()
    for owner, module in modules.items():
        for name, tensor in (*_parameters(module), *_moments(module)):
            if id(tensor) not in ids:
                ids.add(id(tensor))
                averaged[f"{owner}.{name}"] = tensor.detach()
    return averaged


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _moments(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, part in module.named_modules():
        if isinstance(part, batchnorm._BatchNorm):
            for name, buffer in part.named_buffers(recurse=False):
                if name in ("running_mean", "running_var"):
                    yield f"{prefix}.{name}".removeprefix("."), buffer
