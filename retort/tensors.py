"""Tensors on the wire: safetensors read and written without any library of arrays.

`Tensor` can be given to `numpy.asarray`, and from there to torch; what is sent can be an array of
either, or nested lists.
"""

import json
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retort import errors

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b"}
_FORMATS |= {"U8": "B"}
_TYPESTRS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_TYPESTRS |= {"I8": "|i1", "U8": "|u1"}
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Tensor:
    """Numbers of one type in a shape, as little-endian bytes in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Return what NumPy needs to read this without a copy."""
        return {
            "shape": self.shape,
            "typestr": _TYPESTRS[self.dtype],
            "data": self.content,
            "version": 3,
        }

    def tolist(self) -> Any:  # Any: a number, or lists of lists
        """Return the numbers as nested lists."""
        flat = struct.unpack(f"<{math.prod(self.shape)}{_FORMATS[self.dtype]}", self.content)
        return _nested(flat, self.shape)


def of(values: Any, dtype: str) -> Tensor:  # Any: whatever holds numbers
    """Return numbers as a tensor of this type.

    `values` is a `Tensor`, an array of NumPy or torch, or nested lists of the same length each.
    Raises: errors.BadOption for anything else.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if isinstance(values, Tensor):
        values = values.tolist() if values.dtype != dtype else values
    if isinstance(values, Tensor):
        return values
    try:
        view = memoryview(values)
    except TypeError:
        view = None
    if view is not None:
        shape = tuple(view.shape or ())
        if view.format == _FORMATS[dtype] and sys.byteorder == "little":
            return Tensor(dtype, shape, view.tobytes())
        values = view.tolist()
    else:
        shape = _shape(values)
    flat: list[float] = []
    _flatten(values, shape, flat)
    if dtype[0] in "IU":
        flat = [int(number) for number in flat]
    return Tensor(dtype, shape, struct.pack(f"<{len(flat)}{_FORMATS[dtype]}", *flat))


def encode(tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> bytes:
    """Return a safetensors file; equal arguments give equal bytes."""
    # Wide types first, so that every tensor starts at a multiple of its own item size.
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    entries: dict[str, Any] = {_METADATA: dict(sorted(strings.items()))}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + len(tensor.content)
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join(
        [len(text).to_bytes(8, "little"), text, *(tensors[name].content for name in names)]
    )


def decode(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises: errors.UnexpectedAnswer for other bytes.
    """
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop(_METADATA, None)
        found = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if math.prod(shape) * ITEM_BYTES[entry["dtype"]] != last - first:
                raise ValueError(f"tensor {name!r} does not fill its bytes")
            raw = content[start + first : start + last]
            if len(raw) != last - first:
                raise ValueError(f"tensor {name!r} is cut short")
            found[name] = Tensor(entry["dtype"], shape, raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UnexpectedAnswer(f"the tensors received cannot be read: {error}") from error
    return found


def _shape(values: Any) -> tuple[int, ...]:
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return (len(values), *(_shape(values[0]) if len(values) else ()))
    return ()


def _flatten(values: Any, shape: Sequence[int], flat: list[float]) -> None:
    if not shape:
        if not isinstance(values, int | float) or isinstance(values, bool):
            raise errors.BadOption(f"numbers are needed, got {type(values).__name__}")
        flat.append(values)
        return
    if not isinstance(values, Sequence) or len(values) != shape[0]:
        raise errors.BadOption(f"rows must have the same length, {shape[0]}")
    for value in values:
        _flatten(value, shape[1:], flat)


def _nested(flat: Sequence[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return list(flat)
    step = math.prod(shape[1:])
    return [
        _nested(flat[place * step : (place + 1) * step], shape[1:]) for place in range(shape[0])
    ]
