"""A moving average of everything that is learned, beside the weights that learn.

It follows the parameters and the running moments of batch norm, of the student and of its method:
both can be part of what is delivered, and averaged weights need moments of their own time. Other
buffers, such as memory banks and counters, stay as they are.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm


class EMA:
    """An exponential moving average that can stand in for what it follows."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self._decay = decay
        found = followed(modules)
        self._names = list(found)
        self._sources = list(found.values())
        self._values = [source.clone() for source in self._sources]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the weights after a step (from 1).

        The first steps count for more: an average that kept its full share would long remember
        the random start.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._values, self._sources, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in the place of what they follow, for as long as the context lasts."""
        kept = [source.clone() for source in self._sources]
        with torch.no_grad():
            torch._foreach_copy_(self._sources, self._values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._sources, kept)

    @torch.no_grad()
    def lend_to(self, modules: Mapping[str, nn.Module]) -> None:
        """Copy the averages into modules like those that are followed."""
        found = followed(modules)
        torch._foreach_copy_([found[name] for name in self._names], self._values)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep."""
        return dict(zip(self._names, self._values, strict=True))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        for name, value in zip(self._names, self._values, strict=True):
            value.copy_(state[name])


def followed(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return what is averaged, each tensor once, by the name of its module and its own."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for owner, module in modules.items():
        for name, tensor in (*_parameters(module), *_moments(module)):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{owner}.{name}"] = tensor.detach()
    return found


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
