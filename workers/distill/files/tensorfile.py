"""Safetensors files: checked before reading, written with deterministic bytes.

The library itself writes the header's strings in a random order; a student must be byte-identical
after a resume, so files are written here: sorted names, no times, fixed padding. Format: eight
bytes with the header's length, the header as JSON, the tensors.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.distill import errors
from workers.distill.config import tensor_header

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
ITEM_BYTES = tensor_header.ITEM_BYTES


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a file atomically; equal tensors and header strings give equal bytes."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        _write(stream, tensors, header)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _write(
    stream: io.BufferedIOBase, tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> None:
    names = _order(tensors)
    stream.write(_head(tensors, names, header))
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        stream.write(flat.view(torch.uint8).numpy().data)


def to_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Return the content of the file that `write` writes."""
    stream = io.BytesIO()
    _write(stream, tensors, header)
    return stream.getvalue()


def size_of(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> int:
    """Return the number of bytes of the file that `write` writes."""
    head = _head(tensors, _order(tensors), header)
    return len(head) + sum(tensor.nbytes for tensor in tensors.values())


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    # Wide types first, so that every tensor starts at a multiple of its own item size.
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _head(tensors: Mapping[str, Tensor], names: Sequence[str], header: Mapping[str, str]) -> bytes:
    layout = [(name, DTYPES[tensors[name].dtype], list(tensors[name].shape)) for name in names]
    return tensor_header.write(layout, header)


def create(
    path: Path, shapes: Mapping[str, tuple[str, Sequence[int]]]
) -> dict[str, NDArray[np.generic]]:
    """Create a file of zeros and return its tensors as writable arrays over the file.

    `shapes` gives dtype (`I64`, `F32`, `U8`) and shape of each; for sets too large for memory.
    """
    names = sorted(shapes, key=lambda name: (-ITEM_BYTES[shapes[name][0]], name))
    layout = [(name, shapes[name][0], list(shapes[name][1])) for name in names]
    head = tensor_header.write(layout, {})
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
    return check(path).strings


def check(path: Path) -> tensor_header.Header:
    """Check header length, dtypes, shapes and offsets before any is used; return the header."""
    with path.open("rb") as stream:
        try:
            return tensor_header.read(stream, path.stat().st_size)
        except tensor_header.BadHeader as error:
            raise _unreadable(path, str(error)) from error


def looks_like(path: Path) -> bool:
    """Return whether the content (never the name) is that of a safetensors file."""
    with path.open("rb") as stream:
        head = stream.read(9)
    # A header's length, as eight bytes, has its upper half empty. Its lowest byte may well be the
    # one with which pickles begin; taken for a file by mistake, a pickle is refused, never run.
    return head[8:] == b"{" and head[4:8] == bytes(4)


def _unreadable(path: Path, reason: str) -> errors.UploadRefused:
    return errors.UploadRefused(
        "unreadable", f"{path.name} cannot be read as safetensors: {reason}"
    )
