"""Loads weights from a file into a network, and saves a network to a file that can rebuild it.

Reads safetensors and torch state dictionaries as RepDistiller, MDistiller, timm and torchvision
publish them (`{"model": ...}`, `{"state_dict": ...}`, averaged weights, `module.` and
`student.`/`teacher.` prefixes), told apart by content. Pickles are opened with torch's weights-only
reader and never executed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.files import tensorfile, torchfile
from workers.distill.networks import catalog, interface

Format = Literal["safetensors", "torch"]
Role = Literal["teacher", "student"]

HEADER_KEY = "retort"
LISTED_KEYS = 6
"""A message names so many keys of each kind; the error itself carries all."""

AVERAGED = ("state_dict_ema", "model_ema")
WRAPPED = (*AVERAGED, "model", "state_dict")
"""Where checkpoints keep weights; the averaged ones are those that were validated."""
AVERAGING_COUNTER = "n_averaged"
MOST_PREFIXES = 4
"""Wrappers for several devices, for averaging and for training each put a word before all keys."""


@dataclass(frozen=True)
class Loaded:
    """The content of a loaded file, with remarks for its owner."""

    format: Format
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """The tensors of a file under their names there, with remarks on its other content."""

    format: Format
    state: dict[str, Tensor]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """One reading of a file's keys: as they are, without a prefix, or those of one role."""

    state: dict[str, Tensor]
    remarks: tuple[str, ...] = ()


def load_into(
    network: interface.Network, path: Path, *, role: Role = "student", allow_pickle: bool = True
) -> Loaded:
    """Copy a file's weights into a network, every key, strictly.

    `role` decides when a file holds a teacher and a student and both would fit. Raises
    `KeysMismatch` when names or shapes differ, `UploadRefused` when the file is unreadable.
    """
    stored = read_state(path, allow_pickle=allow_pickle)
    expected = network.state_dict()
    candidates = [
        replace(candidate, state=network.current_names(candidate.state))
        for candidate in _candidates(stored.state, role)
    ]
    chosen = _fitting(expected, candidates)
    remarks = [*stored.remarks, *chosen.remarks]
    if any(key not in chosen.state for key in expected):
        remarks.append("the counters num_batches_tracked are missing and start at their own value")
    with torch.no_grad():
        for key, target in expected.items():
            if key in chosen.state:
                # A linear layer may have been stored as a 1x1 convolution, or the other way round.
                target.copy_(chosen.state[key].reshape(target.shape))
    return Loaded(stored.format, tuple(remarks))


def read_state(path: Path, *, allow_pickle: bool = True) -> Stored:
    """Return the state dictionary of a file, unwrapped, its keys as stored."""
    if tensorfile.looks_like(path):
        return Stored("safetensors", tensorfile.read(path))
    if not allow_pickle:
        raise errors.UploadRefused(
            "unsafe_pickle",
            "this file is not safetensors, and this service accepts no pickle files; "
            "convert it with safetensors.torch.save_file",
        )
    return _unwrap(torchfile.read(path))


def save_student(path: Path, network: interface.Network, header: Mapping[str, str]) -> None:
    """Write a network's weights with a header; the same weights and header give the same bytes."""
    tensorfile.write(path, network.state_dict(), header)


def read_header(path: Path) -> dict[str, Any]:  # Any: the JSON that `save_student` was given
    """Return the header of a delivered student's file."""
    text = tensorfile.read_header(path).get(HEADER_KEY)
    if text is None:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} has no {HEADER_KEY!r} header: it is no delivered student"
        )
    try:
        record = json.loads(text)
    except ValueError as error:
        raise errors.UploadRefused(
            "unreadable", f"the {HEADER_KEY!r} header of {path.name} is not JSON: {error}"
        ) from error
    if not isinstance(record, dict):
        raise errors.UploadRefused(
            "unreadable", f"the {HEADER_KEY!r} header of {path.name} is not a JSON object"
        )
    return record


def rebuild(path: Path) -> tuple[interface.Network, dict[str, Any]]:  # Any: as in `read_header`
    """Build a delivered student from its file alone; return it with its header."""
    record = read_header(path)
    try:
        classes, size = record["classes"], record["input"]
        network = catalog.build(
            record["network"],
            classes=classes if isinstance(classes, int) else len(classes),
            channels=size["channels"],
            height=size["height"],
            width=size["width"],
            arguments=record.get("arguments", {}),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise errors.UploadRefused(
            "unreadable", f"the header of {path.name} does not describe a network: {error!r}"
        ) from error
    load_into(network, path)
    return network, record


def _fitting(expected: Mapping[str, Tensor], candidates: list[_Candidate]) -> _Candidate:
    """Return the first reading that fits, or raise the mismatch of the nearest one."""
    faults = []
    for candidate in candidates:
        fault = _compare(expected, candidate.state)
        if fault is None:
            return candidate
        faults.append(fault)
    raise min(faults, key=_faults_counted)


def _candidates(state: Mapping[str, Tensor], role: Role) -> list[_Candidate]:
    """Return the readings of a file's keys, the preferred one first."""
    roles: tuple[Role, Role] = (
        ("student", "teacher") if role == "student" else ("teacher", "student")
    )
    readings: list[_Candidate] = []
    for plain in _unprefixed(dict(state)):
        parts = {wanted: _part(plain, f"{wanted}.") for wanted in roles}
        if not any(parts.values()):
            readings.append(_Candidate(plain))
            continue
        remark = f"it holds more than one network ({', '.join(_first_words(plain))})"
        for wanted in roles:
            taken = f"{remark}; its {wanted} was taken"
            if all(parts.values()):
                taken += "; to have another, save that part alone"
            readings += [_Candidate(part, (taken,)) for part in _unprefixed(parts[wanted]) if part]
    return readings


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }


def _first_words(state: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key in state))


def _unprefixed(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the state as it is, then without the first, the second... word before all its keys."""
    readings = [state]
    for _ in range(MOST_PREFIXES):
        words = _first_words(readings[-1])
        if len(words) != 1 or words[0] in readings[-1]:
            break
        readings.append(_part(readings[-1], f"{words[0]}."))
    return readings


def _faults_counted(fault: errors.KeysMismatch) -> int:
    return len(fault.missing_keys) + len(fault.unexpected_keys) + len(fault.shape_mismatches)


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
        if key in state and _essential(expected[key].shape) != _essential(state[key].shape)
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


def _essential(shape: torch.Size) -> tuple[int, ...]:
    """Return a shape without the two sides of a 1x1 convolution, whose weight is a matrix."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)


def _shape_words(mismatch: Mapping[str, Any]) -> str:
    return f"{mismatch['key']}: expected {mismatch['expected']}, got {mismatch['got']}"


def _listed(keys: list[str]) -> str:
    rest = len(keys) - LISTED_KEYS
    return ", ".join(keys[:LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def _unwrap(checkpoint: Any) -> Stored:  # Any: whatever was saved
    """Return the state dictionary inside a checkpoint, with remarks on ignored ones."""
    if not isinstance(checkpoint, Mapping):
        raise errors.UploadRefused(
            "unreadable", f"the file holds a {type(checkpoint).__name__}, not a state dictionary"
        )
    chosen = next((key for key in WRAPPED if isinstance(checkpoint.get(key), Mapping)), None)
    if chosen is None:
        return Stored("torch", _checked_state(checkpoint))
    state = dict(checkpoint[chosen])
    remarks = []
    if chosen in AVERAGED:
        state.pop(AVERAGING_COUNTER, None)
        remarks.append(f"the averaged weights ({chosen}) were taken")
    others = [str(key) for key, entry in checkpoint.items() if key != chosen and _is_state(entry)]
    if others:
        remarks.append(f"other weights in the file were left aside: {_listed(others)}")
    return Stored("torch", _checked_state(state), tuple(remarks))


def _is_state(entry: Any) -> bool:  # Any: whatever was saved
    return (
        isinstance(entry, Mapping)
        and bool(entry)
        and all(isinstance(tensor, Tensor) for tensor in entry.values())
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
