"""Write a network as an ONNX graph, in three precisions, and run one with onnxruntime."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from workers.distill import errors
from workers.distill.config.exports import INPUT_NAME
from workers.distill.export import graph, half_precision

BATCH = "batch"
"""What the first side of every input and output is called in a graph."""
QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose weights and inputs become int8; what follows them, such as the arithmetic of
boxes, keeps its precision."""
CALIBRATION_IMAGES = 256
MOST_WEIGHTS_BYTES = 2**31 - 2**24
"""A file of ONNX is one message of Protocol Buffers, which has less than 2 GiB; the rest is for the
graph itself."""


def write(module: graph.ExportedGraph, path: Path) -> int:
    """Write a graph in float32, and return its opset. Raises: `NotExportable`."""
    _check_size(module)
    program = graph.trace(module, module.example())
    said = io.StringIO()
    try:
        # The exporter prints its steps, and warns of what it chooses by itself.
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=list(module.output_names),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise errors.NotExportable(
            f"the exporter of ONNX cannot write this network: {str(error).splitlines()[0][:300]}"
        ) from error
    model = exported.model_proto
    _name_batch(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return opset_of(model)


def _check_size(module: graph.ExportedGraph) -> None:
    size_bytes = sum(tensor.nbytes for tensor in module.network.state_dict().values())
    if size_bytes > MOST_WEIGHTS_BYTES:
        raise errors.NotExportable(
            f"the weights have {size_bytes} bytes in float32, and a file of ONNX holds "
            f"{MOST_WEIGHTS_BYTES}; choose format torch_export, torch_state_dict or hub"
        )


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return max(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def to_float16(source: Path, target: Path) -> list[str]:
    """Write a graph with weights and arithmetic in float16; inputs and outputs stay float32.

    Operators that have a constant which float16 cannot hold stay float32; what is returned says so.
    """
    from onnxruntime.transformers import float16  # it takes a second, and few exports need it

    model = onnx.load(source)
    too_large = beyond_float16(model)
    kept = [node for node in model.graph.node if too_large & set(node.input)]
    with warnings.catch_warnings():
        # Of values that become 0: what that costs is measured.
        warnings.simplefilter("ignore")
        model = float16.convert_float_to_float16(
            model, keep_io_types=True, node_block_list=[node.name for node in kept]
        )
    onnx.save(model, target)
    if not kept:
        return []
    operators = ", ".join(sorted({node.op_type for node in kept}))
    return [
        f"float16: {len(kept)} operators ({operators}) compute in float32: they have constants "
        f"beyond {half_precision.LARGEST:,.0f}, which float16 cannot hold"
    ]


def beyond_float16(model: onnx.ModelProto) -> set[str]:
    """Return the names of a graph's constants that have values which float16 cannot hold."""
    return {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) > half_precision.LARGEST
    }


def to_int8(source: Path, target: Path, batches: Sequence[NDArray[Any]], scratch: Path) -> None:
    """Write a graph whose convolutions and matrix products compute in int8.

    Static quantisation in ONNX's form of pairs QuantizeLinear and DequantizeLinear: weights by
    channel, activations by the range that they have for `batches` of inputs.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT_NAME: batch}

    prepared = scratch / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    prepared.unlink()


class OnnxGraph:
    """A graph, run by onnxruntime on the processor."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: Shaped[Tensor, "N c h w"]) -> tuple[Tensor, ...]:
        """Return the outputs for images of the type that the graph takes."""
        given = np.ascontiguousarray(images.numpy())
        found: list[NDArray[Any]] = self._session.run(None, {INPUT_NAME: given})
        return tuple(torch.from_numpy(output) for output in found)


def _name_batch(model: Any) -> None:
    """Call the dynamic side of inputs and outputs `batch`; the exporter's own name is a number."""
    for value in (*model.graph.input, *model.graph.output):
        side = value.type.tensor_type.shape.dim[0]
        if side.dim_value:
            raise errors.NotExportable(
                f"the exporter has fixed the batch of {value.name} at {side.dim_value} images; "
                "choose format torch_state_dict or hub"
            )
        side.dim_param = BATCH


def batches_of(images: Shaped[Tensor, "N c h w"], size: int) -> Iterator[NDArray[Any]]:
    """Yield inputs as arrays, a few at a time."""
    for part in torch.split(images, size):
        yield np.ascontiguousarray(part.numpy())
