"""CIFAR-10 and CIFAR-100 archives as their authors publish them, for Python or as binary files.

A row of a binary file is one label, for CIFAR-100 a coarse and a fine one, and the planes of an
image. The archives for Python hold pickles, which are opened with an unpickler that accepts a few
names only and maps each to a class or function of this file: no code of other modules runs, not
even NumPy's.
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
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, conversion, folders
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload

SIDE = 32
ROW_BYTES = 3 * SIDE * SIDE


@dataclass(frozen=True)
class ArchiveLayout:
    """File and key names in the archive of one of the two sets."""

    train: str
    """Pattern of the names of the files with training images."""
    test: str
    meta: str
    labels: bytes
    names: bytes
    classes: int
    binary_meta: str
    """The file of the names of classes beside binary files, one a line."""
    label_bytes: int
    """Labels in a row of a binary file; the last one counts."""

    def find(self, upload: Upload) -> tuple[list[Path], list[Path], bool]:
        """Return the files with training and with test images, and whether they are binary."""
        for suffix, is_binary in (("", False), (".bin", True)):
            train, test = (
                sorted(
                    file
                    for file in upload.root.rglob(name + suffix)
                    if file.is_file() and (is_binary or not file.suffix)
                )
                for name in (self.train, self.test)
            )
            if train:
                return train, test, is_binary
        raise errors.UploadRefused(
            "unsupported_format",
            f"the archive has no file {self.train!r} or '{self.train}.bin': it is no "
            f"CIFAR-{self.classes} archive in its Python or binary layout",
        )

    def convert(
        self, upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
    ) -> dataset.DatasetRecord:
        """Unpack and read a CIFAR archive and write it as a prepared data set."""
        train_files, test_files, is_binary = self.find(upload)
        read = _read_binary if is_binary else _read
        given = {"train": read(train_files, self)}
        if test_files:
            given["test"] = read(test_files, self)
        meta = self.binary_meta if is_binary else self.meta
        file = next((file for file in sorted(upload.root.rglob(meta)) if file.is_file()), None)
        names = (_names_in_text if is_binary else _names)(file, self)
        return conversion.write_arrays(
            folder, given, classes=names, flip=True, hints=hints, notes=upload.notes, task=task
        )


def _format(name: str, layout: ArchiveLayout) -> Format:
    return Format(
        name=name,
        title=f"the CIFAR-{layout.classes} archive for Python, or the binary one",
        description=(
            f"The archive that the authors of CIFAR-{layout.classes} publish for Python, or one "
            f"laid out like it: files `{layout.train}`, `{layout.test}` and `{layout.meta}`, each "
            f"a pickle of a dictionary with `data` (uint8, {ROW_BYTES} numbers an image) and "
            f"`{layout.labels.decode()}`. The pickles are read without running any code in them. "
            f"Or the binary archive, with `{layout.train}.bin` and `{layout.test}.bin`."
        ),
        tasks=("classification",),
        suffixes=archives.SUFFIXES,
        recognise=layout.find,
        convert=layout.convert,
    )


CIFAR10 = _format(
    "cifar10",
    ArchiveLayout(
        train="data_batch_*",
        test="test_batch",
        meta="batches.meta",
        labels=b"labels",
        names=b"label_names",
        classes=10,
        binary_meta="batches.meta.txt",
        label_bytes=1,
    ),
)
CIFAR100 = _format(
    "cifar100",
    ArchiveLayout(
        train="train",
        test="test",
        meta="meta",
        labels=b"fine_labels",
        names=b"fine_label_names",
        classes=100,
        binary_meta="fine_label_names.txt",
        label_bytes=2,
    ),
)


def _read(
    files: Sequence[Path], layout: ArchiveLayout
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for file in files:
        batch = load_pickle(file)
        pixels, targets = _entry(batch, b"data"), _entry(batch, layout.labels)
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.ndim != 2
            or pixels.shape[1] != ROW_BYTES
        ):
            raise _unreadable(file, f"its data is not uint8 of {ROW_BYTES} columns")
        if isinstance(targets, np.ndarray):
            targets = targets.tolist()
        if not isinstance(targets, list) or not all(type(target) is int for target in targets):
            raise errors.UploadRefused(
                "bad_labels", f"{file.name} has no list of whole numbers {layout.labels.decode()!r}"
            )
        if len(targets) != len(pixels):
            raise errors.UploadRefused(
                "bad_labels", f"{file.name} has {len(pixels)} images and {len(targets)} labels"
            )
        if any(not 0 <= target < layout.classes for target in targets):
            raise errors.UploadRefused(
                "bad_labels", f"{file.name} has labels outside 0..{layout.classes - 1}"
            )
        images.append(pixels.reshape(-1, 3, SIDE, SIDE))
        labels.append(np.array(targets, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _read_binary(
    files: Sequence[Path], layout: ArchiveLayout
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    row = layout.label_bytes + ROW_BYTES
    tables = []
    for file in files:
        size = file.stat().st_size
        if not size or size % row:
            raise _unreadable(file, f"it has {size} bytes, not a multiple of {row}")
        table = np.fromfile(file, dtype=np.uint8).reshape(-1, row)
        highest = int(table[:, layout.label_bytes - 1].max())
        if highest >= layout.classes:
            raise errors.UploadRefused(
                "bad_labels", f"{file.name} has the label {highest}, beyond {layout.classes - 1}"
            )
        tables.append(table)
    table = np.concatenate(tables)
    images = table[:, layout.label_bytes :].reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(images), table[:, layout.label_bytes - 1].astype(np.int64)


def _names_in_text(file: Path | None, layout: ArchiveLayout) -> list[str]:
    lines = [] if file is None else folders.read_text(file, file.parent).split("\n")
    names = [line.strip() for line in lines if line.strip()]
    return names if len(names) == layout.classes else _numbers(layout)


def _numbers(layout: ArchiveLayout) -> list[str]:
    return [str(label) for label in range(layout.classes)]


def _names(file: Path | None, layout: ArchiveLayout) -> list[str]:
    if file is None:
        return _numbers(layout)
    names = _entry(load_pickle(file), layout.names)
    if not isinstance(names, list) or len(names) != layout.classes:
        return _numbers(layout)
    return [
        name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names
    ]


def _entry(batch: Any, key: bytes) -> Any:  # Any: the content of a pickle
    """Return an entry whose key may be bytes (the published files) or text (later files)."""
    if not isinstance(batch, Mapping):
        return None
    return batch.get(key, batch.get(key.decode()))


class _Array:
    """Stands in for a NumPy array while its pickle is read; only stores the state it is given."""

    def __init__(self, *_arguments: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        """Return the array; raises `ValueError` unless it holds integers."""
        _version, shape, kind, is_fortran, content = self.state
        if isinstance(content, str):
            content = content.encode("latin-1")
        flat = np.frombuffer(content, dtype=kind.number())
        return flat.reshape(shape, order="F" if is_fortran else "C")


class _Kind:
    """Stands in for a NumPy dtype."""

    NUMBERS = ("u1", "i1", "i2", "i4", "i8")

    def __init__(self, name: Any = "", *_arguments: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, _state: Any) -> None:
        """Ignore the state: little-endian integers are described by their name alone."""

    def number(self) -> np.dtype[Any]:
        """Return the dtype; raises `ValueError` unless it is an integer type."""
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
    """Return the content of a pickle of plain values and arrays; no code in it runs."""
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
