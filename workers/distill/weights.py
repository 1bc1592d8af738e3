"""Weights: from a file into a network, and from a network into a file that can rebuild it.

Reads safetensors and torch state dictionaries as published (guide to checkpoint files:
`{"model": ...}`, `{"state_dict": ...}`, `module.` and `student.`/`teacher.` prefixes), told apart
by content. Pickles are opened with torch's weights-only reader and never executed.
"""

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from workers.distill import errors, pickle_scan, tensorfile
from workers.distill.networks import catalog, interface

Format = Literal["safetensors", "torch"]
Role = Literal["teacher", "student"]

HEADER_KEY = "retort"
ZIP_SIGNATURE = b"PK\x03\x04"
REFUSED_BY_READER = r"unsupported global|unsupported class|trying to|can only (create|build)"
HARMLESS_PACKAGES = frozenset({"_codecs", "argparse", "collections", "numpy", "torch"})
LARGEST_SCANNED_BYTES = 64 << 20
LISTED_KEYS = 6
"""A message names so many keys of each kind; the error itself carries all."""

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


@dataclass(frozen=True)
class Loaded:
    """What a file turned out to be, with remarks for its owner."""

    format: Format
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """One reading of a file's keys: as they are, or those of one role."""

    state: dict[str, Tensor]
    remarks: tuple[str, ...] = field(default=())


def load_into(
    network: interface.Network, path: Path, *, role: Role = "student", allow_pickle: bool = True
) -> Loaded:
    """Copy a file's weights into a network, every key, strictly.

    `role` decides when a file holds a teacher and a student and both would fit. Raises
    `KeysMismatch` when names or shapes differ, `UploadRefused` when the file is unreadable.
    """
    found, state = read_state(path, allow_pickle=allow_pickle)
    expected = network.state_dict()
    candidates = _candidates(state, role)
    faults = [_compare(expected, candidate.state) for candidate in candidates]
    fitting = next((index for index, fault in enumerate(faults) if fault is None), None)
    if fitting is None:
        raise next(fault for fault in faults if fault is not None)
    chosen = candidates[fitting]
    remarks = list(chosen.remarks)
    if any(key not in chosen.state for key in expected):
        remarks.append("the counters num_batches_tracked are missing and start at their own value")
    with torch.no_grad():
        for key, target in expected.items():
            if key in chosen.state:
                target.copy_(chosen.state[key])
    return Loaded(found, tuple(remarks))


def read_state(path: Path, *, allow_pickle: bool = True) -> tuple[Format, dict[str, Tensor]]:
    """Return the format and the state dictionary of a file, unwrapped, its keys as stored."""
    if tensorfile.looks_like(path):
        return "safetensors", tensorfile.read(path)
    if not allow_pickle:
        raise errors.UploadRefused(
            "unsafe_pickle",
            "this file is not safetensors, and this service accepts no pickle files; "
            "convert it with safetensors.torch.save_file",
        )
    return "torch", _unwrap(_read_torch(path))


def save_student(path: Path, network: interface.Network, header: Mapping[str, str]) -> None:
    """Write a network's weights with a header; the same weights and header give the same bytes."""
    tensorfile.write(path, network.state_dict(), header)


def read_header(path: Path) -> dict[str, Any]:  # Any: the JSON that `save_student` was given
    """Return what a delivered student's file says of itself."""
    text = tensorfile.read_header(path).get(HEADER_KEY)
    if text is None:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} has no {HEADER_KEY!r} header: it is no delivered student"
        )
    try:
        said = json.loads(text)
    except ValueError as error:
        raise errors.UploadRefused(
            "unreadable", f"the {HEADER_KEY!r} header of {path.name} is not JSON: {error}"
        ) from error
    if not isinstance(said, dict):
        raise errors.UploadRefused(
            "unreadable", f"the {HEADER_KEY!r} header of {path.name} is not a JSON object"
        )
    return said


def rebuild(path: Path) -> tuple[interface.Network, dict[str, Any]]:  # Any: as in `read_header`
    """Build a delivered student from its file alone; return it with what its header says."""
    said = read_header(path)
    try:
        classes, size = said["classes"], said["input"]
        network = catalog.build(
            said["network"],
            classes=classes if isinstance(classes, int) else len(classes),
            channels=size["channels"],
            height=size["height"],
            width=size["width"],
            arguments=said.get("arguments", {}),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise errors.UploadRefused(
            "unreadable", f"the header of {path.name} does not describe a network: {error!r}"
        ) from error
    load_into(network, path)
    return network, said


def _candidates(state: Mapping[str, Tensor], role: Role) -> list[_Candidate]:
    """Return the readings of a file's keys, the preferred one first."""
    plain = _stripped(dict(state))
    other: Role = "teacher" if role == "student" else "student"
    readings = []
    for wanted in (role, other):
        prefix = f"{wanted}."
        chosen = {key.removeprefix(prefix): plain[key] for key in plain if key.startswith(prefix)}
        if chosen:
            remark = f"the file holds more than one network; its {wanted} was taken"
            readings.append(_Candidate(_stripped(chosen), (remark,)))
    return readings or [_Candidate(plain)]


def _stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the `module.` that wrappers for several devices put before."""
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return state


def _compare(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> errors.KeysMismatch | None:
    # Files of very old framework versions have no such counters; nothing is computed from them.
    missing = [
        key for key in expected if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        {"key": key, "expected": list(expected[key].shape), "got": list(state[key].shape)}
        for key in expected
        if key in state and expected[key].shape != state[key].shape
    ]
    if not (missing or unexpected or shapes):
        return None
    parts = [
        f"{len(keys)} {what} ({_listed(keys)})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", [_shape_words(shape) for shape in shapes]),
        )
        if keys
    ]
    return errors.KeysMismatch(
        "the file's tensors are not those of the network: " + "; ".join(parts) + ". "
        "Check network, arguments, classes and channels.",
        missing_keys=missing,
        unexpected_keys=unexpected,
        shape_mismatches=shapes,
    )


def _shape_words(mismatch: Mapping[str, Any]) -> str:
    return f"{mismatch['key']}: expected {mismatch['expected']}, got {mismatch['got']}"


def _listed(keys: list[str]) -> str:
    rest = len(keys) - LISTED_KEYS
    return ", ".join(keys[:LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def _read_torch(path: Path) -> Any:  # Any: whatever was saved; `_unwrap` checks it
    """Return what torch.save wrote, without running any code that the file names."""
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
    """Refuse zip files that torch.save did not write, before torch sees them."""
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


def _unwrap(checkpoint: Any) -> dict[str, Tensor]:  # Any: whatever was saved
    """Return the state dictionary inside a checkpoint: `model`, else `state_dict`, else itself."""
    if isinstance(checkpoint, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(checkpoint.get(key), Mapping):
                return _checked_state(checkpoint[key])
        return _checked_state(checkpoint)
    raise errors.UploadRefused(
        "unreadable", f"the file holds a {type(checkpoint).__name__}, not a state dictionary"
    )


def _checked_state(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    wrong = [
        str(key)
        for key, value in state.items()
        if not isinstance(key, str)
        or not isinstance(value, Tensor)
        or value.layout is not torch.strided
        or value.is_quantized
    ]
    if wrong or not state:
        kinds = f"these entries are not dense tensors: {_listed(wrong)}" if wrong else "it is empty"
        raise errors.UploadRefused("unreadable", f"the file holds no state dictionary: {kinds}")
    return cast(dict[str, Tensor], dict(state))
