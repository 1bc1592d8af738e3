"""Reads an ONNX file that a stranger made: what it holds, and whether it can teach.

Nothing of it is run here but by onnxruntime, whose operators are fixed: a graph names them and
brings no code. Both libraries are imported only when a graph is read.
"""

import copy
import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from workers.distill import errors

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
"""Operators that onnxruntime brings itself."""
MOST_LISTED = 5
MOST_BYTES = 2 << 30
"""Of a file without external data; protobuf reads no more."""
FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}
"""Types of numbers by ONNX's own number of them."""
BYTES = 2
"""ONNX's number of uint8."""
EXTERNAL = 1
"""`TensorProto.EXTERNAL`."""

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Value:
    """An input or output of a graph: its name, its type by ONNX's number, its sides."""

    name: str
    element: int
    sides: tuple[int | str | None, ...]
    """A number, the name of a side of any length, or None."""

    def in_words(self) -> str:
        """Return the value with its sides, such as `images [batch, 3, 32, 32]`."""
        return f"{self.name} [{', '.join('?' if s is None else str(s) for s in self.sides)}]"


@dataclass(frozen=True)
class Graph:
    """A file that was read and checked, as ONNX's own object and as what matters of it."""

    proto: Any  # Any: onnx.ModelProto; onnx is imported only when a graph is read
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opset: int
    parameters: int


def read(path: Path) -> Graph:
    """Return a checked graph; no tensor outside of the file is looked at.

    Raises `UploadRefused` for what is no ONNX graph, refers to other files, or has operators that
    onnxruntime does not bring.
    """
    onnx: Any = importlib.import_module("onnx")
    size = path.stat().st_size
    if size >= MOST_BYTES:
        raise errors.UploadRefused(
            "too_large", f"{path.name} has {size} bytes; an ONNX file has less than {MOST_BYTES}"
        )
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    # Of protobuf: its errors are of a class of the C++ extension or of Python's, by its build.
    except Exception as error:
        raise errors.UploadRefused(
            "unreadable",
            f"{path.name} is no ONNX file that can be read ({type(error).__name__}: {error}); "
            "export the network again, or upload its state dictionary as a model",
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is no ONNX model: there is no operator in its graph"
        )
    _refuse_external(path, proto)
    _refuse_custom(path, proto)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # of a compiled extension: ValidationError, and others by its build
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is not a valid ONNX model: {reason}"
        ) from error
    constants = {tensor.name for tensor in proto.graph.initializer}
    return Graph(
        proto,
        # Old exporters list the weights among the inputs.
        inputs=tuple(_value(one) for one in proto.graph.input if one.name not in constants),
        outputs=tuple(_value(one) for one in proto.graph.output),
        opset=max(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")),
        parameters=sum(
            int(np.prod(tensor.dims, dtype=np.int64))
            for tensor in _tensors(proto.graph)
            if tensor.data_type in FLOATS
        ),
    )


def looks_like(path: Path) -> bool:
    """Return whether the first bytes are those of an ONNX model: its version, then its producer."""
    with path.open("rb") as stream:
        return re.match(rb"\x08[\x01-\x40](\x12|\x3a|\x42|\x1a)", stream.read(3)) is not None


def _refuse_external(path: Path, proto: Any) -> None:
    """Raise `UploadRefused`, naming the files with weights that were not uploaded, if any."""
    files = {
        entry.value
        for tensor in _tensors(proto.graph)
        if tensor.data_location == EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if files:
        raise errors.UploadRefused(
            "external_data",
            f"the weights of {path.name} are in other files, which are not in the upload: "
            f"{_listed(sorted(files))}. Export it in one file (torch.onnx.export(..., "
            "external_data=False)), or make it one: onnx.save_model(onnx.load(file), new_file)",
        )


def _refuse_custom(path: Path, proto: Any) -> None:
    """Raise `UploadRefused`, naming the operators that only their authors have, if any."""
    known = DOMAINS | {function.domain for function in proto.functions}
    nodes = [node for graph in _graphs(proto.graph) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    custom = {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in known}
    if custom:
        raise errors.UploadRefused(
            "custom_operators",
            f"{path.name} needs operators that are not part of ONNX: {_listed(sorted(custom))}; "
            "export it with standard operators alone, or upload its predictions "
            "(retort upload predictions)",
        )


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and those inside its operators (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            for one in inner:
                yield from _graphs(one)


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all constant tensors of a graph."""
    for one in _graphs(graph):
        yield from one.initializer
        for node in one.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _value(declared: Any) -> Value:
    tensor = declared.type.tensor_type
    sides: list[int | str | None] = []
    for side in tensor.shape.dim if tensor.HasField("shape") else ():
        kind = side.WhichOneof("value")
        sides.append(None if kind is None else getattr(side, kind))
    return Value(declared.name, tensor.elem_type, tuple(sides))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


class Session:
    """A graph in onnxruntime, with as many threads as torch has at the time of a call.

    A copy of a network shares it: running it changes nothing.
    """

    def __init__(self, graph: Graph, outputs: Sequence[str]) -> None:
        self._content = graph.proto.SerializeToString()
        self._outputs = list(outputs)
        self._by_threads: dict[int, Any] = {}  # Any: onnxruntime.InferenceSession

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        """Return itself."""
        return copy.copy(self)

    def run(self, name: str, batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the chosen outputs for a batch of the input `name`.

        Raises `ValueError` with onnxruntime's own words where it cannot be run.
        """
        try:
            session = self._session()
            found: list[NDArray[Any]] = session.run(self._outputs, {name: batch})
        except MemoryError:
            raise
        # Classes of its compiled part, which share no base but Exception.
        except Exception as error:
            if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise ValueError(str(error).strip() or type(error).__name__) from error
        return found

    def _session(self) -> Any:
        threads = torch.get_num_threads()
        if threads not in self._by_threads:
            runtime: Any = importlib.import_module("onnxruntime")
            options = runtime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            # Threads that wait by spinning would take the cores from the student's step.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            # As many numbers in the same order on every run.
            options.use_deterministic_compute = True
            self._by_threads = {
                threads: runtime.InferenceSession(
                    self._content, options, providers=["CPUExecutionProvider"]
                )
            }
        return self._by_threads[threads]
