"""How many images a second a student learns from: Retort's loop against a plain research loop.

    python -m benchmarks.train_step [--rows kd,dkd,six,losses,...] [--pairs 4] [--seconds 8]
        [--device cuda] [--table FILE.md]

Same pair (resnet32x4 teaches resnet8x4), same batch of 64, same number of threads, images as in
CIFAR-100 (random pixels: speed does not depend on what they show). The two loops run in processes
of their own and take turns; what counts is the median over the turns, and the spread is told.

The plain loop is what the public repositories do: a data loader of two worker processes (on a card:
eight, and pinned memory) with torchvision's transforms on PIL images, networks as they are built
(float32, batch norms of the teacher unfolded, plain memory layout), `torch.optim.SGD`, and loss and
accuracy read with `.item()` at every step. On a card it lets cuDNN look for the fastest kernels,
and convolutions are TF32 in both loops, as torch has it. It computes the very same losses, so that
loops are compared, not losses. Rows of half precision and compiled ones have the same plain loop.

Several students of one study are compared with as many plain loops, one after the other. What
`losses` tells of each method is the time of its loss, forward and backward, as a share of a step,
and the share that its arithmetic alone would take. `accuracy` tells what a teacher cache costs: the
test accuracy on the digits with ever fresh views, and with a few stored ones.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console
import rich.table
import torch
from PIL import Image
from torch.utils import data as loading
from torch.utils import flop_counter
from torchvision import transforms

from benchmarks import turns
from workers.distill.config.job import JobConfig, NetworkChoice
from workers.distill.data import dataset
from workers.distill.data.types import Batch
from workers.distill.methods import catalog
from workers.distill.methods.base import Method, Moment
from workers.distill.networks import folding, weights
from workers.distill.networks.interface import Features
from workers.distill.run import prepare
from workers.distill.runtime.device import keep_memory
from workers.distill.runtime.precision import Precision
from workers.distill.training import floor

BATCH = 64
CLASSES = 100
TEACHER, STUDENT = "retort/resnet32x4", "retort/resnet8x4"
MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
IMAGES = 50_000
CACHED_IMAGES = 1_024
"""The teacher looks at all views before the first step: at those of a set this large, a minute."""
LOADER_PROCESSES = {"cpu": 2, "cuda": 8}
STUDY = ("kd", "dkd", "dist", "rkd", "pkt", "sp")
"""The methods of the students of one study, in this order."""
LOSS_SECONDS = 1.0


@dataclass(frozen=True)
class Row:
    """One comparison: what Retort trains, and the plain loop that stands beside it."""

    name: str
    methods: tuple[str, ...]
    training: dict[str, Any]  # Any: fields of a recipe
    images: int = IMAGES


ROWS = {
    row.name: row
    for row in (
        *(Row(name, (name,), {}) for name in ("kd", "dkd", "reviewkd", "crd", "rcka")),
        Row("three", STUDY[:3], {}),
        Row("six", STUDY, {}),
        Row("cache", ("kd",), {"teacher_cache": {"views": 2}}, CACHED_IMAGES),
        Row("bfloat16", ("kd",), {"precision": "bfloat16"}),
        Row("six_bfloat16", STUDY, {"precision": "bfloat16"}),
        Row("crd_bfloat16", ("crd",), {"precision": "bfloat16"}),
        Row("compiled", ("kd",), {"compile": "on"}),
        Row("compiled_bfloat16", ("kd",), {"compile": "on", "precision": "bfloat16"}),
    )
}
OTHERS = ("losses", "accuracy")
DEFAULT = "kd,dkd,reviewkd,crd,rcka,three,six,cache,bfloat16,six_bfloat16,compiled,losses,accuracy"
VIEWS = (1, 4, 16)


def main() -> None:
    """Run the rows; print a table on stderr and all numbers as JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step")
    parser.add_argument("--rows", default=DEFAULT, help=f"of {', '.join((*ROWS, *OTHERS))}")
    parser.add_argument("--pairs", type=int, default=4, help="turns of each loop")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a turn, about")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=3, help="runs behind each accuracy")
    parser.add_argument("--device", choices=LOADER_PROCESSES, default="cpu", help="of the loops")
    parser.add_argument("--table", type=Path, help="write the rows to this file as well")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(*asked.serve)
        return
    names = asked.rows.split(",")
    unknown = set(names) - {*ROWS, *OTHERS}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; see --help")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    found: dict[str, Any] = {"machine": machine(asked.threads, asked.device), "rows": []}
    failed = False
    with tempfile.TemporaryDirectory(prefix="retort-train-step-") as name:
        folder = Path(name)
        for images in {ROWS[name].images for name in names if name in ROWS}:
            write_inputs(folder / str(images), images)
        for name in names:
            if name in ROWS and set(ROWS[name].methods) <= set(catalog.METHODS):
                try:
                    found["rows"].append(compare(ROWS[name], folder, asked))
                except RuntimeError as error:  # the other rows are worth having all the same
                    failed = True
                    console().print(f"{name} failed: {error}")
                    continue
                say(found["rows"][-1])
    if "losses" in names:
        found["losses"] = in_process(asked.threads)
    if "accuracy" in names:
        found["accuracy"] = accuracy(asked.seeds)
    show(found)
    if asked.table:
        asked.table.write_text(markdown(found))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if failed:
        sys.exit(1)


def machine(threads: int, device: str) -> dict[str, Any]:
    """Return what the numbers depend on."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_in_hardware": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


# -- the two loops, each in a process of its own ---------------------------------------------------


def serve(kind: str, row: str, folder: str, device: str) -> None:
    """Be one of the two loops, which makes steps when it is asked to."""
    made = plain_steps if kind == "plain" else retort_steps
    place = Path(folder) / str(ROWS[row].images)
    turns.answer(lambda: made(ROWS[row], place, torch.device(device)), torch.device(device))


class Pictures(loading.Dataset[tuple[torch.Tensor, int, int]]):
    """A set of pictures as torchvision's CIFAR classes hold them, which also tells the place."""

    def __init__(self, folder: Path) -> None:
        train = dataset.load(folder / "dataset").split("train")
        self._pixels = train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = train.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int, int]:
        """Return an augmented picture, its label and its place."""
        picture = Image.fromarray(self._pixels[place])
        return self._transform(picture), self._labels[place], place


def plain_steps(row: Row, folder: Path, device: torch.device) -> Iterator[None]:
    """Train one student the plain way."""
    asked = recipe_of(row.methods[0], {}, device)
    torch.backends.cudnn.benchmark = True
    teacher = prepare.build("teacher", choice(TEACHER), "classification").eval()
    weights.load_into(teacher, folder / "teacher" / "model.safetensors")
    student = prepare.build("student", choice(STUDENT), "classification").train()
    teacher.to(device)
    student.to(device)
    method = catalog.build(asked.method, student, teacher).to(device)
    train = dataset.load(folder / "dataset").split("train")
    method.prepare(train.labels.to(device))
    learned = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(learned, lr=0.05, momentum=0.9, weight_decay=5e-4)
    on_card = device.type == "cuda"
    loader = loading.DataLoader(
        Pictures(folder),
        batch_size=BATCH,
        shuffle=True,
        num_workers=LOADER_PROCESSES[device.type],
        pin_memory=on_card,
    )
    losses, right, seen, number = 0.0, 0.0, 0, 0
    while True:
        for loaded in loader:
            images, labels, places = (part.to(device, non_blocking=on_card) for part in loaded)
            number += 1
            optimizer.zero_grad()
            with torch.no_grad():
                taught = teacher.observe(images)
            shown = student.observe(images)
            terms = method.terms(
                shown, taught, Batch(images, labels, places), Moment(1, number, 782)
            )
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            optimizer.step()
            method.after_step(Moment(1, number, 782))
            losses += loss.item()
            right += (shown.logits.argmax(1) == labels).float().sum().item()
            seen += len(labels)
            yield


def retort_steps(row: Row, folder: Path, device: torch.device) -> Iterator[None]:
    """Train the row's students with Retort's own loop."""
    recipes = [recipe_of(name, row.training, device) for name in row.methods]
    return turns.in_turns(lambda after: turns.train(recipes, folder, after))


# -- what both loops are given ---------------------------------------------------------------------


def choice(network: str) -> NetworkChoice:
    """Return a network for pictures like those of CIFAR-100."""
    size = {"channels": 3, "height": 32, "width": 32, "mean": MEAN, "std": STD}
    return NetworkChoice.model_validate({"network": network, "classes": CLASSES, "input": size})


def recipe_of(method: str, training: dict[str, Any], device: torch.device) -> JobConfig:
    """Return the published training of 240 epochs, of which the benchmark makes the first steps.

    Half precision and compiling are rows of their own, whatever a card would choose by itself.
    """
    usual = {"precision": "float32", "compile": "off", "checkpoint_seconds": 86_400}
    fields = {"recipe": "cifar100", **usual, **training}
    return JobConfig.model_validate(
        {
            "teacher": choice(TEACHER).model_dump(),
            "student": choice(STUDENT).model_dump(),
            "method": {"name": method},
            "training": fields,
            "accelerator": device.type,
        }
    )


def write_inputs(folder: Path, images: int) -> None:
    """Write a data set of random pixels and a teacher that has learned nothing."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": images, "validation": BATCH, "test": BATCH}
    record = dataset.DatasetRecord(
        classes=[str(number) for number in range(CLASSES)],
        splits=sizes,
        input=choice(TEACHER).input,
        flip=True,
    )
    splits = {
        name: (
            torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.arange(count) % CLASSES,
        )
        for name, count in sizes.items()
    }
    dataset.write(folder / "dataset", record, splits)
    (folder / "teacher").mkdir()
    torch.manual_seed(0)
    teacher = prepare.build("teacher", choice(TEACHER), "classification")
    weights.save_student(folder / "teacher" / "model.safetensors", teacher, {"format": "pt"})


# -- turns -----------------------------------------------------------------------------------------


def compare(row: Row, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Let both loops take turns."""
    students = len(row.methods)
    taken = turns.take(
        {
            kind: ("benchmarks.train_step", kind, row.name, str(folder), asked.device)
            for kind in turns.KINDS
        },
        threads=asked.threads,
        pairs=asked.pairs,
        seconds=asked.seconds,
        images={"plain": BATCH, "retort": BATCH * students},
    )
    return {
        "row": row.name,
        "methods": list(row.methods),
        "training": row.training,
        "students": students,
        **taken,
    }


# -- losses ----------------------------------------------------------------------------------------


def in_process(threads: int) -> dict[str, Any]:
    """Measure the losses with the asked number of threads."""
    torch.set_num_threads(threads)
    keep_memory()
    return losses()


def losses() -> dict[str, Any]:
    """Return the milliseconds of the bare step, and of each method's loss, forward and backward."""
    torch.manual_seed(0)
    teacher = prepare.placed(
        prepare.build("teacher", choice(TEACHER), "classification"), torch.device("cpu")
    )
    teacher.eval().requires_grad_(False)
    student = prepare.placed(
        prepare.build("student", choice(STUDENT), "classification"), torch.device("cpu")
    )
    pixels = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    seen = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        taught = teacher.observe(seen)
    shown = student.observe(seen)
    fast = folding.folded(teacher, seen[: folding.EXAMPLES])
    precision = Precision("float32", torch.device("cpu"))
    look = floor.forward(fast, seen, precision)
    step = floor.floor_seconds(student, seen, look, precision)
    labels = torch.arange(BATCH) % CLASSES
    batch = Batch(pixels, labels, torch.arange(BATCH), strong=pixels)
    work = flops_of(lambda: (teacher(seen), floor.Floor(student, precision)(seen)))
    found: dict[str, Any] = {
        "step_ms": round(1000 * step, 2),
        "step_gflop": round(work / 1e9, 1),
        "methods": {},
    }
    for name in sorted(catalog.METHODS):
        method = catalog.build({"name": name}, student, teacher)
        method.prepare(torch.arange(IMAGES) % CLASSES)
        seconds = loss_seconds(method, shown, taught, batch)
        own = flops_of(functools.partial(gradient, method, leaves(shown), taught, batch, 1))
        found["methods"][name] = {
            "loss_ms": round(1000 * seconds, 2),
            "share": round(seconds / (step + seconds), 4),
            "arithmetic_share": round(own / (work + own), 4),
        }
    return found


def loss_seconds(method: Method, shown: Features, taught: Features, batch: Batch) -> float:
    """Return the median time of a method's terms, and of their gradient back to the features."""
    times: list[float] = []
    end = time.monotonic() + LOSS_SECONDS
    number = 0
    while len(times) < 3 or (time.monotonic() < end and len(times) < 200):
        number += 1
        student = leaves(shown)
        start = time.perf_counter()
        gradient(method, student, taught, batch, number)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first finds nothing in the caches


def gradient(
    method: Method, student: Features, taught: Features, batch: Batch, number: int
) -> None:
    """Go through a method's terms, and back to the features and to what it learns."""
    method.zero_grad(set_to_none=True)
    terms = method.terms(student, taught_of(method, taught), batch, Moment(20, number, 782))
    total = torch.stack(list(terms.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]  # torch's stub


def flops_of(work: Callable[[], object]) -> int:
    """Return the floating-point operations of convolutions and matrix products."""
    with flop_counter.FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


# -- accuracy --------------------------------------------------------------------------------------


def accuracy(seeds: int) -> dict[str, Any]:
    """Return the test accuracy on the digits by method and number of stored views."""
    # Imported here because they need the service's packages, which a machine with a card may lack.
    from benchmarks import digit_pairs, digits

    kd = digit_pairs.METHODS["kd"]
    asked: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"kd": (kd, {})}
    for views in VIEWS:
        cache = {"teacher_cache": {"views": views}}
        asked[f"kd, {views} views"] = (kd, cache)
        asked[f"fkd, {views} views"] = ({"name": "fkd"}, cache)
    scores: dict[str, list[float]] = {name: [] for name in asked}
    with tempfile.TemporaryDirectory(prefix="retort-accuracy-") as scratch:
        folder = Path(scratch)
        digits.prepare(folder)
        for seed in range(seeds):
            teacher, _ = digits.run_recipe(
                *(folder, f"{seed}-teacher", digit_pairs.TEACHER, {"name": "ce"}),
                *(digit_pairs.TEACHER_TRAINING, seed, None),
            )
            for name, (method, cache) in asked.items():
                training = {**digit_pairs.STUDENT_TRAINING, **cache}
                place = f"{seed}-{name.replace(' ', '').replace(',', '-')}"
                _, got = digits.run_recipe(
                    folder, place, digit_pairs.STUDENT, method, training, seed, teacher
                )
                scores[name].append(got["accuracy"])
    return {name: turns.spread(values) for name, values in scores.items()}


def leaves(features: Features) -> Features:
    """Return features that a gradient ends at, with a strong view where one may be looked at."""

    def leaf(values: torch.Tensor) -> torch.Tensor:
        return values.detach().requires_grad_()

    found = Features(
        logits=leaf(features.logits),
        pooled=leaf(features.pooled),
        stem=None if features.stem is None else leaf(features.stem),
        stages=tuple(leaf(stage) for stage in features.stages),
        pre_activations=tuple(leaf(stage) for stage in features.pre_activations),
        final=None if features.final is None else leaf(features.final),
    )
    strong = Features(leaf(features.logits), leaf(features.pooled))
    return Features(**{**vars(found), "strong": strong})


def taught_of(method: Method, features: Features) -> Features:
    """Return what the teacher shows, twice where the method compares two views."""
    if not method.uses_strong_view:
        return features
    return Features(**{**vars(features), "strong": features})


# -- what is said ----------------------------------------------------------------------------------


def console() -> rich.console.Console:
    """Return the console for people; standard output carries JSON."""
    return rich.console.Console(stderr=True, highlight=False)


def say(row: dict[str, Any]) -> None:
    """Print a row as soon as it is known."""
    console().print(row["row"], row["ratio"], row["retort_images_per_second"])


HEADINGS = ("row", "students", "plain img/s", "Retort img/s", "ratio", "spread")


def title(found: dict[str, Any]) -> str:
    """Return on what the numbers were measured."""
    facts = found["machine"]
    return f"{facts['device']}, torch {facts['torch']}, Python {facts['python']}"


def rows_of(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each row."""
    for row in found["rows"]:
        ratio = row["ratio"]
        yield (
            row["row"],
            str(row["students"]),
            f"{row['plain_images_per_second']['median']:.1f}",
            f"{row['retort_images_per_second']['median']:.1f}",
            f"{ratio['median']:.2f}",
            f"{ratio['least']:.2f} to {ratio['most']:.2f}",
        )


def markdown(found: dict[str, Any]) -> str:
    """Return the rows as a table in Markdown, under what they were measured on."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows_of(found)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{title(found)}\n\n{table}\n"


def show(found: dict[str, Any]) -> None:
    """Print all numbers as tables."""
    table = rich.table.Table(*HEADINGS, title=title(found))
    for cells in rows_of(found):
        table.add_row(*cells)
    console().print(table)
    if "losses" in found:
        told = rich.table.Table("method", "loss ms", "share of a step", "of its arithmetic")
        for name, loss in found["losses"]["methods"].items():
            told.add_row(
                name,
                f"{loss['loss_ms']:.1f}",
                f"{100 * loss['share']:.1f} %",
                f"{100 * loss['arithmetic_share']:.1f} %",
            )
        console().print(told)
    for name, score in found.get("accuracy", {}).items():
        console().print(f"accuracy, {name}: {score}")


if __name__ == "__main__":
    main()
