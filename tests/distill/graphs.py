"""Small ONNX graphs, written by hand so that tests need no exporter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.distill.networks.interface import Network

OPSET = 18
IMAGE = ("n", 1, 8, 8)


def model(
    nodes: Sequence[Any],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    image: Sequence[int | str] = IMAGE,
    outputs: Sequence[str] = ("logits",),
    sides: Sequence[Any] | None = ("n", None),
    element: int = TensorProto.FLOAT,
    opset: int = OPSET,
) -> Any:
    """Return a graph of `images` and these outputs; without `sides` theirs are inferred."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("images", element, list(image))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, sides or [None] * 4)
            for name in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    if sides is None:
        del made.graph.output[0].type.tensor_type.shape.dim[:]
        for output in made.graph.output:
            output.type.tensor_type.ClearField("shape")
        made = onnx.shape_inference.infer_shapes(made)
    return made


def of_mlp(network: Network, **changes: Any) -> Any:
    """Return the graph of a retort/mlp with two hidden layers, its embedding among the outputs."""
    constants = {
        name: tensor.detach().numpy().astype(np.float32)
        for name, tensor in network.state_dict().items()
    }
    linear = [
        ("layers.0", "flat", "one"),
        ("layers.1", "relu", "pooled"),
        ("fc", "pooled", "logits"),
    ]
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        *(
            helper.make_node("Gemm", [taken, f"{layer}.weight", f"{layer}.bias"], [given], transB=1)
            for layer, taken, given in linear
        ),
    ]
    nodes.insert(2, helper.make_node("Relu", ["one"], ["relu"]))
    return model(nodes, constants, **{"outputs": ("logits", "pooled"), **changes})


def with_softmax(graph: Any) -> Any:
    """Return a graph that answers with probabilities, under the same name."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    for node in changed.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    changed.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"], axis=-1))
    return changed


def save(graph: Any, path: Path) -> Path:
    """Write a graph, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(graph, str(path))
    return path
