"""How fast detectors and segmenters are distilled: Retort's loop against a plain torchvision loop.

    python -m benchmarks.dense [--parts detection,segmentation,losses,memory] [--pairs 4]
        [--seconds 8] [--methods ce,mimic,pkd] [--networks retort/segmenter] [--table FILE.md]
        [--quick]

Detection: the pair of the guide's small experiment (`retort/fcos`, 1.0 M parameters teach 0.24 M)
on composed scenes of 96x96, batches of 8, the recipe `small_dense`. A row is a method that the
engine offers for detection and that `benchmarks.dense_plain` has as well; `ce` is the student
alone. Segmentation: networks trained alone on the same scenes. Both loops have the same networks,
losses, optimizer and number of threads; they run in processes of their own and take turns
(`benchmarks.turns`).

Losses: maps of student and teacher at the size of COCO's finest level, 2 x 256 x 100 x 168; time of
loss and gradient against the plain form, in turns, in one process.

Memory: what the training process holds before its first step, after it, and later on, for sets of
two sizes, so that the part that grows with the set is seen. `anonymous` is what the process
allocated, `mapped` what it has mapped of files; both count as resident.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rich.console
import torch
from torch import Tensor

from benchmarks import dense_plain, turns
from benchmarks.train_step import machine
from workers.distill.config.job import JobConfig
from workers.distill.data import boxes, dataset
from workers.distill.data.builtin import digit_scenes
from workers.distill.functional import divergences, map_distances, patches, standardization
from workers.distill.methods import catalog
from workers.distill.networks import catalog as networks
from workers.distill.networks import weights
from workers.distill.networks.interface import Network

Json = dict[str, Any]  # fields of a recipe, and numbers to print

PARTS = ("detection", "segmentation", "losses", "memory")
FCOS: Json = {"detections_per_image": 30, "anchor_sizes": [2, 4]}
TEACHER: Json = {
    "network": "retort/fcos",
    "arguments": {"width": 24, "blocks": 2, "head_convs": 2, **FCOS},
}
STUDENT: Json = {
    "network": "retort/fcos",
    "arguments": {"width": 8, "blocks": 1, "head_convs": 1, **FCOS},
}
NETWORKS = ("retort/segmenter", "retort/fcn", "torchvision/lraspp_mobilenet_v3_large")
ALONE = "ce"
BESIDE = 16
"""Images of the validation and the test split, which no step looks at."""
READINGS = 4
WATCH_SECONDS = 0.01
COCO = (2, 256, 100, 168)


def main() -> None:
    """Run the parts; print each row on stderr as it is known, and all numbers as JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--methods", default=",".join(methods()), help="rows of detection")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="rows of segmentation")
    parser.add_argument("--pairs", type=int, default=4, help="turns of each loop")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a turn, about")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--images", type=int, default=4000, help="of the training split")
    parser.add_argument("--memory-images", default="2000,20000", help="of the sets held in memory")
    parser.add_argument("--memory-steps", type=int, default=60)
    parser.add_argument("--table", type=Path, help="write all numbers to this file as Markdown")
    parser.add_argument("--quick", action="store_true", help="see that it runs; no figures")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(*asked.serve)
        return
    if asked.quick:
        asked.pairs, asked.seconds, asked.images = 1, 0.01, 16
        asked.memory_images, asked.memory_steps = "16", READINGS
    parts, chosen = asked.parts.split(","), asked.methods.split(",")
    for what, given, known in (("part", parts, PARTS), ("method", chosen, methods())):
        unknown = sorted(set(given) - set(known))
        if unknown:
            parser.error(f"no {what} {', '.join(unknown)}; choose of {', '.join(known)}")
    found: Json = {"machine": machine(asked.threads, "cpu")}
    with tempfile.TemporaryDirectory(prefix="retort-dense-") as scratch:
        if "detection" in parts:
            folder = write_inputs(Path(scratch) / "detection", "detection", asked.images)
            found["detection"] = [compare("detection", name, folder, asked) for name in chosen]
        if "segmentation" in parts:
            folder = write_inputs(Path(scratch) / "segmentation", "segmentation", asked.images)
            found["segmentation"] = [
                compare("segmentation", name, folder, asked) for name in asked.networks.split(",")
            ]
        if "losses" in parts:
            torch.set_num_threads(asked.threads)
            shape = (2, 4, 32, 48) if asked.quick else COCO
            found["losses"] = {"maps": list(shape), "rows": losses(shape, asked.pairs)}
            say("losses", found["losses"])
        if "memory" in parts:
            counts = [int(count) for count in asked.memory_images.split(",")]
            found["memory"] = [memory(Path(scratch), count, asked) for count in counts]
    if asked.table:
        asked.table.write_text(markdown(found))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def methods() -> list[str]:
    """Return the methods of detection that both loops have."""
    offered = (name for name, kind in catalog.METHODS.items() if "detection" in kind.tasks)
    return [name for name in offered if name == ALONE or name in dense_plain.METHODS]


def say(*what: Any) -> None:
    """Print for people; standard output carries JSON."""
    rich.console.Console(stderr=True, highlight=False).print(*what)


# -- the two loops ---------------------------------------------------------------------------------


def serve(kind: str, task: str, row: str, place: str, steps: str = "") -> None:
    """Be one of the two loops, or the process whose memory is measured."""
    folder = Path(place)
    if kind == "memory":
        serve_memory(folder, int(steps))
        return
    made = plain_steps if kind == "plain" else retort_steps
    turns.answer(lambda: made(task, row, folder), torch.device("cpu"))


def compare(task: str, row: str, folder: Path, asked: argparse.Namespace) -> Json:
    """Let both loops take turns."""
    batch = dense_plain.BATCH
    taken = turns.take(
        {kind: ("benchmarks.dense", kind, task, row, str(folder)) for kind in turns.KINDS},
        threads=asked.threads,
        pairs=asked.pairs,
        seconds=asked.seconds,
        images={"plain": batch, "retort": batch},
    )
    say(task, row, taken["ratio"], taken["retort_images_per_second"])
    return {"row": row, **taken}


def retort_steps(task: str, row: str, folder: Path) -> Iterator[None]:
    """Train with the engine's own loop."""
    config = recipe_of(task, row, dataset.load(folder / "dataset").record)
    return turns.in_turns(lambda after: turns.train([config], folder, after))


def plain_steps(task: str, row: str, folder: Path) -> Iterator[None]:
    """Train the plain way."""
    record = dataset.load(folder / "dataset").record
    classes = len(record.classes)
    if task == "segmentation":
        return dense_plain.segmentation_steps(plain_segmenter(row, record), folder)
    wrapped = functools.partial(dense_plain.torchvision_fcos, size=record.input, classes=classes)
    student, teacher = wrapped(build(STUDENT, record)), None
    if row != ALONE:
        built = build(TEACHER, record)
        weights.load_into(built, folder / "teacher" / "model.safetensors")
        teacher = wrapped(built).eval().requires_grad_(False)
    return dense_plain.detection_steps(student, teacher, dense_plain.METHODS.get(row), folder)


def plain_segmenter(name: str, record: dataset.DatasetRecord) -> torch.nn.Module:
    """Return torchvision's own network where the name is one of its, else the engine's."""
    library, _, model = name.partition("/")
    if library != "torchvision":
        return build({"network": name}, record)
    from torchvision.models import get_model

    built: torch.nn.Module = get_model(
        model, weights=None, weights_backbone=None, num_classes=len(record.classes)
    )
    return built


def build(choice: Json, record: dataset.DatasetRecord) -> Network:
    """Return a network of the engine for a data set, with the same start each time."""
    torch.manual_seed(0)
    size = record.input
    return networks.build(
        choice["network"],
        classes=len(record.classes),
        channels=size.channels,
        height=size.height,
        width=size.width,
        arguments=choice.get("arguments", {}),
    )


def recipe_of(task: str, row: str, record: dataset.DatasetRecord) -> JobConfig:
    """Return a training that is longer than the benchmark, and validates nothing on its way."""
    beside = {"classes": len(record.classes), "input": record.input.model_dump()}
    method = row if task == "detection" else ALONE
    return JobConfig.model_validate(
        {
            "task": task,
            "teacher": None if method == ALONE else {**TEACHER, **beside},
            "student": {**(STUDENT if task == "detection" else {"network": row}), **beside},
            "method": {"name": method},
            "training": {
                "recipe": "small_dense",
                "epochs": 10_000,
                "evaluate_every_epochs": 10_000,
                "precision": "float32",
                "compile": "off",
                "checkpoint_seconds": 86_400,
            },
            "accelerator": "cpu",
        }
    )


def write_inputs(folder: Path, task: str, images: int) -> Path:
    """Write composed scenes, repeated up to `images`, and a teacher that has learned nothing.

    Speed does not depend on whether a scene comes again, or on what the teacher knows.
    """
    made = digit_scenes.compose("train", min(images, 400))
    sizes = {"train": images, "validation": BESIDE, "test": BESIDE}

    def repeated(values: Tensor, count: int) -> Tensor:
        return values[torch.arange(count) % len(values)]

    columns: tuple[Tensor, ...]
    if task == "segmentation":
        record = digit_scenes.describe_masks().model_copy(update={"splits": sizes})
        columns = (torch.from_numpy(made.images), torch.from_numpy(made.masks))
    else:
        columns = (torch.from_numpy(made.images), made.boxes, torch.ones(len(made.images)))
        counts = {
            name: boxes.counts(repeated(made.boxes, count), len(digit_scenes.CLASSES))
            for name, count in sizes.items()
        }
        record = digit_scenes.describe().model_copy(update={"splits": sizes, "boxes": counts})
    splits = {
        name: tuple(repeated(column, count) for column in columns) for name, count in sizes.items()
    }
    dataset.write(folder / "dataset", record, splits)
    if task == "detection":
        (folder / "teacher").mkdir()
        teacher = build(TEACHER, record)
        weights.save_student(folder / "teacher" / "model.safetensors", teacher, {"format": "pt"})
    return folder


# -- losses ----------------------------------------------------------------------------------------


def engine_pcka(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the engine's PCKA term."""
    return patches.alignment_gap(*cut(student, teacher), centered=False)


def engine_pcka_transposed(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the second term of the engine's PCKA."""
    return patches.transposed_gap(*cut(student, teacher), centered=False)


def cut(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the patches of both maps."""
    side = patches.fitting_side(student.shape[2], student.shape[3])
    return patches.pair_rows(student, teacher, side=side)


def engine_pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the engine's PKD term."""
    one, other = (each.transpose(0, 1).flatten(1) for each in (student, teacher))
    return standardization.z_score_gap(one, other)


def engine_cwd(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the engine's CWD term."""
    return divergences.channel_kl(student, teacher, temperature=dense_plain.CWD_TEMPERATURE)


def engine_mimic(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the engine's mimic term."""
    return map_distances.mean_square([student], [teacher], by_variance=True)


ENGINE_LOSSES: dict[str, dense_plain.Loss] = {
    "pcka": engine_pcka,
    "pcka_transposed": engine_pcka_transposed,
    "cwd": engine_cwd,
    "pkd": engine_pkd,
    "mimic": engine_mimic,
}


def losses(shape: Sequence[int], pairs: int) -> list[Json]:
    """Return milliseconds of each loss with its gradient, plain and the engine's, and their share.

    Raises `RuntimeError` where both do not give the same value.
    """
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(*shape, generator=generator) for _ in range(2)]
    # Each as its loop has them: networks of the engine are channels-last, those of others are not.
    pairs_of = {
        "plain": maps,
        "retort": [one.contiguous(memory_format=torch.channels_last) for one in maps],
    }
    found = []
    for name, ours in ENGINE_LOSSES.items():
        kinds = {"plain": dense_plain.LOSSES[name], "retort": ours}
        values = {kind: timed(loss, *pairs_of[kind])[0] for kind, loss in kinds.items()}
        if abs(values["plain"] - values["retort"]) > 1e-3 * max(abs(values["plain"]), 1e-3):
            raise RuntimeError(f"{name} differs: {values}")
        times: dict[str, list[float]] = {kind: [] for kind in turns.KINDS}
        for turn in range(pairs):
            for kind in turns.KINDS if turn % 2 == 0 else reversed(turns.KINDS):
                times[kind].append(timed(kinds[kind], *pairs_of[kind])[1])
        shares = [one / other for one, other in zip(times["retort"], times["plain"], strict=True)]
        found.append(
            {
                "loss": name,
                "plain_ms": turns.spread([1000 * value for value in times["plain"]]),
                "retort_ms": turns.spread([1000 * value for value in times["retort"]]),
                "share": turns.spread(shares),
            }
        )
    return found


def timed(loss: dense_plain.Loss, student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Return the value of a loss, and the seconds of value and gradient."""
    leaf = student.detach().requires_grad_()
    start = time.perf_counter()
    value = loss(leaf, teacher)
    value.backward()  # type: ignore[no-untyped-call]  # torch's stub
    return value.item(), time.perf_counter() - start


# -- memory ----------------------------------------------------------------------------------------


def memory(scratch: Path, images: int, asked: argparse.Namespace) -> Json:
    """Return what a process holds that trains a detector on so many images."""
    folder = write_inputs(scratch / f"memory-{images}", "detection", images)
    command = ["--serve", "memory", "detection", ALONE, str(folder), str(asked.memory_steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dense", *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    side = digit_scenes.SIDE
    found: Json = {
        "images": images,
        "mib_of_pixels": mib(images * digit_scenes.INPUT.channels * side * side),
        **json.loads(done.stdout),
    }
    say("memory", found)
    return found


def serve_memory(folder: Path, steps: int) -> None:
    """Train so many steps, and write what is resident at some of them."""
    readings: list[Json] = [{"step": 0, **resident()}]
    highest = [0.0]
    # Preparation allocates and frees between the readings, so it is watched as well.
    threading.Thread(target=watch, args=(highest,), daemon=True).start()
    config = recipe_of("detection", ALONE, dataset.load(folder / "dataset").record)
    made = turns.in_turns(lambda after: turns.train([config], folder, after))
    for step in range(1, steps + 1):
        next(made)
        if step == 1 or step % max(1, steps // READINGS) == 0:
            readings.append({"step": step, **resident()})
    answer = {
        "readings": readings,
        "highest_anonymous_mib": highest[0],
        "highest_mib": status("VmHWM"),
    }
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    # The training waits for its next turn, which never comes.
    os._exit(0)


def watch(highest: list[float]) -> None:
    """Keep the most that this process has allocated, in MiB; never returns."""
    while True:
        highest[0] = max(highest[0], status("RssAnon"))
        time.sleep(WATCH_SECONDS)


def resident() -> Json:
    """Return MiB that this process has allocated, and that it has mapped of files."""
    return {"anonymous_mib": status("RssAnon"), "mapped_mib": status("RssFile")}


def status(field: str) -> float:
    """Return a field of the process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return mib(1024 * int(kib))


def mib(count: int) -> float:
    """Return bytes as MiB."""
    return round(count / 2**20, 1)


# -- what is said ----------------------------------------------------------------------------------


def markdown(found: Json) -> str:
    """Return all numbers as tables."""
    facts = found["machine"]
    lines = [f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}", ""]
    tables: list[tuple[str, tuple[str, ...], Callable[[Json], tuple[str, ...]]]] = [
        ("detection", ("method", *SPEED), speed_cells),
        ("segmentation", ("network", *SPEED), speed_cells),
    ]
    for part, headings, cells in tables:
        if part in found:
            lines += table(headings, [cells(row) for row in found[part]])
    if "losses" in found:
        headings = ("loss", "plain, ms", "Retort, ms", "share", "spread")
        lines += table(headings, [loss_cells(row) for row in found["losses"]["rows"]])
    if "memory" in found:
        headings = (
            "images",
            "pixels, MiB",
            "step",
            "allocated, MiB",
            "mapped, MiB",
            "most allocated, MiB",
            "highest, MiB",
        )
        lines += table(headings, [cells for row in found["memory"] for cells in memory_cells(row)])
    return "\n".join(lines)


SPEED = ("plain img/s", "Retort img/s", "ratio", "spread")


def speed_cells(row: Json) -> tuple[str, ...]:
    """Return the cells of a row of detection or segmentation."""
    ratio = row["ratio"]
    return (
        row["row"],
        f"{row['plain_images_per_second']['median']:.1f}",
        f"{row['retort_images_per_second']['median']:.1f}",
        f"{ratio['median']:.2f}",
        f"{ratio['least']:.2f} to {ratio['most']:.2f}",
    )


def loss_cells(row: Json) -> tuple[str, ...]:
    """Return the cells of a loss."""
    share = row["share"]
    return (
        row["loss"],
        f"{row['plain_ms']['median']:.0f}",
        f"{row['retort_ms']['median']:.0f}",
        f"{100 * share['median']:.0f} %",
        f"{100 * share['least']:.0f} to {100 * share['most']:.0f} %",
    )


def memory_cells(row: Json) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each reading."""
    for reading in row["readings"]:
        yield (
            f"{row['images']:,}",
            f"{row['mib_of_pixels']:.0f}",
            str(reading["step"]),
            f"{reading['anonymous_mib']:.0f}",
            f"{reading['mapped_mib']:.0f}",
            f"{row['highest_anonymous_mib']:.0f}",
            f"{row['highest_mib']:.0f}",
        )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, and an empty one."""
    every = [headings, ["---"] * len(headings), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in every), ""]


if __name__ == "__main__":
    main()
