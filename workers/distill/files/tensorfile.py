"""Safetensors files: checked before reading, written with deterministic bytes.

The library itself writes the header's strings in a random order; a student must be byte-identical
after a resume, so files are written here: sorted names, no times, fixed padding. Format: eight
bytes with the header's length, the header as JSON, the tensors.
"""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.distill import errors

LARGEST_HEADER_BYTES = 100_000_000
"""The bound of the format's own reader."""

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ITEM_BYTES = {name: dtype.itemsize for dtype, name in DTYPES.items()}
METADATA = "__metadata__"


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a file atomically; equal tensors and header strings give equal bytes."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        _write(stream, tensors, header)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _write(stream: BinaryIO, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    # Wide types first, so that every tensor starts at a multiple of its own item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout = [(name, DTYPES[tensors[name].dtype], list(tensors[name].shape)) for name in names]
    stream.write(_head(layout, header))
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        stream.write(flat.view(torch.uint8).numpy().data)


def to_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Return the content of the file that `write` writes."""
    stream = io.BytesIO()
    _write(stream, tensors, header)
    return stream.getvalue()


def create(
    path: Path, shapes: Mapping[str, tuple[str, Sequence[int]]]
) -> dict[str, NDArray[np.generic]]:
    """Create a file of zeros and return its tensors as writable arrays over the file.

    `shapes` gives dtype (`I64`, `F32`, `U8`) and shape of each; for sets too large for memory.
    """
    names = sorted(shapes, key=lambda name: (-ITEM_BYTES[shapes[name][0]], name))
    layout = [(name, shapes[name][0], list(shapes[name][1])) for name in names]
    head = _head(layout, {})
    total = sum(ITEM_BYTES[dtype] * math.prod(shape) for _, dtype, shape in layout)
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + total)
    arrays: dict[str, NDArray[np.generic]] = {}
    offset = len(head)
    kinds = {"I64": np.int64, "F32": np.float32, "U8": np.uint8}
    for name, dtype, shape in layout:
        arrays[name] = np.memmap(path, kinds[dtype], "r+", offset=offset, shape=tuple(shape))
        offset += ITEM_BYTES[dtype] * math.prod(shape)
    return arrays


def read(path: Path) -> dict[str, Tensor]:
    """Return all tensors, mapped from the file and not copied.

    Raises `UploadRefused("unreadable")` for a file that is damaged or not safetensors.
    """
    check(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise _unreadable(path, str(error)) from error


def read_header(path: Path) -> dict[str, str]:
    """Return the strings that the file's writer put in its header."""
    header = _read_head(path)[0]
    strings = header.get(METADATA, {})
    if not isinstance(strings, dict) or not all(isinstance(text, str) for text in strings.values()):
        raise _unreadable(path, "its header strings are not text")
    return strings


def check(path: Path) -> None:
    """Check header length, dtypes, shapes and offsets before any is used."""
    header, start = _read_head(path)
    available = path.stat().st_size - start
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name != METADATA:
            spans.append((*_span(path, name, entry, available), name))
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise _unreadable(path, f"tensor {name!r} overlaps another or leaves a gap before it")
        end = last
    if end != available:
        raise _unreadable(path, f"{available - end} bytes follow the last tensor")


def looks_like(path: Path) -> bool:
    """Return whether the content (never the name) is that of a safetensors file."""
    with path.open("rb") as stream:
        head = stream.read(9)
    # A header's length, as eight bytes, has its upper half empty. Its lowest byte may well be the
    # one with which pickles begin; taken for a file by mistake, a pickle is refused, never run.
    return head[8:] == b"{" and head[4:8] == bytes(4)


def _read_head(path: Path) -> tuple[dict[str, Any], int]:  # Any: JSON that is checked above
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise _unreadable(
                path, f"it is cut short: its header claims {length} bytes, the file has {size}"
            )
        if length > LARGEST_HEADER_BYTES:
            raise _unreadable(
                path, f"its header claims {length} bytes, more than {LARGEST_HEADER_BYTES}"
            )
        text = stream.read(length)
    try:
        header = json.loads(text)
    # Deep nesting ends the JSON reader with RecursionError.
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _unreadable(path, "its header is not a JSON object")
    return header, 8 + length


def _span(path: Path, name: str, entry: Any, available: int) -> tuple[int, int]:  # Any: JSON
    """Return the offsets of a tensor's first byte and of the byte after its last."""
    if not isinstance(entry, dict):
        raise _unreadable(path, f"tensor {name!r} is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _unreadable(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _unreadable(path, f"tensor {name!r} has no proper shape or offsets")
    first, last = offsets
    if not first <= last <= available:
        raise _unreadable(
            path,
            f"tensor {name!r} lies at bytes {first} to {last}, but the file holds {available}; "
            "it may have been cut short",
        )
    if last - first != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _unreadable(path, f"tensor {name!r} of shape {shape} does not fill its bytes")
    return first, last


def _are_counts(values: Any) -> TypeGuard[list[int]]:  # Any: JSON
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _head(layout: Sequence[tuple[str, str, list[int]]], header: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {METADATA: dict(sorted(header.items()))} if header else {}
    offset = 0
    for name, dtype, shape in layout:
        end = offset + ITEM_BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    # Spaces up to a multiple of eight: readers map the tensors in place.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _unreadable(path: Path, reason: str) -> errors.UploadRefused:
    return errors.UploadRefused(
        "unreadable", f"{path.name} cannot be read as safetensors: {reason}"
    )
