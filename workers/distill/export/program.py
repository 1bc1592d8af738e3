"""Write one export of a model, compare it with the original, and say what was measured.

`python -m workers.distill.export.program REQUEST.json --workdir DIR` reads
`DIR/model/model.safetensors`, and `DIR/dataset/` where there is one, and writes `DIR/export/`. The
last line on standard output is a JSON object: `result` (exit code 0), whose `refusal` says why an
export is not good enough, or `failure` (exit code 1).
"""

import dataclasses
import importlib.metadata
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors.torch import load_file
from torch import Tensor

from workers.distill import errors
from workers.distill.config import exports as rules
from workers.distill.config import teachers
from workers.distill.config.exports import ExportChoice
from workers.distill.config.job import Input, Task
from workers.distill.config.rules import Violation
from workers.distill.config.training import Values
from workers.distill.data import dataset
from workers.distill.data.lazy_images import StoredImages, shown
from workers.distill.export import (
    checks,
    graph,
    hub,
    onnx_graph,
    openvino_model,
    preprocessing,
    torch_program,
)
from workers.distill.networks import catalog as networks
from workers.distill.networks import weights
from workers.distill.networks.interface import Network
from workers.distill.runtime import child_options, events, memory, shutdown
from workers.distill.tasks.base import BaseTask
from workers.distill.tasks.catalog import TASKS

MODEL, DATASET, OUTPUT = "model", "dataset", "export"
"""Folders below the working folder."""
LIBRARIES = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "torch_export": ("torch",),
    "openvino": ("torch", "onnx", "onnxscript", "openvino"),
    "torch_state_dict": ("torch",),
    "hub": ("torch", "safetensors"),
}
_HALF = (
    "float16: weights are rounded to half precision; on this processor they are computed with as "
    "floats of 32 bits, so that its times say nothing of a card"
)


class ExportRequest(Values):
    """A model, and the form in which it is to be written."""

    name: str
    """Its reference, for people."""
    network: str
    # Any: JSON, checked by the network itself.
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    classes: list[str]
    task: Task
    input: Input
    choice: ExportChoice
    why_no_dataset: str = ""
    may_train: bool = True
    """Whether the training images may be read."""
    card: str = ""
    preprocessing: dict[str, Any] | None = None
    """As the model's `config.json` has it; None where that does not say."""


@dataclass
class Export:
    """One export on its way: what it is made of, and what there is to tell."""

    request: ExportRequest
    workdir: Path
    network: Network
    task: BaseTask
    stored: dataset.StoredDataset | None
    notes: list[str] = field(default_factory=list)
    opset: int | None = None

    @property
    def output(self) -> Path:
        """Return the folder that the export is written into."""
        return self.workdir / OUTPUT

    @property
    def choice(self) -> ExportChoice:
        """Return the form that was asked for."""
        return self.request.choice

    @property
    def stored_input(self) -> Input:
        """Return what the images of its data set look like; without one, what the network takes."""
        return self.request.input if self.stored is None else self.stored.record.input


def make(request: ExportRequest, workdir: Path) -> dict[str, Any]:  # Any: a report line
    """Write an export and compare it; return what was measured, and why it is refused if it is."""
    errors.refuse(_faults(request, workdir), errors.NotExportable)
    export = _open(request, workdir)
    export.output.mkdir()
    module = graph.ExportedGraph(
        export.network,
        request.input,
        include_preprocessing=request.choice.include_preprocessing,
    )
    run = WRITERS[request.choice.format](export, module)
    inputs = checks.Inputs(module, request.input, export.stored_input)
    given = _images(export)
    # First, because it says how many images there is time for.
    timed = checks.latency(run, inputs(given.images[:1]))
    before = checks.latency(_without_gradients(module), inputs(given.images[:1]))
    given = _in_time(export, given, seconds=(timed["ms"] + before["ms"]) / 1000)
    found = checks.compare(export.task, module, run, inputs, given)
    measured = {
        "opset": export.opset,
        "library_versions": {
            name: importlib.metadata.version(name) for name in LIBRARIES[request.choice.format]
        },
        "checks": found,
        "latency": {**timed, "original_ms": before["ms"]},
    }
    _describe(export, module, measured)
    return {
        "files": sorted(path.name for path in export.output.iterdir()),
        "measured": measured,
        "notes": export.notes,
        "refusal": refusal(request.choice, found),
    }


def _faults(request: ExportRequest, workdir: Path) -> Iterator[Violation]:
    """Yield why an export cannot be made, before anything is done for it."""
    yield from rules.faults(request.choice, network=request.network, task=request.task)
    if not (workdir / DATASET).is_dir():
        because = request.why_no_dataset or "no data set is known"
        yield from rules.fault_without_images(request.choice, because=because)
    elif not request.may_train:
        because = "they must not be read"
        yield from rules.fault_without_images(request.choice, because=because)


def refusal(choice: ExportChoice, found: Mapping[str, Any]) -> dict[str, str] | None:
    """Return code and message of why an export is not good enough, or None where it is."""
    drop = found["drop"]
    if drop is not None and drop > choice.max_drop:
        return {
            "code": "drop_too_large",
            "message": f"max_drop is {choice.max_drop:g}, and the {choice.precision} export loses "
            f"{drop:.4f} of {found['metric']}: {found['accuracy']:.4f} instead of "
            f"{found['original_accuracy']:.4f} on {found['images']} images; choose another "
            "precision, or allow a larger max_drop",
        }
    share = found["decisions_equal"] / max(1, found["decisions"])
    if choice.precision == "float32" and share < rules.LEAST_AGREEMENT:
        return {
            "code": "answers_differ",
            "message": f"only {found['decisions_equal']} of {found['decisions']} "
            f"{found['decisions_of']} get the original's class from the float32 export, less than "
            f"{rules.LEAST_AGREEMENT:.0%}: the exporter does not write this network faithfully; "
            "choose another format",
        }
    return None


# -- formats -----------------------------------------------------------------------------------


def _write_onnx(export: Export, module: graph.ExportedGraph) -> checks.Run:
    target = export.output / rules.ONNX_FILE
    source = export.workdir / "float32.onnx"
    export.opset = onnx_graph.write(module, source)
    match export.choice.precision:
        case "float32":
            source.rename(target)
        case "float16":
            export.notes += [_HALF, *onnx_graph.to_float16(source, target)]
        case "int8":
            onnx_graph.to_int8(source, target, _calibration(export, module), export.workdir)
    # As many threads as the original has: their times are compared.
    return onnx_graph.OnnxGraph(target, threads=torch.get_num_threads())


def _calibration(export: Export, module: graph.ExportedGraph) -> list[Any]:
    """Return inputs by which the ranges of activations are measured."""
    stored = export.stored
    if stored is None:
        raise ValueError("an export without images is calibrated")
    images = _shown(export, stored.open_split("train").images)
    rows = checks.some(len(images), onnx_graph.CALIBRATION_IMAGES)
    inputs = checks.Inputs(module, export.request.input, stored.record.input)
    export.notes.append(
        f"int8: activations are quantised by the ranges that they have on {len(rows)} of "
        f"{len(images)} training images; convolutions and matrix products compute in int8, all "
        "else in float32"
    )
    return list(onnx_graph.batches_of(inputs(images[rows]), checks.BATCH))


def _write_program(export: Export, module: graph.ExportedGraph) -> checks.Run:
    target = export.output / torch_program.FILE
    half = export.choice.precision == "float16"
    if not half:
        torch_program.write(module, target, half=False)
        return torch_program.TorchProgram(target)
    # A copy computes in half precision: the original is still to be compared with.
    copied = graph.ExportedGraph(
        _rebuilt(export), export.request.input, include_preprocessing=module.takes_pixels
    )
    torch_program.write(copied, target, half=True)
    export.notes.append(
        "float16: the network computes in half precision between inputs and outputs of float32; "
        "processors are slow at that, so that its times say nothing of a card"
    )
    return torch_program.TorchProgram(target)


def _write_openvino(export: Export, module: graph.ExportedGraph) -> checks.Run:
    target, source = export.output / openvino_model.FILE, export.workdir / "float32.onnx"
    half = export.choice.precision == "float16"
    export.opset = onnx_graph.write(module, source)
    openvino_model.write(source, target, half=half)
    if half:
        export.notes.append(_HALF)
    return openvino_model.OpenvinoModel(target, threads=torch.get_num_threads())


def _write_state_dict(export: Export, _module: graph.ExportedGraph) -> checks.Run:
    target = export.output / hub.STATE_DICT_FILE
    half = export.choice.precision == "float16"
    export.notes += hub.write_state_dict(export.network, target, half=half)
    return _run_weights(export, torch.load(target, weights_only=True), half=half)


def _write_hub(export: Export, _module: graph.ExportedGraph) -> checks.Run:
    half = export.choice.precision == "float16"
    request = export.request
    export.notes += hub.write(
        export.network,
        export.output,
        task=request.task,
        classes=request.classes,
        expected=request.input,
        preprocessing=_preprocessing(export),
        card=request.card,
        name=request.name,
        half=half,
    )
    if hub.is_of_timm(export.network):
        timm: Any = importlib.import_module("timm")
        loaded = timm.create_model(f"local-dir:{export.output}", pretrained=True).float().eval()
        return _without_gradients(lambda images: (loaded(images),))
    return _run_weights(export, load_file(export.output / hub.WEIGHTS_FILE), half=half)


WRITERS: dict[str, Callable[[Export, graph.ExportedGraph], checks.Run]] = {
    "onnx": _write_onnx,
    "torch_export": _write_program,
    "openvino": _write_openvino,
    "torch_state_dict": _write_state_dict,
    "hub": _write_hub,
}
"""How each format is written; each returns what runs the file as it was read again."""


def _run_weights(export: Export, state: Mapping[str, Tensor], *, half: bool) -> checks.Run:
    """Return what runs a fresh network with weights that were read again."""
    network = _built(export.request)
    network.load_state_dict(dict(state))
    if half:
        export.notes.append(_HALF)
    module = graph.ExportedGraph(network, export.request.input, include_preprocessing=False)
    return _without_gradients(module)


def _without_gradients(run: checks.Run) -> checks.Run:
    def forward(images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return run(images)

    return forward


# -- details -----------------------------------------------------------------------------------


def _open(request: ExportRequest, workdir: Path) -> Export:
    task = TASKS[request.task]
    stored = dataset.load(workdir / DATASET) if (workdir / DATASET).is_dir() else None
    export = Export(request, workdir, _built(request), task, stored)
    weights.load_into(export.network, workdir / MODEL / teachers.WEIGHTS_FILE)
    return export


def _built(request: ExportRequest) -> Network:
    size = request.input
    return networks.build(
        request.network,
        classes=len(request.classes),
        channels=size.channels,
        height=size.height,
        width=size.width,
        arguments=request.arguments,
    )


def _rebuilt(export: Export) -> Network:
    network = _built(export.request)
    network.load_state_dict(export.network.state_dict())
    return network


def _images(export: Export) -> checks.CheckImages:
    """Return the test split, as far as it has labels, or noise where there is no data set."""
    classes = len(export.request.classes)
    if export.stored is None:
        export.notes.append(
            f"compared on {checks.NOISE_IMAGES} images of noise, and the loss of accuracy was not "
            f"measured: {export.request.why_no_dataset}"
        )
        return checks.noise(export.request.input, classes)
    split = export.task.open_split(export.stored, "test")
    has_label = ~export.task.unlabelled(split.labels)
    images = _shown(export, split.images)
    rows = torch.where(has_label)[0]
    if len(rows) == 0:
        chosen = checks.some(len(split.images), checks.MOST_IMAGES)
        export.notes.append(
            "no image of the test split has a label: the loss of accuracy was not measured"
        )
        return checks.CheckImages(images[chosen], None, export.stored.record.input, classes)
    if len(rows) < len(split.images):
        export.notes.append(
            f"{len(split.images) - len(rows)} images of the test split have no label and were left "
            "out"
        )
    if len(rows) > checks.MOST_IMAGES:
        export.notes.append(
            f"compared on {checks.MOST_IMAGES} of {len(rows)} images of the test split"
        )
    rows = rows[checks.some(len(rows), checks.MOST_IMAGES)]
    return checks.CheckImages(images[rows], split.labels[rows], export.stored.record.input, classes)


def _in_time(export: Export, given: checks.CheckImages, *, seconds: float) -> checks.CheckImages:
    """Return as many of the images as can be compared in time, where one takes `seconds`."""
    count = max(1, int(checks.MOST_SECONDS / max(seconds, 1e-9)))
    if count >= len(given.images):
        return given
    export.notes.append(
        f"compared on {count} of {len(given.images)} images, because one takes original and export "
        f"{seconds:.3g} s together, and the comparison is to last {checks.MOST_SECONDS / 60:g} "
        "minutes at most"
    )
    rows = checks.some(len(given.images), count)
    labels = None if given.labels is None else given.labels[rows]
    return dataclasses.replace(given, images=given.images[rows], labels=labels)


def _shown(export: Export, images: StoredImages) -> StoredImages:
    """Return images as the student's job has scored them, and as its user is told to cut them."""
    share = _preprocessing(export)["crop_pct"]
    return shown(images, share if share < 1 else None)


def _preprocessing(export: Export) -> dict[str, Any]:
    request, stored = export.request, export.stored_input
    if request.preprocessing is not None:
        return request.preprocessing
    size = (stored.channels, stored.height, stored.width)
    return preprocessing.describe(request.task, request.input, size)


def _describe(export: Export, module: graph.ExportedGraph, measured: Mapping[str, Any]) -> None:
    request = export.request
    content = {
        "version": 1,
        "model": request.name,
        **request.choice.model_dump(mode="json"),
        "network": request.network,
        "arguments": request.arguments,
        "task": request.task,
        "classes": request.classes,
        "input": {
            "name": rules.INPUT_NAME,
            "type": "uint8" if module.takes_pixels else "float32",
            "shape": ["batch", *module.shape],
            "holds": "pixels of 0..255" if module.takes_pixels else "normalised images",
        },
        "outputs": list(module.output_names),
        "preprocessing": _preprocessing(export),
        "post_processing": graph.post_processing(export.network),
        **measured,
        "notes": export.notes,
    }
    text = json.dumps(events.portable(content), indent=2, allow_nan=False, ensure_ascii=False)
    (export.output / rules.DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _temporary_files(folder: Path) -> Iterator[None]:
    """Let libraries write their temporary files into a folder: others may be closed to us."""
    former, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = former


def main(arguments: Sequence[str]) -> int:
    """Make one export, report its result or failure, and return the exit code."""
    options = child_options.read("workers.distill.export.program", arguments, reads="`model`")
    return execute(options.request, options.workdir, events.open_stream())


def execute(path: Path, workdir: Path, reporter: events.Reporter) -> int:
    """Process the request in a file, report its result or failure, and return the exit code."""
    try:
        request = ExportRequest.model_validate_json(path.read_bytes())
        with _temporary_files(workdir):
            reporter.result(**make(request, workdir))
    # The last line of defence: whatever a network provokes must end in a line for its owner.
    except Exception as error:
        traceback.print_exc()
        shutil.rmtree(workdir / OUTPUT, ignore_errors=True)
        reporter.failure(**_failure(error))
        return 1
    return 0


def _failure(error: Exception) -> dict[str, Any]:
    """Return the fields of the failure line."""
    if memory.is_exhausted(error):
        message = (
            "the export needs more memory than the worker may take; have the operator raise "
            "RETORT_INSPECTION_MEMORY_BYTES, or export a smaller network"
        )
        return {"code": "out_of_memory", "message": message, "retryable": False, "details": {}}
    return errors.failure_line(error)


if __name__ == "__main__":
    shutdown.exit_process(main(sys.argv[1:]))
