"""Finds the modules of a library's network that end its stages and make its last map.

One pass is recorded through all modules, and their inputs and outputs are compared with the
network's features. A candidate that does not reproduce those tensors is dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

RETURNED = "<returned>"
"""Stands for the map that timm's `forward_intermediates` returns, in place of a module's name."""

CLOSE = 1e-4
"""Two ways to compute the same number in float32 agree so far, relative to the largest."""

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.ELU,
    nn.Mish,
    nn.PReLU,
)
RECTIFIERS = (nn.ReLU, nn.ReLU6)
AFTER_POOLING = ("Pool", "Dropout", "Flatten", "Identity")


@dataclass(frozen=True)
class Call:
    """A call of a module: a copy of an activation's input, and any module's output."""

    name: str
    module: nn.Module
    taken: Tensor | None
    given: Any  # Any: whatever the module returned


class Recorder:
    """Record every module's calls, in order, for as long as the `with` block lasts."""

    def __init__(self, network: nn.Module) -> None:
        self.calls: list[Call] = []
        self._network = network
        self._taken: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Add the hooks."""
        for name, module in self._network.named_modules():
            if name:
                if isinstance(module, ACTIVATIONS):
                    self._handles.append(module.register_forward_pre_hook(self._before(name)))
                self._handles.append(module.register_forward_hook(self._after(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    # Any: torch types the arguments and results of hooks so.
    def _before(self, name: str) -> Any:
        def keep(_module: nn.Module, inputs: Any) -> None:
            # A copy, because an activation in place overwrites it.
            self._taken[name] = inputs[0].clone()

        return keep

    def _after(self, name: str) -> Any:
        def keep(module: nn.Module, _inputs: Any, given: Any) -> None:
            self.calls.append(Call(name, module, self._taken.get(name), given))

        return keep


def is_close(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding; False for zeros."""
    if first.shape != second.shape or not second.any():
        return False
    largest = float(second.abs().max())
    return bool(torch.allclose(first, second, rtol=CLOSE, atol=CLOSE * largest))


def pooled_map(
    calls: Sequence[Call], pooled: Tensor, last_stage: Tensor, classifier: str
) -> str | None:
    """Return the last module that gives a map whose average is `pooled`, if there is one.

    The map must be as large as that of the last stage: a pooled output is no map.
    """
    name = None
    for call in _latest(calls):
        if call.name == classifier or any(
            word in type(call.module).__name__ for word in AFTER_POOLING
        ):
            continue
        maps = call.given
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            continue
        width, positions = pooled.shape[1], last_stage.shape[2] * last_stage.shape[3]
        if maps.numel() < width * positions * len(pooled):
            continue
        if maps.shape[1] == width or maps.shape[3] == width:
            channels_first = _channels_first(maps, width)
            if is_close(channels_first.mean(dim=(2, 3)), pooled):
                name = call.name
    return name


def stage_activations(calls: Sequence[Call], stages: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the activation that ends each stage, or nothing unless all stages end so."""
    names = []
    for stage in stages:
        fitting = [
            call.name
            for call in _latest(calls)
            if call.taken is not None
            and isinstance(call.given, Tensor)
            and call.given.shape == stage.shape
            and torch.equal(call.given, stage)
            and torch.equal(_activated(call.module, call.taken), stage)
        ]
        if not fitting:
            return ()
        names.append(fitting[-1])
    return tuple(names)


def stage_norms(
    network: nn.Module, calls: Sequence[Call], activations: Sequence[str]
) -> tuple[str, ...]:
    """Return the batch norm that stands before each rectifier in the same block, or nothing.

    In a residual block that is the norm which the shortcut is added to.
    """
    names = []
    order = {call.name: index for index, call in enumerate(calls)}
    for name in activations:
        if not isinstance(network.get_submodule(name), RECTIFIERS):
            return ()
        block = name.rpartition(".")[0]
        taken = calls[order[name]].taken
        # Subclasses may hold an activation of their own.
        before = [
            call.name
            for call in calls[: order[name]]
            if call.name.rpartition(".")[0] == block
            and type(call.module) is nn.BatchNorm2d
            and taken is not None
            and call.given.shape == taken.shape
        ]
        if not before:
            return ()
        names.append(before[-1])
    return tuple(names)


def as_pooled_map(
    output: Any,  # Any: whatever the module returned
    pooled: Tensor,
    images: Tensor,
) -> Tensor | None:
    """Return [N, C, H, W] with as many channels as `pooled`, or nothing if it is no such map."""
    if not isinstance(output, Tensor):
        return None
    width = pooled.shape[1]
    if output.dim() == 3:
        output = as_map(output, (images.shape[2], images.shape[3]))
    if output.dim() != 4 or width not in (output.shape[1], output.shape[3]):
        return None
    return _channels_first(output, width)


def as_map(output: Any, size: tuple[int, int]) -> Tensor:  # Any: whatever the module returned
    """Return [N, C, H, W] from maps in either layout, or from tokens."""
    if not isinstance(output, Tensor) or output.dim() not in (3, 4):
        raise ValueError("a tapped module returns neither maps nor tokens; tap another one")
    ratio = size[0] / size[1]
    if output.dim() == 4:
        _, first, second, third = output.shape
        is_last = first == round(second * ratio) and second != round(third * ratio)
        return output.permute(0, 3, 1, 2) if is_last else output
    samples, tokens, channels = output.shape
    rows = math.isqrt(int(tokens * ratio))
    columns = int(rows / ratio)
    # Class and register tokens come first and have no place on the map.
    grid = output[:, tokens - rows * columns :]
    return grid.transpose(1, 2).reshape(samples, channels, rows, columns)


def _channels_first(maps: Tensor, width: int) -> Tensor:
    return maps if maps.shape[1] == width else maps.permute(0, 3, 1, 2)


def _latest(calls: Sequence[Call]) -> list[Call]:
    """Return the latest call of each module, in order: what a `Tap` would hold."""
    latest = {call.name: index for index, call in enumerate(calls)}
    return [call for index, call in enumerate(calls) if latest[call.name] == index]


@torch.no_grad()
def _activated(module: nn.Module, taken: Tensor) -> Tensor:
    activated: Tensor = module(taken.clone())
    return activated
