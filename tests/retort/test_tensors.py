"""Tensors on the wire, from and to arrays that the client does not import."""

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from retort import errors, tensors

ROWS = [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]


class TestOf:
    @pytest.mark.parametrize(
        "values",
        [
            ROWS,
            np.array(ROWS, np.float32),
            np.array(ROWS, np.float64),
            np.array(ROWS, np.float32).T.copy().T,
            torch.tensor(ROWS, requires_grad=True),
            tensors.of(ROWS, "F64"),
        ],
        ids=["lists", "float32", "float64", "columns first", "torch", "tensor"],
    )
    def test_takes_arrays_and_lists(self, values: Any) -> None:
        made = tensors.of(values, "F32")
        assert (made.dtype, made.shape) == ("F32", (3, 2))
        assert made.tolist() == ROWS
        assert np.asarray(made).tolist() == ROWS

    def test_takes_counts(self) -> None:
        assert np.asarray(tensors.of(np.arange(3), "I32")).dtype == np.int32

    @pytest.mark.parametrize("values", [[[1.0], [1.0, 2.0]], ["a"], [True], {"a": 1}])
    def test_refuses_what_are_no_rows_of_numbers(self, values: Any) -> None:
        with pytest.raises(errors.BadOption):
            tensors.of(values, "F32")


class TestEncode:
    def test_is_read_by_the_library_and_read_back(self) -> None:
        given = {"b": tensors.of([1, 2], "I64"), "a": tensors.of(ROWS, "F32")}
        content = tensors.encode(given, {"round": "1"})
        read = safetensors.numpy.load(content)
        assert read["a"].tolist() == ROWS
        assert read["b"].tolist() == [1, 2]
        assert tensors.decode(content) == given
        assert tensors.encode(dict(reversed(given.items())), {"round": "1"}) == content

    def test_reads_what_the_library_writes(self) -> None:
        content = safetensors.numpy.save({"x": np.arange(6, dtype=np.uint8).reshape(2, 3)})
        assert tensors.decode(content)["x"].tolist() == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize("content", [b"", b"x" * 50, b"\x02\0\0\0\0\0\0\0[]"])
    def test_says_what_cannot_be_read(self, content: bytes) -> None:
        with pytest.raises(errors.UnexpectedAnswer):
            tensors.decode(content)

    def test_says_what_was_cut_short(self) -> None:
        content = tensors.encode({"a": tensors.of(ROWS, "F32")}, {})
        with pytest.raises(errors.UnexpectedAnswer, match="cut short"):
            tensors.decode(content[:-1])
