"""Reads files of torch.save, in its old and new format, without running code that they name.

It uses torch's weights-only reader, which builds tensors, plain values and the few types listed
here. A pickle that names anything else is refused with its name.
"""

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.distill import errors
from workers.distill.files import pickle_scan

ZIP_SIGNATURE = b"PK\x03\x04"
REFUSED_BY_READER = r"unsupported global|unsupported class|trying to|can only (create|build)"
HARMLESS_PACKAGES = frozenset({"_codecs", "argparse", "collections", "numpy", "torch"})
LARGEST_SCANNED_BYTES = 64 << 20
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# What published training scripts put beside the weights: an argparse Namespace (RepDistiller's
# `_last.pth`) and NumPy numbers (best accuracy). None of these can run code when rebuilt.
SAFE_GLOBALS: list[Any] = [  # Any: torch takes classes, and pairs of an object and its old name
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


def read(path: Path) -> Any:  # Any: whatever was saved; the caller checks it
    """Return the file's content without running any code that it names."""
    _check_zip(path)
    try:
        # A stream, because by a path torch would go by its ending.
        with (
            path.open("rb") as stream,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(SAFE_GLOBALS),
        ):
            # It warns of pickles that other programs wrote; whether one can be read is seen below.
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from error
    # A damaged file fails wherever its damage lies; none of these says more than that.
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} cannot be read: {_first_line(str(error))}"
        ) from error


def _check_zip(path: Path) -> None:
    """Refuse zip files that torch.save did not write, before torch reads them."""
    with path.open("rb") as stream:
        if stream.read(4) != ZIP_SIGNATURE:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is a damaged or cut zip file: {error}"
        ) from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise errors.UploadRefused(
            "unsafe_pickle",
            f"{path.name} is a TorchScript program, not a state dictionary; "
            "save model.state_dict() instead",
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is a zip file, but not one that torch.save wrote"
        )
    # torch.save compresses nothing: an entry larger than its bytes in the file is a bomb.
    if (
        any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or sum(entry.file_size for entry in entries) > path.stat().st_size
    ):
        raise errors.UploadRefused(
            "unreadable", f"{path.name} holds compressed entries, which torch.save never writes"
        )


def _refused_pickle(path: Path, words: str) -> errors.UploadRefused:
    """Return why torch's reader stopped: the file names code, or it is no such file."""
    named = re.search(r"GLOBAL (\S+)", words)
    name = (
        named.group(1)
        if named
        else pickle_scan.foreign_name(_pickle_bytes(path), HARMLESS_PACKAGES)
    )
    if name or re.search(REFUSED_BY_READER, words, re.IGNORECASE):
        what = f"it refers to {name}" if name else "it asks for code to be run"
        return errors.UploadRefused(
            "unsafe_pickle",
            f"{path.name} is a pickle with more than tensors in it: {what}. Nothing of it was run. "
            "Save the state dictionary alone, best as safetensors",
            refers_to=name,
        )
    return errors.UploadRefused(
        "unreadable",
        f"{path.name} is neither a safetensors file nor a state dictionary written by torch.save "
        "with its own pickle protocol, 2",
    )


def _pickle_bytes(path: Path) -> bytes:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return archive.read(name)
    with path.open("rb") as stream:
        return stream.read(LARGEST_SCANNED_BYTES)


def _first_line(words: str) -> str:
    return words.strip().splitlines()[0] if words.strip() else "it is damaged"
