"""Each operator computes in torch what onnxruntime computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from tests.distill import graphs
from workers.distill.networks.graphs import onnx_file
from workers.distill.networks.graphs.conversion import TorchGraph
from workers.distill.networks.graphs.operators import OPERATORS, NotConverted

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


# Operator, its constants after the images [2, 3, 6, 5], its attributes.
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Conv", [numbers(4, 3, 3, 3), numbers(4)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [numbers(3, 1, 3, 3)], {"group": 3, "pads": [0, 1, 2, 1]}),
    ("BatchNormalization", [numbers(3), numbers(3), numbers(3), np.abs(numbers(3))], {}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 0}),
    ("GlobalAveragePool", [], {}),
    ("ReduceMean", [whole(2, 3)], {"keepdims": 0}),
    ("ReduceMax", [whole(1)], {"keepdims": 1}),
    ("Relu", [], {}),
    ("Clip", [np.float32(0).reshape(()), np.float32(6).reshape(())], {}),
    ("LeakyRelu", [], {"alpha": 0.2}),
    ("HardSwish", [], {}),
    ("HardSigmoid", [], {"alpha": 0.3, "beta": 0.4}),
    ("Elu", [], {"alpha": 0.7}),
    ("Softmax", [], {"axis": 1}),
    ("LogSoftmax", [], {}),
    ("Erf", [], {}),
    ("PRelu", [numbers(3, 1, 1)], {}),
    ("LayerNormalization", [numbers(5), numbers(5)], {"axis": -1}),
    ("InstanceNormalization", [numbers(3), numbers(3)], {}),
    ("MatMul", [numbers(5, 7)], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Reshape", [whole(0, -1, 5)], {}),
    ("Flatten", [], {"axis": 2}),
    ("Unsqueeze", [whole(0, 2)], {}),
    ("Slice", [whole(4, 1), whole(0, 9), whole(2, 3), whole(-1, 2)], {}),
    ("Gather", [whole(2, -3)], {"axis": 1}),
    ("Expand", [whole(2, 1, 3, 6, 5)], {}),
    ("Pad", [whole(0, 0, 1, 2, 0, 0, 3, 0), np.float32(2).reshape(())], {}),
    ("Pad", [whole(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    ("Div", [numbers(3, 1, 1)], {}),
    ("Pow", [np.float32(2).reshape(())], {}),
    ("Max", [numbers(5)], {}),
    ("Cast", [], {"to": TensorProto.FLOAT}),
]


@pytest.mark.parametrize(
    ("kind", "constants", "attributes"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)]
)
def test_an_operator_is_onnxruntimes(
    tmp_path: Path, kind: str, constants: list[Any], attributes: dict[str, Any]
) -> None:
    names = [f"c{place}" for place in range(len(constants))]
    node = helper.make_node(kind, ["images", *names], ["logits"], **attributes)
    made = graphs.model(
        [node], dict(zip(names, constants, strict=True)), image=(2, 3, 6, 5), sides=None
    )
    read = onnx_file.read(graphs.save(made, tmp_path / "one.onnx"))
    images = numbers(2, 3, 6, 5)
    (expected,) = onnx_file.Session(read, ["logits"]).run("images", images)
    actual = TorchGraph(read, entry="images", end="logits").eval()(torch.from_numpy(images))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-5, atol=2e-5)


def test_an_operator_that_is_unknown_is_named(tmp_path: Path) -> None:
    assert "Sign" not in OPERATORS
    made = graphs.model([helper.make_node("Sign", ["images"], ["logits"])], sides=None)
    read = onnx_file.read(graphs.save(made, tmp_path / "one.onnx"))
    with pytest.raises(NotConverted, match="the operator Sign"):
        TorchGraph(read, entry="images", end="logits")


def test_a_product_with_its_added_bias_is_one_linear_layer(tmp_path: Path) -> None:
    made = graphs.model(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["product"]),
            helper.make_node("Add", ["b", "product"], ["logits"]),
        ],
        {"w": numbers(64, 3), "b": numbers(3)},
    )
    read = onnx_file.read(graphs.save(made, tmp_path / "one.onnx"))
    converted = TorchGraph(read, entry="images", end="logits").eval()
    assert [type(child).__name__ for child in converted.children()] == ["GraphOperation", "Linear"]
    images = numbers(2, 1, 8, 8)
    (expected,) = onnx_file.Session(read, ["logits"]).run("images", images)
    np.testing.assert_allclose(converted(torch.from_numpy(images)), expected, atol=1e-5)
