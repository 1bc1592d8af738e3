"""Loads weights from a file into a network, and saves a network to a file that can rebuild it.

Reads safetensors, files of torch.save, of pickle.dump and of TorchScript, compressed or not, told
apart by content; nothing that a pickle names is imported or called. A network's weights are found
by its own keys (`readings`), under the names of this or of another library.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from workers.distill import errors
from workers.distill.files import tensorfile, torchfile, wrapping
from workers.distill.networks import catalog, checkpoints, interface, readings
from workers.distill.networks.checkpoints import Contained, listed
from workers.distill.networks.external import conversion
from workers.distill.networks.readings import Choice, Role, WeightsReading

Format = Literal["safetensors", "torch", "onnx", "predictions"]

HEADER_KEY = "retort"
AS_SAVED = Choice()
PLAIN_CLASSES = re.compile(
    r"(torch|collections|numpy|builtins|__builtin__|_codecs|copyreg|copy_reg|argparse|__torch__)\."
)
"""Classes that need no remark: of PyTorch, of NumPy and of the language itself."""


@dataclass(frozen=True)
class Loaded:
    """The content of a loaded file, with remarks for its owner."""

    format: Format
    warnings: tuple[str, ...] = ()


def load_into(
    network: interface.Network,
    path: Path,
    *,
    role: Role = "student",
    allow_pickle: bool = True,
    choice: Choice = AS_SAVED,
) -> Loaded:
    """Copy a file's weights into a network, every key, strictly.

    `role` decides when a file holds a teacher and a student and both would fit. Raises
    `KeysMismatch` when names or shapes differ, `UploadRefused` when the file is unreadable, or
    holds several networks of which none is to be preferred.
    """
    if isinstance(network, interface.FileNetwork):
        return Loaded("onnx", tuple(network.load_file(path)))
    with wrapping.opened(path) as found:
        form, contained, foreign = _read(found.path, allow_pickle=allow_pickle)
        chosen, remarks = _choose(network, contained, role, choice)
        _copy(network, chosen)
    told = _on_objects(chosen.prefix, contained, foreign)
    if any(key not in chosen.state for key in network.state_dict()):
        remarks.append("the counters num_batches_tracked are missing and start at their own value")
    return Loaded(form, (*found.remarks, *told, *remarks))


def _read(path: Path, *, allow_pickle: bool) -> tuple[Format, Contained, list[str]]:
    """Return all tensors of a file, and the classes of other programs that were not loaded."""
    if tensorfile.looks_like(path):
        return "safetensors", checkpoints.of_state(tensorfile.read(path)), []
    if not allow_pickle:
        raise errors.UploadRefused(
            "unsafe_pickle",
            f"{path.name} is not safetensors, and this service accepts no pickle files; "
            "convert it with safetensors.torch.save_file",
        )
    checkpoint = torchfile.read(path)
    contained = checkpoints.of_checkpoint(checkpoint)
    if not contained.places:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} holds no state dictionary: there is no dense tensor in it"
        )
    return (
        "torch",
        contained,
        sorted(name for name in checkpoint.names if not PLAIN_CLASSES.match(name)),
    )


def _on_objects(prefix: str, contained: Contained, foreign: list[str]) -> list[str]:
    """Return what a user should know of objects whose classes were not loaded."""
    for path, kind in contained.modules.items():
        if f"{path}.".startswith(prefix) or prefix.startswith(f"{path}.") or not path:
            return [
                f"the file holds a whole module, whose class {kind} was not loaded; its parameters "
                "and buffers were read"
            ]
    if not foreign:
        return []
    return [
        "objects beside the weights were not loaded, only passed over; their classes: "
        f"{listed(foreign)}"
    ]


def _choose(
    network: interface.Network, contained: Contained, role: Role, choice: Choice
) -> tuple[WeightsReading, list[str]]:
    """Return the reading that is to be taken, with remarks on the choice."""
    found = readings.find(network, contained, choice)
    hint = ""
    if not any(reading.fits for reading in found):
        converted = conversion.of_file(network, contained, choice)
        found, hint = [*found, *converted.readings], converted.hint
    if choice.entry is None and not any(reading.fits for reading in found):
        raise readings.mismatch(network, found, contained, hint)
    chosen = readings.choose(found, role, choice)
    return chosen, readings.remarks_on(chosen, found, contained)


@torch.no_grad()
def _copy(network: interface.Network, chosen: WeightsReading) -> None:
    for key, target in network.state_dict().items():
        tensor = chosen.state.get(key)
        if tensor is None:
            continue
        if target.is_floating_point() and not tensor.is_floating_point():
            raise errors.UploadRefused(
                "quantised",
                f"{key} has numbers of {str(tensor.dtype).removeprefix('torch.')}, which stand for "
                "others by a scale that is not known here; save the weights as floats",
            )
        # A linear layer may have been stored as a 1x1 convolution, or the other way round.
        target.copy_(tensor.reshape(target.shape))


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
