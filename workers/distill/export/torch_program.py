"""Write a network as a program of torch.export (`.pt2`), and run one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.distill.export import graph

FILE = "model.pt2"


def write(module: graph.ExportedGraph, path: Path, *, half: bool) -> None:
    """Write a program for a batch of any size, in float32 or float16. Raises: `NotExportable`."""
    traced = graph.HalfPrecision(module) if half else module
    torch.export.save(graph.trace(traced, module.example()), path)


class TorchProgram:
    """A program as it was read again from its file."""

    def __init__(self, path: Path) -> None:
        loaded: Any = torch.export.load(path)
        self._module = loaded.module()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images of the type that the program takes."""
        outputs: tuple[Tensor, ...] = self._module(images)
        return outputs
