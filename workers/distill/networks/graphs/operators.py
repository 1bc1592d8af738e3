"""ONNX's operators in PyTorch, those that classifiers of images are made of.

Each takes its inputs (None where one is left out), its attributes and the version of its operator
set. An operator that is not here is named to the user; whether those that are here compute what
onnxruntime computes is checked for each graph on a batch (`graphs.network`).
Source: https://onnx.ai/onnx/operators/.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from torch import Tensor

Attributes: TypeAlias = Mapping[str, Any]
Operator: TypeAlias = Callable[[Sequence[Any], Attributes, int], Any]
"""Returns a tensor, or a list of them."""


class NotConverted(Exception):
    """A graph has something that is not converted; the message says what."""


def whole(numbers: Tensor) -> list[int]:
    """Return whole numbers such as axes or a shape."""
    return [int(number) for number in numbers.reshape(-1).tolist()]


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda given, attributes, opset: function(*given)


def _axes(given: Sequence[Any], attributes: Attributes, place: int = 1) -> list[int] | None:
    """Return axes, which newer operator sets have as an input and older ones as an attribute."""
    if len(given) > place and given[place] is not None:
        return whole(given[place])
    axes = attributes.get("axes")
    return None if axes is None else list(axes)


def _reduced(function: Callable[..., Tensor]) -> Operator:
    def reduce(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
        axes = _axes(given, attributes)
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return given[0]  # type: ignore[no-any-return]  # a tensor
            axes = list(range(given[0].dim()))
        return function(given[0], dim=axes, keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _pads(attributes: Attributes) -> tuple[list[int], bool]:
    """Return the padding of both spatial sides, before and after, and whether it is symmetric."""
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NotConverted(f"padding {attributes['auto_pad']} of a convolution or a pooling")
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    if len(pads) != 4:
        raise NotConverted("a convolution or a pooling over other than 2 sides")
    return pads, pads[:2] == pads[2:]


def _padded(images: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    top, left, bottom, right = pads
    return F.pad(images, (left, right, top, bottom), value=value)


def _conv(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    images, weight, *rest = given
    pads, is_symmetric = _pads(attributes)
    return F.conv2d(
        images if is_symmetric else _padded(images, pads),
        weight,
        rest[0] if rest else None,
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=tuple(pads[:2]) if is_symmetric else 0,
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=attributes.get("group", 1),
    )


def _max_pool(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    kernel = tuple(attributes["kernel_shape"])
    pads, _ = _pads(attributes)
    return F.max_pool2d(
        _padded(given[0], pads, value=-math.inf) if any(pads) else given[0],
        kernel,
        stride=tuple(attributes.get("strides", (1, 1))),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _average_pool(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    pads, is_symmetric = _pads(attributes)
    counts_padding = bool(attributes.get("count_include_pad", 0))
    if not is_symmetric and not counts_padding:
        raise NotConverted("an average pooling whose padding differs by side and does not count")
    return F.avg_pool2d(
        given[0] if is_symmetric else _padded(given[0], pads),
        tuple(attributes["kernel_shape"]),
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=tuple(pads[:2]) if is_symmetric else 0,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=counts_padding,
    )


def _gemm(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    left, right, *rest = given
    left = left.T if attributes.get("transA", 0) else left
    right = right.T if attributes.get("transB", 0) else right
    product: Tensor = attributes.get("alpha", 1.0) * (left @ right)
    return product + attributes.get("beta", 1.0) * rest[0] if rest else product


def _batch_norm(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    images, scale, shift, mean, variance = given[:5]
    return F.batch_norm(
        images, mean, variance, scale, shift, training=False, eps=attributes.get("epsilon", 1e-5)
    )


def _layer_norm(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    first = attributes.get("axis", -1) % given[0].dim()
    return F.layer_norm(
        given[0],
        given[0].shape[first:],
        given[1],
        given[2] if len(given) > 2 else None,
        eps=attributes.get("epsilon", 1e-5),
    )


def _instance_norm(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    eps = attributes.get("epsilon", 1e-5)
    return F.instance_norm(given[0], weight=given[1], bias=given[2], eps=eps)


def _clip(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    low = given[1] if len(given) > 1 else attributes.get("min")
    high = given[2] if len(given) > 2 else attributes.get("max")
    return torch.clamp(given[0], low, high) if (low, high) != (None, None) else given[0]


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def normalise(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
        axis = attributes.get("axis", -1 if opset >= 13 else 1)
        if opset < 13 and axis % given[0].dim() != given[0].dim() - 1:
            raise NotConverted("a softmax over several sides at once, as before opset 13")
        return function(given[0], dim=axis)

    return normalise


def _gelu(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    return F.gelu(given[0], approximate=attributes.get("approximate", "none"))


def _reshape(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    shape = whole(given[1])
    if not attributes.get("allowzero", 0):
        shape = [given[0].shape[i] if side == 0 else side for i, side in enumerate(shape)]
    reshaped: Tensor = given[0].reshape(shape)
    return reshaped


def _flatten(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + given[0].dim() if axis < 0 else axis
    flat: Tensor = given[0].reshape(math.prod(given[0].shape[:axis]), -1)
    return flat


def _transpose(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    order = attributes.get("perm", range(given[0].dim() - 1, -1, -1))
    moved: Tensor = given[0].permute(*order)
    return moved


def _squeeze(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    axes = _axes(given, attributes)
    squeezed: Tensor = given[0].squeeze() if axes is None else given[0].squeeze(tuple(axes))
    return squeezed


def _unsqueeze(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    axes = _axes(given, attributes) or []
    widened: Tensor = given[0]
    total = widened.dim() + len(axes)
    for axis in sorted(axis % total for axis in axes):
        widened = widened.unsqueeze(axis)
    return widened


def _concat(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    return torch.cat(list(given), dim=attributes["axis"])


def _split(given: Sequence[Any], attributes: Attributes, opset: int) -> list[Tensor]:
    axis = attributes.get("axis", 0)
    sizes = _axes(given, {"axes": attributes.get("split")})
    if sizes is None:
        count = attributes.get("num_outputs") or attributes["outputs"]
        each = math.ceil(given[0].shape[axis] / count)
        return list(torch.split(given[0], each, dim=axis))
    return list(torch.split(given[0], sizes, dim=axis))


def _slice(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    if len(given) > 1:
        starts, ends = whole(given[1]), whole(given[2])
        axes = _axes(given, {}, 3)
        steps = _axes(given, {}, 4)
    else:
        starts, ends = list(attributes["starts"]), list(attributes["ends"])
        axes, steps = _axes([], attributes), None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cut: Tensor = given[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        side = cut.shape[axis]
        places = range(side)[slice(start, end, step)]
        if step == 1:
            cut = cut.narrow(axis, places.start, len(places))
        else:
            cut = cut.index_select(axis, torch.tensor(list(places), device=cut.device))
    return cut


def _gather(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    axis = attributes.get("axis", 0) % given[0].dim()
    side = given[0].shape[axis]
    index = given[1].to(given[0].device)
    index = torch.where(index < 0, index + side, index)
    chosen = given[0].index_select(axis, index.reshape(-1))
    shape = [*given[0].shape[:axis], *index.shape, *given[0].shape[axis + 1 :]]
    gathered: Tensor = chosen.reshape(shape)
    return gathered


def _shape(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    sides = list(given[0].shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(sides, dtype=torch.int64)


def _expand(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    shape = np.broadcast_shapes(tuple(given[0].shape), tuple(whole(given[1])))
    expanded: Tensor = given[0].expand(shape)
    return expanded


def _filled(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    value = attributes.get("value", torch.zeros(1))
    return value.reshape(()).expand(whole(given[0]))  # type: ignore[no-any-return]  # a tensor


def _pad(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    if attributes.get("mode", "constant") not in ("constant", "reflect"):
        raise NotConverted(f"padding of mode {attributes['mode']}")
    pads = whole(given[1]) if len(given) > 1 else list(attributes["pads"])
    if len(given) > 3 and given[3] is not None:
        raise NotConverted("padding of chosen axes")
    value = given[2] if len(given) > 2 and given[2] is not None else attributes.get("value", 0.0)
    sides = len(pads) // 2
    ordered = [pad for i in range(sides - 1, -1, -1) for pad in (pads[i], pads[i + sides])]
    if attributes.get("mode", "constant") == "reflect":
        while ordered[-2:] == [0, 0] and len(ordered) > 2:
            ordered = ordered[:-2]
        return F.pad(given[0], ordered, mode="reflect")
    return F.pad(given[0], ordered, value=float(value))


TYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}


def _cast(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    if attributes["to"] not in TYPES:
        raise NotConverted(f"numbers of ONNX's type {attributes['to']}")
    cast: Tensor = given[0].to(TYPES[attributes["to"]])
    return cast


def _div(given: Sequence[Any], attributes: Attributes, opset: int) -> Tensor:
    left, right = given
    rounding = None if left.is_floating_point() else "trunc"
    return torch.div(left, right, rounding_mode=rounding)


OPERATORS: dict[str, Operator] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "And": _elementwise(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _elementwise(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Div": _div,
    "Dropout": lambda given, attributes, opset: given[0],
    "Elu": lambda given, attributes, opset: F.elu(given[0], attributes.get("alpha", 1.0)),
    "Equal": _elementwise(torch.eq),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _elementwise(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda given, attributes, opset: given[0].mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda given, attributes, opset: given[0].amax((2, 3), keepdim=True),
    "HardSigmoid": lambda given, attributes, opset: torch.clamp(
        attributes.get("alpha", 0.2) * given[0] + attributes.get("beta", 0.5), 0, 1
    ),
    "HardSwish": _elementwise(F.hardswish),
    "Identity": lambda given, attributes, opset: given[0],
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda given, attributes, opset: F.leaky_relu(
        given[0], attributes.get("alpha", 0.01)
    ),
    "Log": _elementwise(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _elementwise(torch.matmul),
    "Max": lambda given, attributes, opset: functools.reduce(torch.maximum, given),
    "MaxPool": _max_pool,
    "Min": lambda given, attributes, opset: functools.reduce(torch.minimum, given),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "Not": _elementwise(torch.logical_not),
    "PRelu": lambda given, attributes, opset: torch.where(
        given[0] >= 0, given[0], given[1] * given[0]
    ),
    "Pad": _pad,
    "Pow": _elementwise(torch.pow),
    "Reciprocal": _elementwise(torch.reciprocal),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSum": _reduced(torch.sum),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Selu": lambda given, attributes, opset: F.selu(given[0]),
    "Shape": _shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _elementwise(F.softplus),
    "Split": _split,
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub),
    "Sum": lambda given, attributes, opset: sum(given[1:], given[0]),
    "Tanh": _elementwise(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda given, attributes, opset: torch.where(given[0], given[1], given[2]),
}
