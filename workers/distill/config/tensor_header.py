"""Headers of safetensors files: read with every check, and written with deterministic bytes.

Format: eight bytes with the header's length, the header as JSON, the tensors. Only the standard
library is used: the API checks uploaded messages by it, and the engine all of its files.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

LARGEST_HEADER_BYTES = 16 << 20
"""Some 100,000 tensors. Reading takes up to forty times as much memory as the header has bytes;
the format's own reader stops at 100 MB."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
METADATA = "__metadata__"


@runtime_checkable
class ByteFile(Protocol):
    """A file opened for reading bytes, or a buffer of them."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, and return it."""
        ...


class BadHeader(ValueError):
    """The bytes are not a safetensors file; the message says why, without the file's name."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its type, shape, and bytes `first` up to, not including, `last`.

    Offsets count from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True)
class Header:
    """The checked header of a file."""

    strings: dict[str, str]
    tensors: dict[str, TensorEntry]
    start: int
    """Where the tensors' bytes begin in the file."""


def read(stream: ByteFile, size: int, *, largest: int = LARGEST_HEADER_BYTES) -> Header:
    """Read and check the header of a file of `size` bytes; the tensors fill the rest exactly.

    `largest` bounds the header's bytes. Raises: BadHeader.
    """
    content, start = _read_json(stream, size, largest)
    strings = content.pop(METADATA, {})
    if not isinstance(strings, dict) or not all(isinstance(text, str) for text in strings.values()):
        raise BadHeader("its header strings are not text")
    available = size - start
    tensors = {name: _entry(name, described, available) for name, described in content.items()}
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda pair: (pair[1].first, pair[1].last)):
        if entry.first != end:
            raise BadHeader(f"tensor {name!r} overlaps another or leaves a gap before it")
        end = entry.last
    if end != available:
        raise BadHeader(f"{available - end} bytes follow the last tensor")
    return Header(strings, tensors, start)


def write(layout: Sequence[tuple[str, str, Sequence[int]]], strings: Mapping[str, str]) -> bytes:
    """Return the bytes before the tensors, which follow in the order of `layout`.

    `layout` gives name, type and shape of each. Equal arguments give equal bytes.
    """
    entries: dict[str, Any] = {METADATA: dict(sorted(strings.items()))} if strings else {}
    offset = 0
    for name, dtype, shape in layout:
        end = offset + ITEM_BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    # Spaces up to a multiple of eight: readers map the tensors in place.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_json(
    stream: ByteFile, size: int, largest: int
) -> tuple[dict[str, Any], int]:  # Any: JSON that is checked above
    if size == 0:
        raise BadHeader("it is empty")
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise BadHeader(f"it is cut short: its header claims {length} bytes, the file has {size}")
    if length > largest:
        raise BadHeader(f"its header claims {length} bytes, more than {largest}")
    text = stream.read(length)
    try:
        content = json.loads(text)
    # Deep nesting ends the JSON reader with RecursionError.
    except (ValueError, RecursionError) as error:
        raise BadHeader("its header is not JSON") from error
    if not isinstance(content, dict):
        raise BadHeader("its header is not a JSON object")
    return content, 8 + length


def _entry(name: str, described: Any, available: int) -> TensorEntry:  # Any: JSON
    if not isinstance(described, dict):
        raise BadHeader(f"tensor {name!r} is not described")
    dtype, shape = described.get("dtype"), described.get("shape")
    offsets = described.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BadHeader(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise BadHeader(f"tensor {name!r} has no proper shape or offsets")
    first, last = offsets
    if not first <= last <= available:
        raise BadHeader(
            f"tensor {name!r} lies at bytes {first} to {last}, but the file holds {available}; "
            "it may have been cut short"
        )
    if last - first != math.prod(shape) * ITEM_BYTES[dtype]:
        raise BadHeader(f"tensor {name!r} of shape {shape} does not fill its bytes")
    return TensorEntry(dtype, tuple(shape), first, last)


def _are_counts(values: Any) -> TypeGuard[list[int]]:  # Any: JSON
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
