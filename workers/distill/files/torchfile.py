"""Reads files of torch.save, of pickle.dump and of TorchScript without running code in them.

`pickle_reader` gives plain containers, in which a tensor is a `TensorRecord`: where its numbers
lie, and its shape. Only the tensors that a caller asks for are read, straight from the file
(`tensor`). Objects of classes stay `StandIn`s; of a module the parameters can still be found.
"""

import contextlib
import io
import math
import mmap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.files import pickle_reader
from workers.distill.files.pickle_reader import Name, StandIn, Unreadable

ZIP_SIGNATURE = b"PK\x03\x04"
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""With this number an old file of torch.save begins (torch/serialization.py)."""
LOCAL_HEADER_BYTES = 30
"""Of an entry of a zip file, before its name and its extra field."""
MOST_COMPRESSION = 16
"""Weights shrink by a tenth; entries that grow by more than this are a bomb."""

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
ARRAY_DTYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"})

CODE_MODULES = frozenset(
    {"_posixsubprocess", "code", "codeop", "commands", "ctypes", "importlib", "multiprocessing"}
    | {"nt", "os", "pdb", "platform", "popen2", "posix", "pty", "runpy", "shutil", "signal"}
    | {"socket", "subprocess", "sys", "timeit", "webbrowser"}
)
CODE_BUILTINS = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"}
)
"""Names that no training program has a reason to save.

None of them would be called. But a file that asks for one was made to do harm, and its owner should
know.
"""


@dataclass(frozen=True)
class StorageRecord:
    """Numbers in a row: the key of an entry of the file, or the bytes themselves."""

    key: str
    dtype: torch.dtype
    start: int = 0
    """In items, from where an old file's view of another storage begins."""
    content: bytes | None = None


@dataclass(frozen=True)
class TensorRecord:
    """A dense tensor that was not read yet."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class ArrayRecord:
    """A NumPy array that was not read yet."""

    state: Any = None

    def take_state(self, state: Any) -> None:
        """Keep what NumPy would be given: version, shape, dtype, order, bytes."""
        self.state = state


@dataclass(eq=False)
class Checkpoint:
    """What a file holds, and the names of classes in it that were not loaded."""

    content: Any
    """Plain values, `TensorRecord`, `ArrayRecord` and `StandIn`."""
    names: frozenset[str] = frozenset()
    _storages: Mapping[str, memoryview] = field(default_factory=dict)
    _views: dict[StorageRecord, Tensor] = field(default_factory=dict)

    def tensor(self, record: TensorRecord | ArrayRecord) -> Tensor:
        """Return a tensor, mapped from the file where it can be; raises `UploadRefused`."""
        try:
            if isinstance(record, ArrayRecord):
                return _tensor_of_array(record)
            return self._tensor(record)
        # Sizes, offsets and strides are the file's own words.
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise errors.UploadRefused(
                "unreadable",
                f"the file describes a tensor that it does not hold: {_first_line(str(error))}",
            ) from error

    def _tensor(self, record: TensorRecord) -> Tensor:
        if record.storage not in self._views:
            self._views[record.storage] = self._read(record.storage)
        stored = self._views[record.storage]
        if stored.dtype != record.dtype:
            stored = stored.view(record.dtype)
        reach = record.offset + sum(
            (side - 1) * step for side, step in zip(record.shape, record.stride, strict=True)
        )
        sizes = (record.offset, *record.shape, *record.stride)
        if any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError("its shape is no shape")
        if 0 in record.shape:
            return torch.empty(record.shape, dtype=record.dtype)
        if reach >= len(stored):
            raise ValueError(f"it needs {reach + 1} numbers, and the file has {len(stored)}")
        return stored.as_strided(record.shape, record.stride, record.offset)

    def _read(self, storage: StorageRecord) -> Tensor:
        raw = (
            memoryview(bytearray(storage.content))
            if storage.content is not None
            else self._storages[storage.key]
        )
        usable = len(raw) // storage.dtype.itemsize * storage.dtype.itemsize
        if not usable:
            return torch.empty(0, dtype=storage.dtype)
        numbers = torch.frombuffer(raw[:usable], dtype=torch.uint8)
        if numbers.data_ptr() % storage.dtype.itemsize:
            numbers = numbers.clone()
        return numbers.view(storage.dtype)[storage.start :]


def read(path: Path) -> Checkpoint:
    """Return what a file holds; raises `UploadRefused` where that cannot be read."""
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise errors.UploadRefused("unreadable", f"{path.name} is empty")
        # Copied on writing: torch wants a buffer that it could write to.
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    names: set[str] = set()
    try:
        if mapped[:4] == ZIP_SIGNATURE:
            content, storages = _read_zip(path, mapped, names)
        else:
            content, storages = _read_pickles(mapped, names)
    except Unreadable as error:
        _refuse_code(path, names)
        raise errors.UploadRefused(
            "unreadable",
            f"{path.name} is neither a safetensors file nor one of torch.save or pickle.dump, or "
            f"it is damaged: {_first_line(str(error))}",
        ) from error
    _refuse_code(path, names)
    return Checkpoint(content, frozenset(names), storages)


def _refuse_code(path: Path, names: set[str]) -> None:
    asked = sorted(name for name in names if _is_code(name))
    if asked:
        raise errors.UploadRefused(
            "unsafe_pickle",
            f"{path.name} is a pickle that asks for code to be run: {asked[0]}. Nothing of it was "
            "run. Save the state dictionary alone, best as safetensors",
            refers_to=asked[0],
        )


def _is_code(name: str) -> bool:
    module, _, last = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return last in CODE_BUILTINS
    return module.partition(".")[0] in CODE_MODULES


# -- the three forms -------------------------------------------------------------------------------


def _read_zip(
    path: Path, mapped: mmap.mmap, names: set[str]
) -> tuple[Any, Mapping[str, memoryview]]:
    """Read what torch.save and TorchScript write today: a pickle, and an entry for each storage."""
    with _opened_zip(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            raise errors.UploadRefused(
                "unreadable", f"{path.name} is a zip file, but not one that torch.save wrote"
            )
        packed = sum(entry.compress_size for entry in entries.values())
        unpacked = sum(entry.file_size for entry in entries.values())
        if unpacked > MOST_COMPRESSION * max(packed, 1):
            raise errors.UploadRefused(
                "unreadable",
                f"{path.name} holds compressed entries that would fill {unpacked} bytes, from "
                f"{packed}; weights do not shrink so, and nothing was unpacked",
            )
        folder = min(pickles, key=len).removesuffix("data.pkl")
        order = entries.get(f"{folder}byteorder")
        if order is not None and archive.read(order).strip() == b"big":
            raise errors.UploadRefused(
                "unreadable",
                f"{path.name} was written on a big-endian machine; load it there, and save it with "
                "safetensors.torch.save_file",
            )
        content = _object(io.BytesIO(archive.read(f"{folder}data.pkl")), names, _storage_of_id)
        prefix = f"{folder}data/"
        storages = {
            name.removeprefix(prefix): _entry(archive, entry, mapped)
            for name, entry in entries.items()
            if name.startswith(prefix)
        }
    return content, storages


@contextlib.contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
        ValueError,
        zipfile.zlib.error,  # type: ignore[attr-defined]  # zlib, where it was built in
    ) as error:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is a damaged or cut zip file: {error}"
        ) from error


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, mapped: mmap.mmap) -> memoryview:
    """Return the bytes of an entry: of the file itself where they are not compressed."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return memoryview(bytearray(archive.read(entry)))
    at = entry.header_offset
    head = mapped[at : at + LOCAL_HEADER_BYTES]
    lengths = (int.from_bytes(head[place : place + 2], "little") for place in (26, 28))
    start = at + LOCAL_HEADER_BYTES + sum(lengths)
    if head[:4] != ZIP_SIGNATURE or start + entry.file_size > len(mapped):
        raise zipfile.BadZipFile(f"the entry {entry.filename[:80]!r} lies outside the file")
    return memoryview(mapped)[start : start + entry.file_size]


def _read_pickles(mapped: mmap.mmap, names: set[str]) -> tuple[Any, Mapping[str, memoryview]]:
    """Read one pickle, or the row of them that torch.save wrote before version 1.6."""
    content = _object(mapped, names, _storage_of_id)
    if content != MAGIC_NUMBER:
        return content, {}
    _object(mapped, names, _storage_of_id)  # the version of the form
    system = _object(mapped, names, _storage_of_id)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Unreadable("it was written on a big-endian machine")
    dtypes: dict[str, torch.dtype] = {}

    def persistent(identity: Any) -> Any:
        found = _storage_of_id(identity)
        if isinstance(found, StorageRecord):
            dtypes.setdefault(found.key, found.dtype)
        return found

    content = _object(mapped, names, persistent)
    keys = _object(mapped, names, _storage_of_id)
    storages: dict[str, memoryview] = {}
    for key in keys if isinstance(keys, list) else []:
        count = int.from_bytes(mapped.read(8), "little")
        size = count * dtypes.get(str(key), torch.uint8).itemsize
        start = mapped.tell()
        if start + size > len(mapped):
            raise Unreadable("it is cut short")
        storages[str(key)] = memoryview(mapped)[start : start + size]
        mapped.seek(start + size)
    return content, storages


def _object(stream: pickle_reader.Stream, names: set[str], persistent: Any) -> Any:
    return pickle_reader.read(stream, rebuild=REBUILD, persistent=persistent, names=names)


# -- what names stand for ----------------------------------------------------------------------


def _storage_of_id(identity: Any) -> Any:
    """Return what a persistent id of torch.save stands for: a storage, or a module's class."""
    if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
        return identity[1]
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        return StandIn("an object outside the file")
    _, kind, key, _, _, *view = identity
    dtype = STORAGE_DTYPES.get(kind.name) if isinstance(kind, Name) else None
    if dtype is None:
        return StandIn(kind)
    start = view[0][1] if view and isinstance(view[0], tuple) else 0
    return StorageRecord(str(key), dtype, start=_count(start))


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    if not isinstance(storage, StorageRecord):
        return StandIn(Name("torch", "Tensor"), (storage, offset, shape, stride, *rest))
    return TensorRecord(storage, _count(offset), _counts(shape), _counts(stride), storage.dtype)


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    known = getattr(torch, dtype.name, None) if isinstance(dtype, Name) else None
    if not isinstance(storage, StorageRecord) or not isinstance(known, torch.dtype):
        return StandIn(Name("torch", "Tensor"), (storage, offset, shape, stride, grad, hooks))
    return TensorRecord(storage, _count(offset), _counts(shape), _counts(stride), known)


def _tensor_of_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    rebuild = REBUILD.get(str(function))
    if rebuild is None or not isinstance(arguments, tuple):
        return StandIn(kind, arguments)
    return rebuild(*arguments)


def _storage_of_bytes(content: Any) -> Any:
    """Return a storage that pickle.dump wrote: an old file of torch.save within the pickle."""
    stream = io.BytesIO(content)
    for _ in range(3):
        _object(stream, set(), _storage_of_id)
    storage = _object(stream, set(), _storage_of_id)
    _object(stream, set(), _storage_of_id)
    if not isinstance(storage, StorageRecord):
        return storage
    count = int.from_bytes(stream.read(8), "little")
    raw = stream.read(count * storage.dtype.itemsize)
    return StorageRecord("", storage.dtype, content=raw)


def _array_of_bytes(content: Any, dtype: Any, shape: Any, order: Any) -> ArrayRecord:
    return ArrayRecord((1, shape, dtype, order == "F", content))


@dataclass(eq=False)
class ArrayType:
    """A dtype of NumPy, such as `f4`, and its byte order."""

    code: str
    order: str = "<"

    def take_state(self, state: Any) -> None:
        """Keep the byte order."""
        if isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str):
            self.order = state[1]


REBUILD: dict[str, pickle_reader.Rebuild] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": lambda values, *_: values,
    "torch._utils._rebuild_parameter_with_state": lambda values, *_: values,
    "torch.nn.parameter.Parameter": lambda values, *_: values,
    "torch.nn.parameter.Buffer": lambda values, *_: values,
    "torch._tensor._rebuild_from_type": _tensor_of_subclass,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_subclass,
    "torch.storage._load_from_bytes": _storage_of_bytes,
    "torch.Size": lambda sides: tuple(sides),
    "numpy.dtype": lambda code, *_: ArrayType(str(code)),
    **{
        f"numpy.{core}.multiarray._reconstruct": lambda *_: ArrayRecord()
        for core in ("core", "_core")
    },
    **{f"numpy.{core}.numeric._frombuffer": _array_of_bytes for core in ("core", "_core")},
}
"""Data that is rebuilt as records, by the name of the function that a library would call."""


def _tensor_of_array(record: ArrayRecord) -> Tensor:
    _, shape, dtype, is_fortran, content = record.state
    content = content.encode("latin-1") if isinstance(content, str) else bytes(content)
    code = dtype.code.lstrip("<>=|")
    if code not in ARRAY_DTYPES:
        raise ValueError(f"arrays of {dtype.code} are no weights")
    sides = _counts(shape)
    kind = np.dtype(code).newbyteorder(">" if dtype.order == ">" else "<")
    flat = np.frombuffer(content, dtype=kind)
    if len(flat) != math.prod(sides):
        raise ValueError(f"it has {len(flat)} numbers, and its shape is {list(sides)}")
    array = flat.reshape(sides, order="F" if is_fortran else "C")
    # A copy in the order of C; a single number must stay one.
    return torch.from_numpy(array.astype(np.dtype(code), order="C"))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Unreadable("a size is no number")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise Unreadable("a shape is no list of numbers")
    return tuple(_count(value) for value in values)


def _first_line(words: str) -> str:
    return words.strip().splitlines()[0] if words.strip() else "it is damaged"
