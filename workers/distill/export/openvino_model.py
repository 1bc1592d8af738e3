"""Write a graph as an OpenVINO model (`.xml` and `.bin`), and run one on the processor."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from workers.distill import errors

FILE = "model.xml"
"""Its weights lie beside it, in `model.bin`."""
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""Processors with bfloat16 would round otherwise, and the comparison would be of that."""


def write(source: Path, target: Path, *, half: bool) -> None:
    """Write a graph of ONNX as a model with weights in float32 or float16.

    Raises: `NotExportable` where this machine lacks OpenVINO, or that cannot read the graph.
    """
    openvino = _library()
    try:
        # Core itself reads ONNX; `convert_model` would first look for the network's own library.
        model = openvino.Core().read_model(source)
    except RuntimeError as error:
        raise errors.NotExportable(
            f"OpenVINO cannot read the graph of this network: {str(error).splitlines()[-1][:300]}; "
            "choose format onnx"
        ) from error
    openvino.save_model(model, target, compress_to_fp16=half)


class OpenvinoModel:
    """A model as it was read again from its files."""

    def __init__(self, path: Path, *, threads: int) -> None:
        core = _library().Core()
        settings = {**_EXACT, "INFERENCE_NUM_THREADS": threads}
        self._model = core.compile_model(path, "CPU", settings)

    def __call__(self, images: Shaped[Tensor, "N c h w"]) -> tuple[Tensor, ...]:
        """Return the outputs for images of the type that the model takes."""
        found = self._model([np.ascontiguousarray(images.numpy())])
        # The library writes the next answer over this one.
        return tuple(torch.from_numpy(np.array(found[port])) for port in self._model.outputs)


def _library() -> Any:  # Any: an optional package
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise errors.NotExportable(
            "format 'openvino': this worker has not the package openvino; have its operator "
            "install retort-distill[openvino], or choose onnx"
        ) from error
