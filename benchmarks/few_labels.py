"""What a teacher is worth where few images have a label, on the digits.

    python -m benchmarks.few_labels [--labels 50,100,250,1257] [--seeds 5] [--first-seed 0]
        [--lines FILE] [--teachers FOLDER] [--markdown]

Each seed trains its own teacher, on all 1,257 labelled images, and draws its own labelled images,
class by class. Networks are those of `digit_pairs.py`. Rows: the student alone on the labelled
images; KD on the same images; KD on all images, of which the others have no label; and the last
with the teacher's sure answers as labels beside. All students make as many updates as 15 epochs of
all images have, with KD's default weights, and are scored on the test split (360 images). `--lines`
appends the scores of each seed and number of labels to a file, one JSON object a line, and leaves
out those that are there, so that a run that was stopped goes on; `--teachers` keeps the teachers
for that.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import rich.console
import torch

from benchmarks import classification, digits, line_files
from workers.distill.data import dataset, splits

Json = dict[str, Any]  # specs and lines of the engine

PROBLEM, PAIR = "digits", "narrow"
ALL = 1257
EPOCHS_OF_ALL = 15
BATCH = 64
EVALUATIONS = 15
KD: Json = {"name": "kd"}
ON_LABELLED: dict[str, tuple[Json, Json]] = {
    "alone": ({"name": "ce"}, {}),
    "kd, the same images": (KD, {}),
}
ON_EVERY: dict[str, tuple[Json, Json]] = {
    "kd, all images": (KD, {}),
    "kd, all images, pseudo-labels": (KD, {"pseudo_labels": {"threshold": 0.95}}),
}


def main() -> None:
    """Run what the file of lines lacks; print a line for each on stderr, the table on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_labels")
    parser.add_argument("--labels", default=f"50,100,250,{ALL}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, help="append scores to this file, and go on from it")
    parser.add_argument("--teachers", type=Path, help="folder that keeps the teachers")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    options = parser.parse_args()
    counts = [int(count) for count in options.labels.split(",")]
    if not all(BATCH // 2 <= count <= ALL for count in counts):
        parser.error(f"--labels takes numbers from {BATCH // 2} to {ALL}, got {options.labels}")
    say = rich.console.Console(stderr=True, highlight=False).print
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    lines = line_files.read(options.lines)
    lines = [one for one in lines if one["seed"] in seeds and one["labels"] in counts]
    done = {(one["seed"], one["labels"]) for one in lines}
    with tempfile.TemporaryDirectory(prefix="retort-few-labels-") as name:
        folder = Path(name)
        digits.prepare(folder)
        for seed in seeds:
            missing = [count for count in counts if (seed, count) not in done]
            if not missing:
                continue
            teacher = classification.trained_teacher(folder, PROBLEM, seed, options.teachers)
            for count in missing:
                scores = run_count(folder, seed, count, teacher)
                lines.append({"seed": seed, "labels": count, "scores": scores})
                line_files.append(options.lines, lines[-1])
                say(lines[-1])
    found = summary(lines)
    sys.stdout.write((markdown(found) if options.markdown else json.dumps(found, indent=2)) + "\n")


def run_count(folder: Path, seed: int, count: int, teacher: Path) -> dict[str, float]:
    """Train all students that have this many labels; return their test accuracies by row."""
    every = folder / f"{seed}-{count}-every"
    labelled = folder / f"{seed}-{count}-labelled"
    write_labelled(folder / "dataset", every / "dataset", count, seed, keep_unlabelled=True)
    write_labelled(folder / "dataset", labelled / "dataset", count, seed, keep_unlabelled=False)
    scores = run_rows(labelled, count, seed, teacher, ON_LABELLED)
    if count < ALL:
        # One by one: students of one group have the same pseudo-labels.
        for row, choice in ON_EVERY.items():
            scores |= run_rows(every, ALL, seed, teacher, {row: choice})
    return scores


def write_labelled(
    whole: Path, folder: Path, count: int, seed: int, *, keep_unlabelled: bool
) -> None:
    """Write the data set with `count` labelled training images; the rest keeps no label or goes."""
    stored = dataset.load(whole)
    train = stored.split("train")
    targets = train.labels.numpy()
    rest = len(targets) - count
    chosen = torch.from_numpy(splits.stratified(targets, (count, rest), seed=seed)[0])
    images, labels = train.images[chosen], train.labels[chosen]
    if keep_unlabelled:
        labels = torch.full_like(train.labels, dataset.UNLABELLED)
        labels[chosen] = train.labels[chosen]
        images = train.images
    content = {name: stored.split(name) for name in dataset.SPLITS if name != "train"}
    tensors = {name: (split.images, split.labels) for name, split in content.items()}
    tensors["train"] = (images.clone(), labels)
    known = dataset.labelled_counts({name: pair[1].numpy() for name, pair in tensors.items()})
    sizes = {**stored.record.splits, "train": len(labels)}
    record = stored.record.model_copy(update={"splits": sizes, "labelled": known})
    dataset.write(folder, record, tensors)


def run_rows(
    folder: Path, images: int, seed: int, teacher: Path, rows: dict[str, tuple[Json, Json]]
) -> dict[str, float]:
    """Train students side by side on `images` images; return their test accuracies by row."""
    workdir = Path(tempfile.mkdtemp(dir=folder, prefix="run-"))
    classification.place(folder, workdir.name, teacher)
    epochs = epochs_for(images)
    training = {
        "seed": seed,
        "batch_size": BATCH,
        "epochs": epochs,
        "evaluate_every_epochs": math.ceil(epochs / EVALUATIONS),
    }
    keys = {f"row-{number}": row for number, row in enumerate(rows)}
    members = [
        {
            "key": key,
            "recipe": classification.recipe_of(
                folder,
                classification.PROBLEMS[PROBLEM],
                PAIR,
                row,
                rows[row][0],
                {**training, **rows[row][1]},
            ),
        }
        for key, row in keys.items()
    ]
    path = workdir / "group.json"
    path.write_text(json.dumps({"version": 1, "members": members}))
    found: dict[str, float] = {}
    for line in classification.engine(path, workdir):
        if line["type"] == "failure":
            raise RuntimeError(f"{folder.name}: {line['message']}")
        if line["type"] == "result":
            found[keys[line["member"]]] = line["scores"]["student"]["accuracy"]
    return found


def epochs_for(images: int) -> int:
    """Return the epochs of so many images that make about the updates of a training on all."""
    updates = EPOCHS_OF_ALL * math.ceil(ALL / BATCH)
    return round(updates / math.ceil(images / BATCH))


def summary(lines: list[Json]) -> list[Json]:
    """Return mean and spread of each row, and its differences to the student alone by seed."""
    found = []
    for count in sorted({line["labels"] for line in lines}):
        runs = [line["scores"] for line in lines if line["labels"] == count]
        for row in runs[0]:
            scores = [100 * run[row] for run in runs]
            apart = [100 * (run[row] - run["alone"]) for run in runs]
            several = len(runs) > 1
            found.append(
                {
                    "labels": count,
                    "row": row,
                    "mean": statistics.fmean(scores),
                    "sd": statistics.stdev(scores) if several else 0.0,
                    "difference": statistics.fmean(apart),
                    "difference_sd": statistics.stdev(apart) if several else 0.0,
                    "above": sum(value > 0 for value in apart),
                    "seeds": len(runs),
                }
            )
    return found


def markdown(found: list[Json]) -> str:
    """Return the table, in percent."""
    lines = [
        "| labels | student | accuracy | difference to the student alone | seeds above it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found:
        beside = f"{one['difference']:+.2f} ± {one['difference_sd']:.2f}"
        above = f"{one['above']} of {one['seeds']}"
        if one["row"] == "alone":
            beside = above = ""
        accuracy = f"{one['mean']:.2f} ± {one['sd']:.2f}"
        lines.append(f"| {one['labels']:,} | {one['row']} | {accuracy} | {beside} | {above} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
