"""Convert an upload to a model or a data set, or report why that is impossible.

`python -m workers.distill.inspection.uploads REQUEST.json --workdir DIR` reads `DIR/upload`, trusts
nothing in it, and writes `DIR/model.safetensors` or `DIR/dataset/`. The last line on standard
output is a JSON object: `result` (exit code 0) or `failure` (exit code 1).
"""

import contextlib
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import pydantic
import torch

from workers.distill import errors
from workers.distill.config import formats as format_rules
from workers.distill.config import teachers, upload_limits
from workers.distill.config.job import Input, Task
from workers.distill.config.training import Values
from workers.distill.data import catalog as datasets
from workers.distill.data import dataset
from workers.distill.data.formats import catalog as formats
from workers.distill.data.formats import conversion
from workers.distill.data.formats.upload import Upload
from workers.distill.evaluation import profiling
from workers.distill.files import prediction_table, tensorfile
from workers.distill.methods import traits
from workers.distill.networks import catalog as networks
from workers.distill.networks import interface, predictions, shapes, weights
from workers.distill.networks.graphs.network import OnnxNetwork
from workers.distill.networks.readings import Choice
from workers.distill.runtime import child_options, events, memory, shutdown
from workers.distill.tasks.catalog import TASKS

BATCH = 2
"""More than one image, to detect a network that confuses samples with channels."""


class ModelRequest(Values):
    """An uploaded file of weights, and the network that they are for."""

    kind: Literal["model"]
    source: Literal["upload"] = "upload"
    filename: str = ""
    network: str
    task: Task = "classification"
    # Any: JSON, checked by the network itself.
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    classes: int = pydantic.Field(ge=0)
    input: Input
    allow_pickle: bool = True
    entry: str | None = None
    strict: bool = True
    resize_positions: bool = False
    images: dict[str, int] | None = None
    """Of the data set whose images a table predicts: how many each split has."""


class DatasetRequest(Values):
    """An uploaded file of labelled images."""

    kind: Literal["dataset"]
    source: Literal["upload"] = "upload"
    filename: str = ""
    format: str = format_rules.AUTO
    task: Task = "classification"
    input: conversion.InputHints | None = None
    decoded_bytes: int = pydantic.Field(format_rules.DECODED_BYTES, ge=0)
    """Above it pictures are stored encoded, unless the uploader says how."""


class BuiltinRequest(Values):
    """A data set that comes with Retort."""

    kind: Literal["builtin"]
    name: str


class NetworkRequest(Values):
    """A network without weights: whether it can be built, and what it shows."""

    kind: Literal["network"]
    network: str
    # Any: JSON, checked by the network itself.
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    classes: int = pydantic.Field(ge=0)
    channels: int = pydantic.Field(ge=1)
    height: int = pydantic.Field(ge=1)
    width: int = pydantic.Field(ge=1)


AnyRequest: TypeAlias = ModelRequest | DatasetRequest | BuiltinRequest | NetworkRequest
REQUEST: pydantic.TypeAdapter[AnyRequest] = pydantic.TypeAdapter(
    Annotated[AnyRequest, pydantic.Field(discriminator="kind")]
)


def inspect_model(request: ModelRequest, workdir: Path) -> dict[str, Any]:  # Any: a report line
    """Build the network, load every key, run it on a batch, and write safetensors."""
    size = request.input
    arguments, notes = request.arguments, list[str]()
    if request.network == teachers.PREDICTIONS:
        arguments, notes = write_predictions(request, workdir)
    network = networks.build(
        request.network,
        classes=request.classes,
        channels=size.channels,
        height=size.height,
        width=size.width,
        arguments=arguments,
    )
    if not TASKS[request.task].accepts(network):
        raise errors.UnknownNetwork(
            f"{request.network} is for {network.task}, and the model is said to be for "
            f"{request.task}",
            network=request.network,
        )
    if isinstance(network, interface.FileNetwork):
        return _inspect_file_network(network, request, workdir, arguments, notes)
    with _named_upload(request.filename, workdir) as named:
        loaded = weights.load_into(
            network,
            named,
            allow_pickle=request.allow_pickle,
            choice=Choice(request.entry, request.strict, request.resize_positions),
        )
    images = torch.rand(
        (BATCH, size.channels, size.height, size.width), generator=torch.Generator().manual_seed(0)
    )
    _check_forward(network, images, request)
    weights.save_student(workdir / "model.safetensors", network, {"format": "pt"})
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "format": loaded.format,
        "flops": profiling.flops(network, images[:1]),
        "warnings": [*loaded.warnings, *_told_of_backbone(network)],
        "traits": traits.of(network),
    }


def _inspect_file_network(
    network: interface.FileNetwork,
    request: ModelRequest,
    workdir: Path,
    arguments: dict[str, Any],
    notes: list[str],
) -> dict[str, Any]:  # Any: a report line
    """Read a graph or a table, try it, and keep its file under the name that teachers have."""
    kept = workdir / teachers.file_of(request.network)
    if isinstance(network, OnnxNetwork):
        with _named_upload(request.filename, workdir) as named:
            notes = network.load_file(named)
        size = request.input
        images = torch.rand(
            (BATCH, size.channels, size.height, size.width),
            generator=torch.Generator().manual_seed(0),
        )
        _check_forward(network, images, request)
        arguments = network.chosen_arguments()
        shutil.copyfile(workdir / "upload", kept)
    else:
        network.load_file(kept)
    return {
        "parameters": network.parameter_count,
        "format": teachers.kind_of(request.network),
        "flops": None,
        "warnings": [*notes, *_told_of_backbone(network)],
        "traits": traits.of(network),
        "arguments": arguments,
        "file": kept.name,
    }


def _told_of_backbone(network: interface.Network) -> list[str]:
    """Return what the owner of a network without a classifier should know of what it shows."""
    if network.classes:
        return []
    measured = shapes.measure(network)
    maps = [" x ".join(map(str, stage)) for stage in measured.stages]
    told = f"it has no classifier; its embedding has {measured.pooled} numbers"
    if maps:
        told += f", and the maps of its stages are {', '.join(maps)} (channels, height, width)"
    return [told]


def write_predictions(
    request: ModelRequest, workdir: Path
) -> tuple[dict[str, Any], list[str]]:  # Any: JSON
    """Read a table of predictions and write it as teachers have it.

    Returns all its arguments, and what its owner should know.
    """
    accepted = predictions.Arguments.model_validate(request.arguments)
    if request.images is None:
        raise ValueError("the request does not say how many images the data set has")
    with _named_upload(request.filename, workdir) as named:
        tables, notes = prediction_table.read(
            named,
            classes=request.classes,
            views=accepted.views,
            counts=request.images,
            outputs=accepted.outputs,
        )
    tensorfile.write(workdir / teachers.PREDICTIONS_FILE, tables, {"format": "pt"})
    rows = {split: len(table) for split, table in tables.items()}
    return {**request.arguments, "rows": rows}, notes


@contextlib.contextmanager
def _named_upload(filename: str, workdir: Path) -> Iterator[Path]:
    """Give the upload under its owner's name, so that messages name it."""
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        named = Path(scratch) / _file_name(filename)
        named.symlink_to((workdir / "upload").absolute())
        yield named


def _file_name(given: str) -> str:
    """Return the uploader's name of a file, as far as it can stand in messages and in a folder."""
    last = re.split(r"[/\\]", given)[-1]
    return re.sub(r"[^\w.+ -]", "_", last)[-100:].strip(" .") or "upload"


def inspect_dataset(request: DatasetRequest, workdir: Path) -> dict[str, Any]:  # Any: a report line
    """Convert an uploaded archive to the prepared form."""
    folder, hints = workdir / "dataset", request.input or conversion.InputHints()
    hints = hints.model_copy(update={"decoded_bytes": request.decoded_bytes})
    # Below the working folder: the system's own folder for such files may be small or in memory.
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        upload = Upload(workdir / "upload", Path(scratch))
        chosen_format = formats.choose(request.format, request.task, upload)
        refusal = format_rules.storage_refusal(hints.storage, chosen_format.name, request.task)
        if refusal is not None:
            raise errors.UploadRefused(format_rules.CODE, refusal)
        record = chosen_format.convert(upload, folder, hints, request.task)
    return {**_report(record, folder), "format": chosen_format.name}


def make_builtin(request: BuiltinRequest, workdir: Path) -> dict[str, Any]:  # Any: a report line
    """Write a built-in data set."""
    entry = datasets.DATASETS.get(request.name)
    if entry is None:
        raise errors.UploadRefused(
            "unsupported_format",
            f"there is no built-in data set {request.name!r}; there are "
            + ", ".join(datasets.DATASETS),
        )
    return _report(entry.write(workdir / "dataset"), workdir / "dataset")


def main(arguments: Sequence[str]) -> int:
    """Process one request, report its result or failure, and return the exit code."""
    options = child_options.read("workers.distill.inspection.uploads", arguments, reads="`upload`")
    return execute(
        options.request, options.workdir, events.open_stream(), memory_bytes=options.memory_bytes
    )


def execute(
    request: Path, workdir: Path, reporter: events.Reporter, *, memory_bytes: int | None = None
) -> int:
    """Process the request in a file, report its result or failure, and return the exit code.

    `memory_bytes` is the limit that holds for this process, to be named where it is met.
    """
    try:
        reporter.result(**_process(REQUEST.validate_json(request.read_bytes()), workdir))
    # The last line of defence: whatever an upload provokes must end in a line for its owner.
    except Exception as error:
        traceback.print_exc()
        shutil.rmtree(workdir / "dataset", ignore_errors=True)
        reporter.failure(**_failure(error, memory_bytes))
        return 1
    return 0


def try_network(request: NetworkRequest) -> dict[str, Any]:  # Any: a report line
    """Build a network for images of a size, and return what it shows."""
    network = networks.build(
        request.network,
        classes=request.classes,
        channels=request.channels,
        height=request.height,
        width=request.width,
        arguments=request.arguments,
    )
    return {"traits": traits.of(network)}


def _process(request: AnyRequest, workdir: Path) -> dict[str, Any]:
    if isinstance(request, ModelRequest):
        return inspect_model(request, workdir)
    if isinstance(request, DatasetRequest):
        return inspect_dataset(request, workdir)
    if isinstance(request, NetworkRequest):
        return try_network(request)
    return make_builtin(request, workdir)


@torch.no_grad()
def _check_forward(network: interface.Network, images: torch.Tensor, request: ModelRequest) -> None:
    """Raise `UploadRefused` unless the network answers with finite numbers of the right shape.

    [N, classes] for an image, [N, classes, H, W] for a dense network, [N, D, 6] for a detector, and
    [N, D] for a backbone.
    """
    mean = torch.tensor(request.input.mean)[:, None, None]
    std = torch.tensor(request.input.std)[:, None, None]
    network.eval()
    try:
        logits = network((images - mean) / std)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise errors.UploadRefused(
            "forward_failed", f"{request.network} cannot be run on a batch of images: {error}"
        ) from error
    expected = TASKS[request.task].output_shape(images, request.classes)
    is_expected = len(logits.shape) == len(expected) and all(
        side in (None, actual) for side, actual in zip(expected, logits.shape, strict=True)
    )
    if not is_expected:
        sides = ", ".join("any" if side is None else str(side) for side in expected)
        raise errors.UploadRefused(
            "forward_failed",
            f"{request.network} answers with shape {list(logits.shape)}, expected [{sides}]",
        )
    if not torch.isfinite(logits).all():
        raise errors.UploadRefused(
            "forward_failed",
            f"{request.network} with these weights answers with numbers that are not finite; the "
            "file may come from a training that diverged",
        )


def _report(record: dataset.DatasetRecord, folder: Path) -> dict[str, Any]:
    # Read back what was written: the engine must be able to open it.
    stored = dataset.load(folder)
    for name in dataset.SPLITS:
        TASKS[stored.record.task].open_split(stored, name)
    return {"dataset": record.model_dump(mode="json", exclude_none=True)}


def _failure(error: Exception, memory_bytes: int | None) -> dict[str, Any]:
    """Return the fields of the failure line."""
    if memory.is_exhausted(error):
        message = upload_limits.too_much_memory(memory_bytes)
        return {"code": "too_large", "message": message, "retryable": False, "details": {}}
    if isinstance(error, errors.UploadRefused):
        return {
            "code": error.refusal,
            "message": error.message,
            "retryable": False,
            "details": error.details,
        }
    if isinstance(error, errors.KeysMismatch):
        return {**errors.failure_line(error), **error.details}
    if isinstance(error, pydantic.ValidationError):
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        message = f"the request is malformed at {place or 'its start'}: {fault['msg']}"
        return {"code": "internal_error", "message": message, "retryable": False, "details": {}}
    return errors.failure_line(error)


if __name__ == "__main__":
    shutdown.exit_process(main(sys.argv[1:]))
