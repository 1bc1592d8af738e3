import json

import pytest
import safetensors.torch
import torch

from workers.distill import errors
from workers.distill.federated import protocol
from workers.distill.federated.protocol import Message

MESSAGE = Message(
    method="fedavg",
    round=3,
    sender="client-001",
    classes=3,
    tensors={
        "weights/b": torch.ones(2),
        "weights/a": torch.zeros(3),
        "label_counts": torch.ones(3),
    },
    open_set="ab",
    samples=17,
    metrics={"accuracy": 0.5},
)


class TestMessage:
    def test_survives_its_bytes(self) -> None:
        read = protocol.decode(protocol.encode(MESSAGE))
        assert {name: value.tolist() for name, value in read.tensors.items()} == {
            name: value.tolist() for name, value in MESSAGE.tensors.items()
        }
        for field in ("method", "round", "sender", "classes", "open_set", "samples", "metrics"):
            assert getattr(read, field) == getattr(MESSAGE, field)

    def test_is_measured_without_its_bytes(self) -> None:
        assert protocol.encoded_size(MESSAGE) == len(protocol.encode(MESSAGE))

    def test_equal_messages_have_equal_bytes(self) -> None:
        turned = dict(reversed(list(MESSAGE.tensors.items())))
        other = Message(**{**vars(MESSAGE), "tensors": turned})
        assert protocol.encode(other) == protocol.encode(MESSAGE)

    def test_kinds_are_the_first_parts_of_names(self) -> None:
        assert MESSAGE.kinds == ("label_counts", "weights")
        assert sorted(MESSAGE.part("weights")) == ["a", "b"]

    def test_payload_is_the_tensors_alone(self) -> None:
        assert MESSAGE.payload_bytes == 4 * 8 < len(protocol.encode(MESSAGE))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x10\0\0\0\0\0\0\0{",
            safetensors.torch.save({"a": torch.ones(1)}),
            safetensors.torch.save({"a": torch.ones(1)}, {"method": "fd", "round": "soon"}),
        ],
    )
    def test_other_bytes_are_no_message(self, content: bytes) -> None:
        with pytest.raises(errors.BadMessage, match=f"a message of {len(content)} bytes"):
            protocol.decode(content)

    def test_the_header_is_readable_json(self) -> None:
        content = protocol.encode(MESSAGE)
        length = int.from_bytes(content[:8], "little")
        strings = json.loads(content[8 : 8 + length])["__metadata__"]
        assert strings["kinds"] == "label_counts,weights"
        assert strings["metric.accuracy"] == "0.5"
