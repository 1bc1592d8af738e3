"""CIFAR-10 and CIFAR-100 archives in the layout that their authors publish for Python.

Those archives hold pickles. They are opened with an unpickler that knows a handful of names, all
of them stand-ins of this file: no foreign code runs, NumPy's included.
Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.data import dataset
from workers.distill.data.formats import archives, conversion

SIDE = 32
ROW_BYTES = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Layout:
    """File and key names of one of the two sets."""

    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes
    classes: int


LAYOUTS = {
    "cifar10": Layout(
        train=("data_batch_*",),
        test="test_batch",
        meta="batches.meta",
        labels=b"labels",
        names=b"label_names",
        classes=10,
    ),
    "cifar100": Layout(
        train=("train",),
        test="test",
        meta="meta",
        labels=b"fine_labels",
        names=b"fine_label_names",
        classes=100,
    ),
}


def convert(
    upload: Path, scratch: Path, folder: Path, format_name: str, wish: conversion.InputHints
) -> dataset.DatasetRecord:
    """Unpack and read a CIFAR archive and write it as a prepared data set."""
    layout = LAYOUTS[format_name]
    archives.unpack(upload, scratch)
    train_files = sorted(file for pattern in layout.train for file in scratch.rglob(pattern))
    test_files = sorted(scratch.rglob(layout.test))
    if not train_files:
        raise errors.UploadRefused(
            "unsupported_format",
            f"the archive has no file {layout.train[0]!r}: it is no {format_name} archive in "
            "its Python layout",
        )
    given = {"train": _read(train_files, layout)}
    if test_files:
        given["test"] = _read(test_files, layout)
    names = _names(next(iter(sorted(scratch.rglob(layout.meta))), None), layout)
    return conversion.write_arrays(folder, given, classes=names, flip=True, wish=wish)


def _read(files: Sequence[Path], layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for file in files:
        batch = load_pickle(file)
        pixels, marks = _entry(batch, b"data"), _entry(batch, layout.labels)
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.ndim != 2
            or pixels.shape[1] != ROW_BYTES
        ):
            raise _unreadable(file, f"its data is not uint8 of {ROW_BYTES} columns")
        if isinstance(marks, np.ndarray):
            marks = marks.tolist()
        if not isinstance(marks, list) or not all(type(mark) is int for mark in marks):
            raise errors.UploadRefused(
                "bad_labels", f"{file.name} has no list of whole numbers {layout.labels.decode()!r}"
            )
        if len(marks) != len(pixels):
            raise errors.UploadRefused(
                "bad_labels", f"{file.name} has {len(pixels)} images and {len(marks)} labels"
            )
        if any(not 0 <= mark < layout.classes for mark in marks):
            raise errors.UploadRefused(
                "bad_labels", f"{file.name} has labels outside 0..{layout.classes - 1}"
            )
        images.append(pixels.reshape(-1, 3, SIDE, SIDE))
        labels.append(np.array(marks, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _names(file: Path | None, layout: Layout) -> list[str]:
    numbers = [str(label) for label in range(layout.classes)]
    if file is None:
        return numbers
    found = _entry(load_pickle(file), layout.names)
    if not isinstance(found, list) or len(found) != layout.classes:
        return numbers
    return [
        name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in found
    ]


def _entry(batch: Any, key: bytes) -> Any:  # Any: the content of a pickle
    """Return an entry whose key may be bytes (published files) or text (files made since)."""
    if not isinstance(batch, Mapping):
        return None
    return batch.get(key, batch.get(key.decode()))


class _Array:
    """Stands in for a NumPy array while its pickle is read; only remembers what it is told."""

    def __init__(self, *_said: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        """Return the array, of whole numbers only."""
        _version, shape, kind, is_fortran, content = self.state
        if isinstance(content, str):
            content = content.encode("latin-1")
        flat = np.frombuffer(content, dtype=kind.number())
        return flat.reshape(shape, order="F" if is_fortran else "C")


class _Kind:
    """Stands in for a NumPy dtype."""

    NUMBERS = ("u1", "i1", "i2", "i4", "i8")

    def __init__(self, name: Any = "", *_said: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, _state: Any) -> None:
        """Take no notice: little-endian whole numbers need no more than their name."""

    def number(self) -> np.dtype[Any]:
        """Return the dtype, if it is one of whole numbers."""
        if self.name not in self.NUMBERS:
            raise ValueError(f"arrays of type {self.name!r} are not expected here")
        return np.dtype(self.name)


def _text(content: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which newer Pythons write bytes into old pickles."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the encoding {encoding!r} is not expected here")
    return content.encode("latin-1")


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Stand in for what NumPy calls when an array was written by pickle protocol 5."""
    array = _Array()
    array.state = (1, shape, kind, order == "F", bytes(content))
    return array


STAND_INS: dict[tuple[str, str], Any] = {  # Any: classes and functions
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _text,
}


# The reader written in Python, not the one in C: the latter reserves memory by numbers in the file.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # Any: as above
        """Return a stand-in; refuse every other name."""
        if (module, name) not in STAND_INS:
            raise errors.UploadRefused(
                "unsafe_archive",
                f"a pickle in the archive refers to {module}.{name}; nothing of it was run",
                refers_to=f"{module}.{name}",
            )
        return STAND_INS[module, name]


def load_pickle(file: Path) -> Any:  # Any: containers, numbers, bytes and arrays
    """Return the content of a pickle of plain values and arrays; run nothing."""
    try:
        with file.open("rb") as stream:
            return _plain(_Reader(stream, encoding="bytes").load())
    # A damaged pickle fails wherever its damage lies.
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise _unreadable(file, str(error) or type(error).__name__) from error


def _plain(value: Any) -> Any:  # Any: as in `load_pickle`
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _unreadable(file: Path, reason: str) -> errors.UploadRefused:
    return errors.UploadRefused("unreadable", f"{file.name} cannot be read: {reason}")
