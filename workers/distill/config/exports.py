"""In which forms a student can leave, and which of them fit which network: one place for the rules.

The API asks before it accepts a request, and the engine before it works; both say the same.
"""

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

from pydantic import Field

from workers.distill.config import teachers
from workers.distill.config.descriptions import WITHOUT_CLASSES
from workers.distill.config.rules import Violation
from workers.distill.config.training import Values

Format: TypeAlias = Literal["onnx", "torch_export", "openvino", "torch_state_dict", "hub"]
Precision: TypeAlias = Literal["float32", "float16", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

GRAPHS: frozenset[Format] = frozenset({"onnx", "torch_export", "openvino"})
"""Formats that hold the computation, and not only the weights."""
TWO_STAGE = ("retort/fasterrcnn", "torchvision/fasterrcnn_")
"""How the names of detectors begin that classify proposals."""
ONNX_FILE = "model.onnx"
DESCRIPTION_FILE = "export.json"
"""What every export has beside its other files: what goes in, what comes out, what was measured."""
INPUT_NAME = "images"

LEAST_AGREEMENT = 0.99
"""A float32 export of which fewer answers equal the original's is refused."""


class ExportChoice(Values):
    """In which form a version is to be written."""

    format: Format = Field(
        description="`onnx`: a graph with a batch of any size; `torch_export`: a `.pt2` program; "
        "`openvino`: a model of OpenVINO, where the workers have it; `torch_state_dict`: the "
        "weights alone; `hub`: the files of a Hugging Face repository."
    )
    precision: Precision = Field(
        "float32",
        description="Of the weights. `int8`, of `onnx` alone, is calibrated on training images.",
    )
    include_preprocessing: bool = Field(
        False,
        description="Let the graph take pixels of 0..255 (uint8) and normalise them itself.",
    )
    max_drop: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The most of the task's deciding metric that may be lost: an export that loses "
        "more on the test split is refused, with the numbers.",
    )


def faults(choice: ExportChoice, *, network: str, task: str | None) -> Iterator[Violation]:
    """Yield why a network of a task cannot be exported in this form, by the field at fault."""
    if network in teachers.ONLY_TEACHERS:
        kind = teachers.KINDS[teachers.kind_of(network)]
        yield Violation(
            "format",
            "not_exportable",
            f"format {choice.format!r}: this model is {kind} and no network with weights; "
            "download its file as it is",
        )
        return
    if task in WITHOUT_CLASSES:
        yield Violation(
            "format",
            "not_exportable",
            f"format {choice.format!r}: this model is of task {task!r}, and exports are compared "
            "by the classes that they give; download its files as they are, or train a student "
            "with classes that has it as `student.initial`, and choose that",
        )
        return
    if network.startswith(TWO_STAGE) and choice.format in GRAPHS:
        yield Violation(
            "format",
            "not_exportable",
            f"format {choice.format!r}: {network} chooses proposals within the network, which the "
            "exporter cannot write for a batch of any size; choose torch_state_dict or hub, or a "
            "detector of one stage such as retort/fcos",
        )
    if choice.precision == "int8" and choice.format != "onnx":
        yield Violation(
            "precision",
            "unsupported_precision",
            f"precision 'int8' is made by onnxruntime, for format onnx alone, and format is "
            f"{choice.format!r}: choose onnx, or float16",
        )
    if choice.include_preprocessing and choice.format not in GRAPHS:
        yield Violation(
            "include_preprocessing",
            "no_graph",
            f"include_preprocessing is true, and format {choice.format!r} holds weights and no "
            f"graph: choose {' or '.join(sorted(GRAPHS))}, or leave it out",
        )


def fault_without_images(choice: ExportChoice, *, because: str) -> Iterator[Violation]:
    """Yield why an export cannot be made where there are no training images, if it needs some."""
    if choice.precision == "int8":
        yield Violation(
            "precision",
            "no_calibration_images",
            f"precision 'int8' is calibrated on training images, and there are none: {because}; "
            "choose float16 or float32",
        )
