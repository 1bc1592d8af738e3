"""What an uploaded message may hold, without torch."""

import io
import math
import struct
from typing import Any

import pytest

from workers.distill.config import messages, tensor_header
from workers.distill.config.messages import Expected, MessageRefused, TensorShape

DIGEST = "ab" * 32
DSFL = Expected(method="dsfl", round=3, classes=3, kinds=["probabilities"], rows=2, open_set=DIGEST)
FD = Expected(method="fd", round=1, classes=3, kinds=["label_counts", "label_probabilities"])
AVERAGED = Expected(
    method="fedavg",
    round=1,
    classes=3,
    kinds=["weights"],
    states={
        "weights": {
            "fc.weight": TensorShape(dtype="F32", shape=[3, 2]),
            "steps": TensorShape(dtype="I64", shape=[]),
        }
    },
)
GOOD = [0.7, 0.2, 0.1, 0.0, 0.5, 0.5]
Tensors = dict[str, tuple[str, list[int], list[float]]]
CODES = {"F32": "f", "F16": "e", "I32": "i", "I64": "q", "F64": "d"}


def message(expected: Expected, tensors: Tensors, **strings: str | None) -> tuple[io.BytesIO, int]:
    """Return a message and its size; a string of None is left out."""
    given: dict[str, str | None] = {
        "kinds": ",".join(sorted(expected.kinds)),
        "method": expected.method,
        "round": str(expected.round),
        "sender": "fcl_1",
        "classes": str(expected.classes),
        "open_set": expected.open_set or "",
        "samples": "40",
        **strings,
    }
    kept = {name: value for name, value in given.items() if value is not None}
    layout = [(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()]
    content = tensor_header.write(layout, kept)
    for dtype, _, values in tensors.values():
        content += struct.pack(f"<{len(values)}{CODES[dtype]}", *values)
    return io.BytesIO(content), len(content)


def probabilities(values: list[float] = GOOD, dtype: str = "F32") -> Tensors:
    return {"probabilities": (dtype, [2, 3], values)}


def refusal(expected: Expected, tensors: Tensors, **strings: str | None) -> MessageRefused:
    stream, size = message(expected, tensors, **strings)
    with pytest.raises(MessageRefused) as caught:
        messages.check(stream, size, expected)
    return caught.value


class TestCheck:
    @pytest.mark.parametrize("dtype", ["F32", "F16"])
    def test_accepts_probabilities(self, dtype: str) -> None:
        stream, size = message(DSFL, probabilities(dtype=dtype), **{"metric.accuracy": "0.75"})
        contents = messages.check(stream, size, DSFL)
        assert (contents.sender, contents.round, contents.samples) == ("fcl_1", 3, 40)
        assert contents.metrics == {"accuracy": 0.75}

    def test_accepts_a_table_of_the_labels_that_a_client_holds(self) -> None:
        stream, size = message(
            FD,
            {
                "label_counts": ("I32", [3], [4, 0, 2]),
                "label_probabilities": ("F32", [2, 3], GOOD),
            },
        )
        assert messages.check(stream, size, FD).samples == 40

    def test_accepts_weights_of_the_shapes_that_are_expected(self) -> None:
        stream, size = message(
            AVERAGED,
            {
                "weights/steps": ("I64", [], [7]),
                "weights/fc.weight": ("F32", [3, 2], [0.1] * 6),
            },
        )
        messages.check(stream, size, AVERAGED)

    @pytest.mark.parametrize(
        ("values", "code"),
        [
            ([math.nan, *GOOD[1:]], "not_finite"),
            ([math.inf, *GOOD[1:]], "not_finite"),
            ([0.9, 0.2, -0.1, *GOOD[3:]], "negative"),
            ([0.7, 0.2, 0.2, *GOOD[3:]], "not_normalised"),
            ([0.0] * 6, "not_normalised"),
        ],
    )
    def test_refuses_rows_that_are_no_distributions(self, values: list[float], code: str) -> None:
        refused = refusal(DSFL, probabilities(values))
        assert (refused.code, refused.field) == (code, "probabilities")

    @pytest.mark.parametrize(
        ("strings", "code"),
        [
            ({"round": "2"}, "wrong_round"),
            ({"method": "fd"}, "wrong_method"),
            ({"classes": "4"}, "wrong_classes"),
            ({"open_set": "cd" * 32}, "wrong_open_set"),
            ({"kinds": "probabilities,weights"}, "wrong_kinds"),
            ({"samples": "0"}, "bad_string"),
            ({"samples": "-3"}, "bad_string"),
            ({"samples": None}, "bad_string"),
            ({"metric.accuracy": "nan"}, "bad_string"),
            ({"note": "my labels are 1, 2, 3"}, "unexpected_string"),
        ],
    )
    def test_refuses_strings_that_are_not_those_of_the_round(
        self, strings: dict[str, str | None], code: str
    ) -> None:
        refused = refusal(DSFL, probabilities(), **strings)
        assert (refused.code, refused.field) == (code, next(iter(strings)))

    @pytest.mark.parametrize("name", ["a\0b", "a\nb", "", "x" * 54])
    def test_refuses_names_of_metrics_that_cannot_be_stored_or_shown(self, name: str) -> None:
        refused = refusal(DSFL, probabilities(), **{f"metric.{name}": "0.5"})
        assert (refused.code, refused.field) == ("bad_string", "metric.")
        assert "1 to 53 printable characters" in refused.message

    def test_names_the_way_out_of_another_open_set(self) -> None:
        told = str(refusal(DSFL, probabilities(), open_set="cd" * 32))
        assert f"got {'cd' * 32!r}: download the open set again" in told

    @pytest.mark.parametrize(
        ("tensors", "code"),
        [
            ({}, "missing_tensor"),
            ({**probabilities(), "images": ("F32", [1], [0.5])}, "unexpected_tensor"),
            ({"probabilities": ("F32", [1, 3], GOOD[:3])}, "wrong_shape"),
            ({"probabilities": ("F32", [3, 2], GOOD)}, "wrong_classes"),
            ({"probabilities": ("F64", [2, 3], GOOD)}, "wrong_type"),
        ],
    )
    def test_refuses_other_tensors(self, tensors: Tensors, code: str) -> None:
        assert refusal(DSFL, tensors).code == code

    def test_refuses_as_many_rows_as_labels_without_samples(self) -> None:
        table: Tensors = {
            "label_counts": ("I32", [3], [4, 0, 0]),
            "label_probabilities": ("F32", [2, 3], GOOD),
        }
        assert refusal(FD, table).code == "wrong_shape"
        table["label_counts"] = ("I32", [3], [4, -1, 1])
        assert refusal(FD, table).code == "negative"

    def test_refuses_weights_that_are_not_finite_or_of_another_network(self) -> None:
        good: Tensors = {"weights/steps": ("I64", [], [7])}
        bad: Tensors = {**good, "weights/fc.weight": ("F32", [3, 2], [math.nan] * 6)}
        assert refusal(AVERAGED, bad).code == "not_finite"
        other: Tensors = {**good, "weights/conv.weight": ("F32", [1], [0.0])}
        assert refusal(AVERAGED, other).code == "missing_tensor"

    def test_refuses_what_is_larger_than_any_reply_before_it_is_read(self) -> None:
        with pytest.raises(MessageRefused) as caught:
            messages.check(io.BytesIO(), 10 * 2**30, DSFL)
        assert caught.value.code == "too_large"

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
    def test_refuses_what_is_no_safetensors_file(self, content: bytes) -> None:
        with pytest.raises(MessageRefused) as caught:
            messages.check(io.BytesIO(content), len(content), DSFL)
        assert caught.value.code == "unreadable"

    def test_calls_an_empty_message_empty(self) -> None:
        with pytest.raises(MessageRefused, match=r"as safetensors: it is empty$"):
            messages.check(io.BytesIO(), 0, DSFL)

    def test_reads_large_tables_piece_by_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(messages, "_CHUNK_BYTES", 24)
        wide = DSFL.model_copy(update={"rows": 50})
        values = [*GOOD[:3] * 49, 0.4, 0.4, 0.4]
        refused = refusal(wide, {"probabilities": ("F32", [50, 3], values)})
        assert refused.code == "not_normalised"
        assert "row 49" in refused.message


class TestKinds:
    def test_no_kind_of_an_exchange_of_predictions_can_hold_an_image_or_a_label_of_one(
        self,
    ) -> None:
        """Each tensor of `fd` and `dsfl` has a row for a label or an open image."""
        per_label = {"held", "classes"}
        for expected in (DSFL, FD):
            for name in expected.kinds:
                shape: Any = messages.KINDS[name].shape
                assert shape is not None, name
                assert shape[0] in (per_label | {"rows"}), name
                assert set(shape[1:]) <= {"classes"}, name
