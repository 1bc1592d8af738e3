"""An ONNX graph as a PyTorch module: for gradients, feature maps and batch norms.

Convolutions, linear layers, batch norms and common activations become torch's own layers, so that
features are found in them as in a network of a library (`external.planning`); every other operator
becomes a step of its own.
"""

import importlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill.networks.graphs import operators
from workers.distill.networks.graphs.onnx_file import Graph, Layout
from workers.distill.networks.graphs.operators import NotConverted, Operator


class GraphOperation(nn.Module):
    """One operator of the graph that is no layer of torch."""

    def __init__(self, operator: Operator, attributes: dict[str, Any], opset: int) -> None:
        super().__init__()
        self._operator, self._attributes, self._opset = operator, attributes, opset

    def forward(self, *given: Tensor | None) -> Any:  # Any: a tensor, or a list of them
        """Return the operator's output or outputs."""
        return self._operator(given, self._attributes, self._opset)


@dataclass(frozen=True)
class GraphStep:
    """A call of one child: which values it takes and gives, and which are not needed after it."""

    child: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    forgets: tuple[str, ...] = ()


class TorchGraph(nn.Module):
    """A graph whose `forward` returns one of its values, most often the logits.

    Its children are its operators, in order, named by the first value that each gives.
    """

    def __init__(self, graph: Graph, *, entry: str, end: str, layout: Layout = "nchw") -> None:
        """Convert a graph that takes images as `entry`; raises `NotConverted`.

        `layout` is that of the graph's images; the module's own are [N, C, H, W].
        """
        super().__init__()
        onnx: Any = importlib.import_module("onnx")
        proto = importlib.import_module("onnx.inliner").inline_local_functions(graph.proto)
        self._entry, self._end, self._layout = entry, end, layout
        self._opset = graph.opset
        self._ranks = _ranks(proto)
        self._fixed: dict[str, Tensor] = {}
        self._names: dict[str, str] = {"": ""}
        self._onnx = onnx
        self._constants = {tensor.name: _tensor(onnx, tensor) for tensor in proto.graph.initializer}
        self._steps = self._forgetting(self._add_steps(proto.graph))
        self._register_constants()
        del self._onnx, self._ranks, self._constants

    @property
    def end(self) -> str:
        """Return the value that `forward` returns."""
        return self._end

    @property
    def steps(self) -> list[GraphStep]:
        """Return the calls of the children, in order."""
        return self._steps

    def forward(self, images: Tensor) -> Tensor:
        """Return the value `end`."""
        return self.values(images, (self._end,))[0]

    def values(self, images: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        """Return some values of the graph for a batch of its input."""
        entry = images if self._layout == "nchw" else images.permute(0, 2, 3, 1)
        known: dict[str, Tensor | None] = {"": None, self._entry: entry, **self._fixed}
        known.update((value, getattr(self, name)) for value, name in self._buffers_by_value.items())
        for step in self._steps:
            given = self.get_submodule(step.child)(*(known[name] for name in step.takes))
            found = given if isinstance(given, list) else [given]
            known.update(zip(step.gives, found, strict=False))
            for name in step.forgets:
                if name not in wanted:
                    known.pop(name, None)
        missing = [name for name in wanted if known.get(name) is None]
        if missing:
            raise KeyError(f"the graph has no value {missing[0]!r}")
        return [known[name] for name in wanted]  # type: ignore[misc]  # checked above

    def _add_steps(self, graph: Any) -> list[GraphStep]:
        uses = Counter(name for node in graph.node for name in node.input)
        uses.update(one.name for one in graph.output)
        nodes = list(graph.node)
        steps: list[GraphStep] = []
        skipped: set[int] = set()
        for place, node in enumerate(nodes):
            if place in skipped:
                continue
            attributes = self._attributes(node)
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _constant(attributes)
                continue
            gives = tuple(node.output)
            takes = tuple(node.input)
            if self._fold(node, attributes):
                continue
            bias = None
            if node.op_type == "MatMul" and self._is_matrix(node) and uses[gives[0]] == 1:
                bias = self._added_bias(nodes, place)
            if bias is not None:
                skipped.add(bias[0])
                gives = tuple(nodes[bias[0]].output)
            child, takes = self._child(node, attributes, takes, bias and bias[1])
            name = self._name_of(gives[0])
            self.add_module(name, child)
            steps.append(GraphStep(name, takes, gives))
        return steps

    def _child(
        self, node: Any, attributes: dict[str, Any], takes: tuple[str, ...], bias: str | None
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """Return the module of an operator, and the values that it takes."""
        constants = [self._constants.get(name) for name in takes]
        layer = _layer(node.op_type, constants, attributes, self._ranks.get(takes[0], 4))
        if layer is not None:
            if bias is not None and isinstance(layer, nn.Linear):
                layer.bias = nn.Parameter(self._constants[bias].reshape(-1).clone())
            return layer.requires_grad_(False), takes[:1]
        operator = operators.OPERATORS.get(node.op_type)
        if operator is None or node.domain not in ("", "ai.onnx"):
            raise NotConverted(f"the operator {node.domain and node.domain + '::'}{node.op_type}")
        return GraphOperation(operator, attributes, self._opset), takes

    def _fold(self, node: Any, attributes: dict[str, Any]) -> bool:
        """Compute a value of constants alone, such as weights under a second name."""
        operator = operators.OPERATORS.get(node.op_type)
        given = [self._constants.get(name) for name in node.input]
        is_fixed = bool(node.input) and all(
            one is not None or not name for one, name in zip(given, node.input, strict=True)
        )
        if operator is None or not is_fixed or len(node.output) != 1:
            return False
        self._constants[node.output[0]] = operator(given, attributes, self._opset)
        return True

    def _is_matrix(self, node: Any) -> bool:
        weight = self._constants.get(node.input[1])
        return weight is not None and weight.dim() == 2

    def _added_bias(self, nodes: list[Any], place: int) -> tuple[int, str] | None:
        """Return the place of an addition of constants to a product, and their name, if any."""
        product = nodes[place].output[0]
        width = self._constants[nodes[place].input[1]].shape[1]
        for later in range(place + 1, len(nodes)):
            node = nodes[later]
            if product not in node.input:
                continue
            other = next((name for name in node.input if name != product), "")
            bias = self._constants.get(other)
            fits = node.op_type == "Add" and bias is not None and bias.numel() == width
            return (later, other) if fits and bias is not None and bias.dim() <= 2 else None
        return None

    def _attributes(self, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"outputs": len(node.output)}
        for attribute in node.attribute:
            value = self._onnx.helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode()
            elif isinstance(value, self._onnx.TensorProto):
                value = _tensor(self._onnx, value)
            elif isinstance(value, self._onnx.GraphProto):
                raise NotConverted(f"the operator {node.op_type}, which has a graph of its own")
            found[attribute.name] = value
        return found

    def _name_of(self, value: str) -> str:
        """Return a name for a module, which has no dots and is no name that torch uses."""
        plain = "v_" + (re.sub(r"\W", "_", value) or "unnamed")
        name, count = plain, 1
        while hasattr(self, name):
            count += 1
            name = f"{plain}_{count}"
        return name

    def _forgetting(self, steps: list[GraphStep]) -> list[GraphStep]:
        last = {name: place for place, step in enumerate(steps) for name in step.takes}
        ends: dict[int, list[str]] = {}
        for name, place in last.items():
            if name and name not in self._constants and name != self._entry:
                ends.setdefault(place, []).append(name)
        return [
            GraphStep(step.child, step.takes, step.gives, tuple(ends.get(place, ())))
            for place, step in enumerate(steps)
        ]

    def _register_constants(self) -> None:
        """Keep the constants that steps take: numbers on the device, axes and shapes on the CPU."""
        self._buffers_by_value: dict[str, str] = {}
        taken = {name for step in self._steps for name in step.takes}
        for value, tensor in self._constants.items():
            if value not in taken:
                continue
            if not tensor.is_floating_point():
                self._fixed[value] = tensor
                continue
            name = self._name_of(f"constant_{value}")
            self.register_buffer(name, tensor, persistent=False)
            self._buffers_by_value[value] = name


def _layer(
    kind: str, constants: Sequence[Tensor | None], attributes: dict[str, Any], rank: int
) -> nn.Module | None:
    """Return torch's own layer for an operator with constant weights, or None."""
    weights = [one for one in constants[1:] if one is not None]
    if kind == "Conv" and len(weights) == len(constants) - 1 and weights[0].dim() == 4:
        return _conv(weights, attributes)
    if kind == "BatchNormalization" and len(weights) == 4 and attributes["outputs"] == 1:
        return _norm(weights, attributes, rank)
    if kind == "Gemm" and len(weights) == len(constants) - 1 and _is_plain(attributes):
        weight = weights[0] if attributes.get("transB", 0) else weights[0].T
        bias = weights[1].reshape(-1).expand(len(weight)) if len(weights) > 1 else None
        return _linear(weight, bias)
    if kind == "MatMul" and weights and weights[0].dim() == 2:
        return _linear(weights[0].T, None)
    if kind == "Clip" and _limits(constants, attributes) == (0.0, 6.0):
        return nn.ReLU6()
    activations: dict[str, Callable[[], nn.Module]] = {
        "Relu": nn.ReLU,
        "HardSwish": nn.Hardswish,
        "LeakyRelu": lambda: nn.LeakyReLU(attributes.get("alpha", 0.01)),
        "Gelu": lambda: nn.GELU(attributes.get("approximate", "none")),
    }
    return activations[kind]() if kind in activations else None


def _is_plain(attributes: dict[str, Any]) -> bool:
    factors = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    return not attributes.get("transA", 0) and factors == (1.0, 1.0)


def _limits(
    constants: Sequence[Tensor | None], attributes: dict[str, Any]
) -> tuple[float | None, float | None]:
    given = [None if one is None else float(one) for one in constants[1:3]]
    low, high = [*given, None, None][:2]
    return attributes.get("min", low), attributes.get("max", high)


def _conv(weights: list[Tensor], attributes: dict[str, Any]) -> nn.Module | None:
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or pads[:2] != pads[2:]:
        return None
    weight, group = weights[0], attributes.get("group", 1)
    layer = nn.Conv2d(
        weight.shape[1] * group,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]  # two sides
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=tuple(pads[:2]),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=group,
        bias=len(weights) > 1,
    )
    layer.weight.data = weight.clone()
    if layer.bias is not None:
        layer.bias.data = weights[1].clone()
    return layer


def _norm(weights: list[Tensor], attributes: dict[str, Any], rank: int) -> nn.Module:
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    layer = kind(len(weights[0]), eps=attributes.get("epsilon", 1e-5))
    layer.weight.data, layer.bias.data = weights[0].clone(), weights[1].clone()
    layer.running_mean, layer.running_var = weights[2].clone(), weights[3].clone()
    return layer


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight.contiguous().clone()
    if bias is not None:
        layer.bias.data = bias.clone()
    return layer


def _tensor(onnx: Any, proto: Any) -> Tensor:
    array = onnx.numpy_helper.to_array(proto)
    if array.dtype.name not in ("float32", "float64", "float16", "int64", "int32", "bool"):
        raise NotConverted(f"numbers of the type {array.dtype.name}")
    return torch.from_numpy(array.copy())


def _constant(attributes: dict[str, Any]) -> Tensor:
    for name, value in attributes.items():
        if name == "value":
            return value  # type: ignore[no-any-return]  # a tensor
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
    raise NotConverted("a constant that is no tensor of numbers")


def _ranks(proto: Any) -> dict[str, int]:
    """Return how many sides each value has, as far as that can be inferred."""
    inferred = importlib.import_module("onnx.shape_inference").infer_shapes(proto).graph
    infos = [*inferred.value_info, *inferred.input, *inferred.output]
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in infos
        if value.type.tensor_type.HasField("shape")
    }
