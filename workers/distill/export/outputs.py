"""The files that a finished run leaves: the student, what it is, and how it was measured."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from workers.distill.config.job import JobConfig
from workers.distill.config.result import EPOCHS
from workers.distill.export.standalone import FILE, Standalone
from workers.distill.networks import weights
from workers.distill.networks.interface import Network
from workers.distill.runtime import durability, events

FILES = ("student.safetensors", "model.json", "metrics.json")
MEASURED = ("parameters", "flops", "latency_ms", "latency", "scores", "versions")
"""Facts that `model.json` repeats."""


def write(
    workdir: pathlib.Path,
    config: JobConfig,
    classes: list[str],
    student: Network,
    facts: dict[str, Any],
    histories: dict[str, list[dict[str, int | float]]],
    *,
    preprocessing: dict[str, Any],
    mirrored: bool,
    standalone: Standalone | str,
) -> None:
    """Write all outputs, each whole or not at all.

    `mirrored` says whether training images were mirrored. `standalone` is the network's own source,
    or why there is none.
    """
    described = header(config, classes, student)
    texts = _texts(described)
    name_student, name_model, name_metrics = FILES
    _whole(workdir / name_student, lambda path: weights.save_student(path, student, texts))
    model = {
        "version": 1,
        **described,
        "preprocessing": preprocessing,
        "library_call": student.library_call and dataclasses.asdict(student.library_call),
        "needs": list(standalone.packages) if isinstance(standalone, Standalone) else None,
        # Why, where neither a file of its own nor a library builds it.
        "needs_retort": None
        if student.library_call or isinstance(standalone, Standalone)
        else standalone,
        **{key: facts[key] for key in MEASURED},
        "training": {**config.training.model_dump(mode="json"), "flip": mirrored},
    }
    _whole(workdir / name_model, lambda path: _json(path, model))
    if isinstance(standalone, Standalone):
        source = standalone.text
        _whole(workdir / FILE, lambda path: path.write_text(source, encoding="utf-8"))
    metrics = {"version": 1, "result": facts, "history": histories}
    _whole(workdir / name_metrics, lambda path: _json(path, metrics))
    durability.sync_folder(workdir)


def epoch_path(epoch: int) -> str:
    """Return the path, below the working folder, of the student as an epoch (from 1) left it."""
    return f"{EPOCHS}epoch-{epoch:04d}.safetensors"


def write_epoch(
    workdir: pathlib.Path, config: JobConfig, classes: list[str], student: Network, epoch: int
) -> None:
    """Write the student as an epoch left it, whole or not at all: a file as the student's own."""
    path = workdir / epoch_path(epoch)
    path.parent.mkdir(exist_ok=True)
    texts = _texts(header(config, classes, student))
    _whole(path, lambda part: weights.save_student(part, student, texts))
    durability.sync_folder(path.parent)


def _texts(described: dict[str, Any]) -> dict[str, str]:
    # No time, attempt or measurement goes into the student's file: the same recipe must give the
    # same bytes.
    return {"format": "pt", weights.HEADER_KEY: json.dumps(described, sort_keys=True)}


def header(config: JobConfig, classes: list[str], student: Network) -> dict[str, Any]:
    """Return what the student's file says of itself: enough to rebuild it without us."""
    ratio = config.training.crop_ratio
    return {
        # Not what was asked for: a method may deliver the student as part of another network.
        "network": student.reference,
        "arguments": dict(student.arguments),
        "classes": classes,
        "input": config.student.input.model_dump(mode="json"),
        "task": config.task,
        # What share of a picture it was scored on, where that is not all of it.
        **({} if ratio is None else {"crop_ratio": ratio}),
        "method": config.method,
        **config.lineage(),
    }


def _whole(path: pathlib.Path, write_to: Callable[[pathlib.Path], object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write_to(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _json(path: pathlib.Path, content: dict[str, Any]) -> None:
    text = json.dumps(events.portable(content), indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
