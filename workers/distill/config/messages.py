"""Messages of federated rounds: what may be in one, and the check of one that has arrived.

A message is a safetensors file. Its header strings say whose it is and of which round; its tensors
are those of its kinds, and nothing else: a message cannot carry what its method does not send. The
API checks every upload by this before it is stored, and the engine checks it again. Standard
library and pydantic only, so bytes are read through `array`.
"""

import array
import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from workers.distill.config import tensor_header
from workers.distill.config.tensor_header import ByteFile, Header, TensorEntry
from workers.distill.config.training import Values

SUM_TOLERANCE = 1e-3
"""How far the sum of a row of probabilities may be from 1 (guide 5.3); float16 needs half of it."""

METRIC = "metric."
"""Prefix of the header strings that hold numbers of the sender, such as `metric.accuracy`."""

_LARGEST_HEADER = 2**20
_MOST_METRICS = 16
_CHUNK_BYTES = 2**20
_STRINGS = frozenset({"kinds", "method", "round", "sender", "classes", "open_set", "samples"})
_CODES = {"F32": "f", "F64": "d", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}

Number: TypeAlias = int | float
Property: TypeAlias = Literal["distribution", "finite", "counts", "indices"]


@dataclass(frozen=True)
class Kind:
    """One kind of content: the shape of its tensor by name of the sizes, types, and its property.

    `shape` is None for a state: many tensors `<kind>/<name>`, each as `Expected.states` says.
    """

    shape: tuple[str, ...] | None
    dtypes: tuple[str, ...]
    property: Property


KINDS: dict[str, Kind] = {
    "probabilities": Kind(("rows", "classes"), ("F32", "F16"), "distribution"),
    "scores": Kind(("rows", "classes"), ("F32", "F16"), "finite"),
    "open_rows": Kind(("rows",), ("I32",), "indices"),
    "label_probabilities": Kind(("held", "classes"), ("F32",), "distribution"),
    "label_scores": Kind(("held", "classes"), ("F32",), "finite"),
    "label_counts": Kind(("classes",), ("I32",), "counts"),
    "prototypes": Kind(("held", "width"), ("F32",), "finite"),
    "weights": Kind(None, tuple(tensor_header.ITEM_BYTES), "finite"),
    "generator": Kind(None, tuple(tensor_header.ITEM_BYTES), "finite"),
    # Only from the server to the clients.
    "targets": Kind(("rows", "classes"), ("F32",), "distribution"),
    "label_sums": Kind(("classes", "classes"), ("F32",), "finite"),
    "label_holders": Kind(("classes",), ("I32",), "counts"),
}
"""`rows` are those of the open set, `held` the labels whose count is above 0, in their order."""


class MessageRefused(ValueError):
    """A message that cannot be accepted: a stable `code`, the `field` at fault, a sentence."""

    def __init__(self, code: str, message: str, *, field: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


class TensorShape(Values):
    """Type and shape of one tensor of a state."""

    dtype: str
    shape: list[int]

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the tensor has."""
        return tensor_header.ITEM_BYTES[self.dtype] * math.prod(self.shape)


class Expected(Values):
    """What a reply of one round must be."""

    method: str
    round: int = Field(ge=1)
    classes: int = Field(ge=1)
    kinds: list[str] = Field(min_length=1)
    rows: int | None = Field(None, ge=1, description="Rows of the open set in this round.")
    open_set: str | None = Field(None, description="SHA-256 of the open set's file.")
    width: int | None = Field(None, ge=1, description="Features of a prototype.")
    states: dict[str, dict[str, TensorShape]] = Field(default_factory=dict)

    def largest_bytes(self) -> int:
        """Return the size that no proper reply exceeds, its header included."""
        sizes = {"classes": self.classes, "held": self.classes}
        sizes |= {"rows": self.rows or 0, "width": self.width or 0}
        content = 0
        for name in self.kinds:
            kind = KINDS[name]
            if kind.shape is None:
                content += sum(tensor.size_bytes for tensor in self.states[name].values())
            else:
                widest = max(tensor_header.ITEM_BYTES[dtype] for dtype in kind.dtypes)
                content += widest * math.prod(sizes[size] for size in kind.shape)
        return _LARGEST_HEADER + content


@dataclass(frozen=True)
class Contents:
    """What a message says of itself; its tensors were checked."""

    sender: str
    round: int
    samples: int
    """Training samples of the sender."""
    metrics: dict[str, float]
    """Numbers that the sender has measured, by name: `accuracy`."""
    header: Header


def check(stream: ByteFile, size: int, expected: Expected) -> Contents:
    """Check a reply of `size` bytes, and return what it says of itself.

    Raises: MessageRefused with the codes unreadable, too_large, wrong_round, wrong_method,
    wrong_kinds, wrong_classes, wrong_open_set, wrong_shape, wrong_type, missing_tensor,
    unexpected_tensor, unexpected_string, bad_string, not_finite, negative, not_normalised,
    out_of_range.
    """
    if size > expected.largest_bytes():
        raise too_large(size, expected)
    try:
        header = tensor_header.read(stream, size, largest=_LARGEST_HEADER)
    except tensor_header.BadHeader as error:
        raise MessageRefused(
            "unreadable", f"the message cannot be read as safetensors: {error}", field="body"
        ) from error
    contents = _check_strings(header, expected)
    sizes = {"classes": expected.classes}
    sizes |= {"rows": expected.rows or 0, "width": expected.width or 0}
    if "label_counts" in expected.kinds:
        counts = _counts(stream, header, expected.classes)
        sizes["held"] = sum(count > 0 for count in counts)
    _check_shapes(header, expected, sizes)
    for name, entry in header.tensors.items():
        kind = KINDS[name.partition("/")[0]]
        _CHECKS[kind.property](_Content(stream, header, name, entry), sizes)
    return contents


def too_large(size: int, expected: Expected) -> MessageRefused:
    """Return the refusal of a message that has `size` bytes or more."""
    return MessageRefused(
        "too_large",
        f"the message has {size} bytes or more; a reply of {expected.method} in round "
        f"{expected.round} has at most {expected.largest_bytes()}",
        field="body",
    )


# -- header strings --------------------------------------------------------------------------------


def _check_strings(header: Header, expected: Expected) -> Contents:
    strings = header.strings
    metrics = {name for name in strings if name.startswith(METRIC)}
    for name in sorted(strings.keys() - _STRINGS - metrics):
        raise MessageRefused(
            "unexpected_string",
            f"the header string {name[:60]!r} is not one of a message: leave it out",
            field=name[:60],
        )
    for name in sorted(_STRINGS - strings.keys()):
        raise MessageRefused("bad_string", f"the header string {name!r} is missing", field=name)
    if len(metrics) > _MOST_METRICS:
        raise MessageRefused(
            "bad_string",
            f"a message has at most {_MOST_METRICS} metrics, got {len(metrics)}",
            field=METRIC,
        )
    wanted = (
        ("round", "wrong_round", str(expected.round)),
        ("method", "wrong_method", expected.method),
        ("classes", "wrong_classes", str(expected.classes)),
        ("open_set", "wrong_open_set", expected.open_set or ""),
        ("kinds", "wrong_kinds", ",".join(sorted(expected.kinds))),
    )
    for name, code, value in wanted:
        if strings[name] != value:
            got, way_out = strings[name][:80], "send what the round's task expects"
            if name == "open_set":
                way_out = "download the open set again, and predict its images in their order"
            raise MessageRefused(
                code, f"{name} must be {value!r} in this round, got {got!r}: {way_out}", field=name
            )
    samples = strings["samples"]
    if not (samples.isascii() and samples.isdigit() and 0 < int(samples[:20]) < 2**53):
        raise MessageRefused(
            "bad_string",
            f"samples must be the number of training samples, 1 or more, got {samples[:40]!r}",
            field="samples",
        )
    values = {name.removeprefix(METRIC): _metric(name, strings[name]) for name in sorted(metrics)}
    return Contents(strings["sender"], expected.round, int(samples), values, header)


def _metric(name: str, text: str) -> float:
    # It is stored and shown to owners: no database takes NUL, no table a control character.
    if name == METRIC or len(name) > 60 or not name.isprintable():
        raise MessageRefused(
            "bad_string",
            f"the name of the metric {name[:80]!r} must have 1 to {60 - len(METRIC)} printable "
            "characters: rename it",
            field=METRIC,
        )
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MessageRefused(
            "bad_string", f"{name} must be a finite number, got {text[:40]!r}", field=name
        )
    return value


# -- shapes ----------------------------------------------------------------------------------------


def _check_shapes(header: Header, expected: Expected, sizes: dict[str, int]) -> None:
    wanted = dict(_wanted(expected, sizes))
    for name in sorted(wanted.keys() - header.tensors.keys()):
        raise MessageRefused("missing_tensor", f"tensor {name!r} is missing", field=name)
    for name, entry in sorted(header.tensors.items()):
        if name not in wanted:
            raise MessageRefused(
                "unexpected_tensor",
                f"tensor {name[:80]!r} is not part of a reply with {', '.join(expected.kinds)}",
                field=name[:80],
            )
        dtypes, shape = wanted[name]
        if entry.dtype not in dtypes:
            raise MessageRefused(
                "wrong_type",
                f"tensor {name!r} must be {' or '.join(dtypes)}, got {entry.dtype}",
                field=name,
            )
        if list(entry.shape) != shape:
            code = "wrong_classes" if _other_classes(name, entry, shape) else "wrong_shape"
            raise MessageRefused(
                code,
                f"tensor {name!r} must have shape {shape}, got {list(entry.shape)}",
                field=name,
            )


def _wanted(
    expected: Expected, sizes: dict[str, int]
) -> Iterator[tuple[str, tuple[tuple[str, ...], list[int]]]]:
    for name in expected.kinds:
        kind = KINDS[name]
        if kind.shape is not None:
            yield name, (kind.dtypes, [sizes[size] for size in kind.shape])
            continue
        for part, tensor in expected.states[name].items():
            yield f"{name}/{part}", ((tensor.dtype,), tensor.shape)


def _other_classes(name: str, entry: TensorEntry, shape: list[int]) -> bool:
    by_class = (KINDS[name.partition("/")[0]].shape or ("",))[-1] == "classes"
    return by_class and len(entry.shape) == len(shape) and entry.shape[-1] != shape[-1]


# -- values ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Content:
    """The values of one tensor, read piece by piece."""

    stream: ByteFile
    header: Header
    name: str
    entry: TensorEntry

    def pieces(self, multiple: int = 1) -> Iterator[Sequence[Number]]:
        """Yield the values in order, a multiple of `multiple` at a time."""
        item = tensor_header.ITEM_BYTES[self.entry.dtype]
        step = max(1, _CHUNK_BYTES // (item * multiple)) * item * multiple
        for first in range(self.entry.first, self.entry.last, step):
            self.stream.seek(self.header.start + first)
            yield _decode(self.stream.read(min(step, self.entry.last - first)), self.entry.dtype)


def _decode(raw: bytes, dtype: str) -> Sequence[Number]:
    if dtype == "F16":
        return list(struct.unpack(f"<{len(raw) // 2}e", raw))
    if dtype == "BF16":
        # The upper half of a float32.
        widened = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2))
        return _decode(widened, "F32")
    values = array.array(_CODES[dtype], raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _counts(stream: ByteFile, header: Header, classes: int) -> list[Number]:
    entry = header.tensors.get("label_counts")
    if entry is None or entry.dtype != "I32" or entry.shape != (classes,):
        return []  # refused with the other shapes
    return [
        count
        for piece in _Content(stream, header, "label_counts", entry).pieces()
        for count in piece
    ]


def _check_finite(content: _Content, _sizes: dict[str, int]) -> None:
    if content.entry.dtype not in ("F16", "BF16", "F32", "F64"):
        return
    for piece in content.pieces():
        # A sum is not finite where a part is not; of float32 it cannot overflow in float64.
        exact = content.entry.dtype != "F64"
        if not (math.isfinite(sum(piece)) if exact else all(map(math.isfinite, piece))):
            raise MessageRefused(
                "not_finite",
                f"tensor {content.name!r} holds NaN or infinity: the training has diverged",
                field=content.name,
            )


def _check_distribution(content: _Content, _sizes: dict[str, int]) -> None:
    _check_finite(content, _sizes)
    classes = content.entry.shape[-1]
    row = 0
    for piece in content.pieces(multiple=classes):
        if min(piece) < 0:
            at = row + min(range(len(piece)), key=piece.__getitem__) // classes
            raise MessageRefused(
                "negative",
                f"row {at} of tensor {content.name!r} holds {min(piece):g}: probabilities are "
                "0 or above (send softmax outputs, not scores)",
                field=content.name,
            )
        for start in range(0, len(piece), classes):
            total = math.fsum(piece[start : start + classes])
            if abs(total - 1.0) > SUM_TOLERANCE:
                raise MessageRefused(
                    "not_normalised",
                    f"row {row} of tensor {content.name!r} sums to {total:.6g}: each row of "
                    f"probabilities must sum to 1 (within {SUM_TOLERANCE:g})",
                    field=content.name,
                )
            row += 1


def _check_counts(content: _Content, _sizes: dict[str, int]) -> None:
    for piece in content.pieces():
        if min(piece, default=0) < 0:
            raise MessageRefused(
                "negative",
                f"tensor {content.name!r} holds {min(piece):g}: counts are 0 or above",
                field=content.name,
            )


def _check_indices(content: _Content, _sizes: dict[str, int]) -> None:
    seen: set[Number] = set()
    for piece in content.pieces():
        seen.update(piece)
        if min(piece) < 0:
            raise MessageRefused(
                "out_of_range",
                f"tensor {content.name!r} holds {min(piece):g}: rows of the open set are counted "
                "from 0",
                field=content.name,
            )
    if len(seen) != math.prod(content.entry.shape):
        raise MessageRefused(
            "out_of_range", f"tensor {content.name!r} names a row twice", field=content.name
        )


_CHECKS: dict[Property, Callable[[_Content, dict[str, int]], None]] = {
    "distribution": _check_distribution,
    "finite": _check_finite,
    "counts": _check_counts,
    "indices": _check_indices,
}
