"""What clients and server send each other: messages, and the bytes that they are encoded to.

A message is a safetensors file. Its tensors are named by their kind (`config.messages.KINDS`), such
as `targets`, or `weights/<name>` where a kind has several. Its strings say the rest: kinds, method,
round, sender, classes, digest of the open set, number of the sender's training images. Equal
messages have equal bytes, so what is counted in a simulation is what would be sent.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import safetensors
import safetensors.torch
from torch import Tensor

from workers.distill import errors
from workers.distill.config import tensor_header
from workers.distill.config.messages import METRIC
from workers.distill.files import tensorfile

Tensors: TypeAlias = dict[str, Tensor]

SERVER = "server"
"""The sender of what all clients get."""


@dataclass(frozen=True)
class Message:
    """A client's reply of a round, or what the server publishes after it (round 0: the start)."""

    method: str
    round: int
    sender: str
    classes: int
    tensors: Tensors
    open_set: str = ""
    """SHA-256 of the open set; empty without one."""
    samples: int = 0
    """Training images behind a reply."""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of content, sorted."""
        return tuple(sorted({name.partition("/")[0] for name in self.tensors}))

    @property
    def payload_bytes(self) -> int:
        """Return the size of the tensors alone."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def part(self, kind: str) -> Tensors:
        """Return the tensors of a kind that has several, by their own names."""
        return part(self.tensors, kind)


def part(tensors: Mapping[str, Tensor], kind: str) -> Tensors:
    """Return the tensors `<kind>/<name>`, by name."""
    prefix = f"{kind}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def named(kind: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors under the names `<kind>/<name>`."""
    return {f"{kind}/{name}": tensor for name, tensor in tensors.items()}


def encode(message: Message) -> bytes:
    """Return a message as it is sent."""
    return tensorfile.to_bytes(message.tensors, _strings(message))


def encoded_size(message: Message) -> int:
    """Return how many bytes `encode` returns."""
    return tensorfile.size_of(message.tensors, _strings(message))


def _strings(message: Message) -> dict[str, str]:
    return {
        "kinds": ",".join(message.kinds),
        "method": message.method,
        "round": str(message.round),
        "sender": message.sender,
        "classes": str(message.classes),
        "open_set": message.open_set,
        "samples": str(message.samples),
        **{f"{METRIC}{name}": repr(float(value)) for name, value in message.metrics.items()},
    }


def decode(content: bytes) -> Message:
    """Return the message of such bytes; raises `BadMessage` for others."""
    try:
        tensors = safetensors.torch.load(content)
        strings = tensor_header.read(io.BytesIO(content), len(content)).strings
        return Message(
            method=strings["method"],
            round=int(strings["round"]),
            sender=strings["sender"],
            classes=int(strings["classes"]),
            tensors=tensors,
            open_set=strings["open_set"],
            samples=int(strings["samples"]),
            metrics={
                name.removeprefix(METRIC): float(value)
                for name, value in strings.items()
                if name.startswith(METRIC)
            },
        )
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise errors.BadMessage(
            f"a message of {len(content)} bytes cannot be read ({type(error).__name__}: {error})"
        ) from error
