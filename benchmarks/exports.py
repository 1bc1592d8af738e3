"""What each export of five networks keeps of the original, how large it is, and how fast.

    nice -n 19 python -m benchmarks.exports [--output FILE.jsonl] [--rows resnet,...] [--epochs N]
    python -m benchmarks.exports --output FILE.jsonl --rows "" (prints the table of a file)

Each network is trained alone, for minutes, on a built-in data set, and exported as the service does
it, by the same program. With `--output`, a line is written after each export, and those that are in
the file already are left out, so a run that was stopped goes on. int8 is made with `max_drop` 1, so
that its loss is seen. Times are of one image on one thread.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.console
import torch

from benchmarks import line_files
from models_registry import catalog
from workers.distill.config.exports import FORMATS, Format, Precision
from workers.distill.config.job import JobConfig
from workers.distill.data import catalog as datasets
from workers.distill.data import dataset
from workers.distill.export import program

Json = dict[str, Any]
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("float32", "float16", "int8"),
    "torch_export": ("float32",),
    "openvino": ("float32", "float16"),
    "torch_state_dict": ("float32", "float16"),
    "hub": ("float32",),
}


@dataclass(frozen=True)
class Row:
    """One network, and how it is trained."""

    network: str
    dataset: str
    training: Json
    arguments: Json = field(default_factory=dict)
    side: int | None = None
    """Of the network's images, where those of the data set are too small for it."""


DIGITS = {"recipe": "small", "epochs": 10}
SCENES = {"recipe": "small_dense", "epochs": 4}
# Without weights of the classes it answers "background" everywhere, which no export could change.
MASKS = {**SCENES, "class_weights": "auto", "optimizer": {"learning_rate": 4e-3}}
ROWS = {
    "resnet": Row("retort/resnet20", "digits", DIGITS),
    "mobilenet": Row("timm/mobilenetv3_small_050", "digits", DIGITS, side=32),
    "vit": Row("timm/test_vit", "digits", DIGITS, side=32),
    "detector": Row("retort/fcos", "digit_scenes", SCENES),
    "segmenter": Row("retort/segmenter", "digit_scenes_masks", MASKS),
}


def main() -> None:
    """Make what is not in the file yet, and print the table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports")
    parser.add_argument("--output", type=Path, help="file of lines, one an export")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--epochs", type=int, help="of every training; by default its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    say = rich.console.Console(stderr=True, highlight=False, soft_wrap=True).print
    lines = line_files.read(options.output)
    for name in filter(None, options.rows.split(",")):
        for line in measured(name, options.epochs, [*lines]):
            lines.append(line)
            line_files.append(options.output, line)
            say(line)
    sys.stdout.write(markdown(lines) + "\n")


def measured(name: str, epochs: int | None, done: list[Json]) -> Iterator[Json]:
    """Train a network and yield a line for each of its exports that is not done."""
    there = {(line["row"], line["format"], line["precision"]) for line in done}
    wanted = [
        (form, precision)
        for form in FORMATS
        for precision in PRECISIONS[form]
        if (name, form, precision) not in there
    ]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="retort-exports-") as folder:
        workdir = Path(folder)
        request = trained(ROWS[name], workdir, epochs)
        for form, precision in wanted:
            yield {"row": name, **exported(request, workdir, form, precision)}


def trained(row: Row, workdir: Path, epochs: int | None) -> Json:
    """Train a network alone, and return what the program of exports is to be told of it."""
    datasets.DATASETS[row.dataset].write(workdir / "dataset")
    record = dataset.load(workdir / "dataset").record
    size = record.input.model_dump(mode="json")
    if row.side is not None:
        size |= {"height": row.side, "width": row.side}
    training = {**row.training, "seed": 0, **({} if epochs is None else {"epochs": epochs})}
    config = {
        "task": record.task,
        "student": {
            "network": row.network,
            "arguments": row.arguments,
            "classes": len(record.classes),
            "input": size,
        },
        "method": {"name": "ce"},
        "training": catalog.complete_training(training),
        "report": False,
        "accelerator": "cpu",
    }
    request = JobConfig.model_validate_json(json.dumps(config))
    path = workdir / "recipe.json"
    path.write_text(request.model_dump_json())
    command = [sys.executable, "-m", "workers.distill", str(path), "--workdir", str(workdir)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (workdir / "model").mkdir()
    shutil.copy(workdir / "student.safetensors", workdir / "model" / "model.safetensors")
    return {
        "name": row.network,
        "network": row.network,
        "arguments": row.arguments,
        "classes": record.classes,
        "task": record.task,
        "input": size,
    }


def exported(request: Json, workdir: Path, form: str, precision: str) -> Json:
    """Make one export, and return what was measured."""
    shutil.rmtree(workdir / "export", ignore_errors=True)
    choice = {"format": form, "precision": precision, "max_drop": 1.0}
    text = json.dumps({**request, "choice": choice})
    report = program.make(program.ExportRequest.model_validate_json(text), workdir)
    files = [workdir / "export" / name for name in report["files"] if name != "export.json"]
    return {
        "format": form,
        "precision": precision,
        "network": request["network"],
        "bytes": sum(path.stat().st_size for path in files),
        "checks": report["measured"]["checks"],
        "latency": report["measured"]["latency"],
    }


def markdown(lines: list[Json]) -> str:
    """Return the table, a row an export."""
    rows = [
        "| network | export | KiB | largest difference | equal decisions | metric, original "
        "| ms, original |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        checks, latency = line["checks"], line["latency"]
        rows.append(
            f"| {line['network']} | {line['format']} {line['precision']} "
            f"| {line['bytes'] / 1024:.0f} | {checks['largest_logit_difference']:.1e} "
            f"| {checks['decisions_equal']:,} of {checks['decisions']:,} {checks['decisions_of']} "
            f"| {checks['metric']} {checks['accuracy']:.4f}, {checks['original_accuracy']:.4f} "
            f"| {latency['ms']:.2f}, {latency['original_ms']:.2f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
