"""A teacher as weights, as a graph and as predictions: the same student, and images a second.

    nice -n 19 python -m benchmarks.any_teacher --output FILE.jsonl [--seeds 5] [--epochs N]
    python -m benchmarks.any_teacher --speed

On the digits, pairs of `digit_pairs.py`, images as they are stored (no augmentation), so that all
three teachers say the same of the same images. Each seed has a teacher of its own; `several` are
the teachers of this seed and of the one before together, weighted by confidence (left out
where a run starts). A line is written
after each seed, and seeds that are in the file already are left out, so a run that was stopped goes
on. Without `--speed` the summary of all lines is printed; `--speed` prints how many images a second
each form of one network answers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console
import torch

from benchmarks import digit_pairs, digits, line_files
from models_registry import catalog
from workers.distill.config import teachers
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.files import tensorfile
from workers.distill.networks import catalog as networks
from workers.distill.networks import folding, weights
from workers.distill.networks.interface import Network

KINDS = ("weights", "graph", "predictions")
BATCH = 64
SECONDS = 4.0


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.any_teacher")
    parser.add_argument("--output", type=Path, help="file of lines, one a seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of teachers and students; by default theirs")
    parser.add_argument("--speed", action="store_true", help="only the images a second")
    asked = parser.parse_args()
    if asked.speed or asked.output is None:
        sys.stdout.write(json.dumps(speeds(), indent=2) + "\n")
        return
    say = rich.console.Console(stderr=True, highlight=False).print
    lines = line_files.read(asked.output)
    with tempfile.TemporaryDirectory(prefix="retort-any-teacher-") as name:
        folder = Path(name)
        digits.prepare(folder)
        before: Path | None = None
        for seed in range(asked.seeds):
            if any(line["seed"] == seed for line in lines):
                continue
            line, before = run_seed(folder, seed, asked.epochs, before)
            lines.append(line)
            line_files.append(asked.output, line)
            say(line)
    sys.stdout.write(json.dumps(summary(lines), indent=2) + "\n")


def run_seed(
    folder: Path, seed: int, epochs: int | None, before: Path | None
) -> tuple[dict[str, Any], Path]:
    """Train a teacher and its students; return their accuracies and the teacher's file."""
    stop = {} if epochs is None else {"epochs": epochs}
    file, taught = digits.run_recipe(
        folder,
        f"{seed}-teacher",
        digit_pairs.TEACHER,
        {"name": "ce"},
        {**digit_pairs.TEACHER_TRAINING, **stop},
        seed,
        None,
    )
    line: dict[str, Any] = {"seed": seed, "teacher": taught["accuracy"]}
    students: dict[str, dict[str, torch.Tensor]] = {}
    for kind in KINDS:
        workdir = folder / f"{seed}-{kind}"
        choice = put(workdir / "teacher", kind, file, folder / "dataset")
        line[kind], students[kind] = distil(folder, workdir, seed, stop, {"teacher": choice})
    for kind in KINDS[1:]:
        line[f"{kind} differs"] = max(
            float((students[kind][key].float() - own.float()).abs().max())
            for key, own in students["weights"].items()
        )
    if before is not None:
        workdir = folder / f"{seed}-several"
        choices = [
            put(workdir / f"teacher-{place + 1}", "weights", one, folder / "dataset")
            for place, one in enumerate((file, before))
        ]
        changes = {"teachers": choices, "teacher_weighting": "confidence"}
        line["several"], _ = distil(folder, workdir, seed, stop, changes)
    return line, file


def distil(
    folder: Path, workdir: Path, seed: int, stop: dict[str, Any], changes: dict[str, Any]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Run KD once; return the student's test accuracy and its weights."""
    (workdir / "dataset").symlink_to(folder / "dataset")
    training = {**digit_pairs.STUDENT_TRAINING, **stop, "augmentation": "none", "seed": seed}
    recipe = {
        "student": {**digit_pairs.STUDENT, "classes": 10, "input": size_of(folder / "dataset")},
        "method": {"name": "kd"},
        "training": catalog.complete_training(training),
        "report": False,
        "accelerator": "cpu",
        **changes,
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    lines = run_engine(path, workdir)
    score: float = lines[-1]["scores"]["student"]["accuracy"]
    return score, dict(tensorfile.read(workdir / "student.safetensors"))


def run_engine(recipe: Path, workdir: Path) -> list[dict[str, Any]]:
    """Run the engine in a process of its own, and return its lines."""
    command = [sys.executable, "-m", "workers.distill", str(recipe), "--workdir", str(workdir)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@torch.no_grad()
def put(place: Path, kind: str, file: Path, images: Path) -> dict[str, Any]:
    """Write a teacher of this kind into its folder, and return a config's choice of it."""
    place.mkdir(parents=True)
    size = size_of(images)
    if kind == "weights":
        (place / teachers.WEIGHTS_FILE).symlink_to(file)
        return {**digit_pairs.TEACHER, "classes": 10, "input": size}
    network, _ = weights.rebuild(file)
    if kind == "graph":
        export(network.eval(), place / teachers.GRAPH_FILE)
        return {"network": teachers.GRAPH, "arguments": {}, "classes": 10, "input": size}
    stored = dataset.load(images)
    expected = Input.model_validate(size)
    preprocess = Preprocessor("teacher", expected, expected, torch.device("cpu"))
    tables = {
        name: network.eval()(preprocess(stored.split(name).images))[:, None]
        for name in dataset.SPLITS
    }
    tensorfile.write(place / teachers.PREDICTIONS_FILE, tables, {})
    arguments = {"dataset": "digits@1"}
    return {
        "network": teachers.PREDICTIONS,
        "arguments": arguments,
        "classes": 10,
        "input": size,
    }


def export(network: Network, path: Path) -> None:
    """Write a network as an ONNX file, by the exporter of torch that needs no further library."""
    images = torch.zeros(2, *network.image_shape)
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images,),
            str(path),
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes=axes,
        )


def size_of(folder: Path) -> dict[str, Any]:
    """Return the input that a prepared data set states."""
    size: dict[str, Any] = json.loads((folder / "dataset.json").read_text())["input"]
    return size


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and sample standard deviations over the seeds, in percent."""
    found: dict[str, Any] = {"seeds": len(lines)}
    for name in ("teacher", *KINDS, "several"):
        scores = [100 * line[name] for line in lines if name in line]
        if scores:
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            found[name] = {"mean": round(statistics.mean(scores), 2), "sd": round(spread, 2)}
    for kind in KINDS[1:]:
        found[f"{kind} differs by at most"] = max(line[f"{kind} differs"] for line in lines)
    return found


def speeds() -> dict[str, Any]:
    """Return the images a second of networks as torch, folded, and as a graph in both runtimes."""
    cases = {"retort/resnet20": (1, 8), "retort/resnet8x4": (3, 32), "retort/resnet32x4": (3, 32)}
    return {name: speed(name, *case) for name, case in cases.items()}


@torch.no_grad()
def speed(name: str, channels: int, side: int) -> dict[str, float]:
    """Return the images a second of one network, in batches."""
    torch.manual_seed(0)
    sizes = {"classes": 10, "channels": channels, "height": side, "width": side}
    native = networks.build(name, **sizes, arguments={}).eval()
    images = torch.randn(BATCH, channels, side, side).contiguous(memory_format=torch.channels_last)
    folded = folding.folded(native.to(memory_format=torch.channels_last), images[:4])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(native, path)
        graph = networks.build(teachers.GRAPH, **sizes, arguments={})
        weights.load_into(graph, path)
    found = {
        "torch": rate(lambda: native(images)),
        "torch, folded": rate(lambda: folded(images)),
        "graph in onnxruntime": rate(lambda: graph(images)),
    }
    graph.enable_gradients()
    found["graph in torch"] = rate(lambda: graph(images))
    return found


def rate(forward: Callable[[], object]) -> float:
    """Return the images a second: the median of calls over some seconds, after three to warm up."""
    for _ in range(3):
        forward()
    took: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        forward()
        took.append(time.perf_counter() - began)
    return round(BATCH / statistics.median(took), 1)


if __name__ == "__main__":
    main()
