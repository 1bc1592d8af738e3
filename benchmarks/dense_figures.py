"""How good methods of detection and segmentation are on composed scenes, over several seeds.

    python -m benchmarks.dense_figures [--task detection] [--methods mimic,pkd,mimic+pkd]
        [--seeds 3] [--first-seed 0] [--steps N] [--markdown]

The small experiment of the guide of dense prediction (8.3): scenes of 96x96 composed of real digits
on real photographs, the recipe `small_dense`, a teacher of width 24 with two blocks a stage and a
student of width 8 with one. Each seed trains its own teacher; all rows of a seed share it, the
student's start and the order of the images. `ce`, the student alone, is always there.
Hyper-parameters are the catalog's defaults; a row `a+b` combines two methods, and `rcka_classes` is
the class term of densepcka alone. The recipe's schedule runs over 750 steps, so with 600 it ends
before the rate is zero. Segmentation takes twice the rate, 900 of 1,000 steps, and class weights.
Scores are of the test split (250
scenes), which shares neither digit nor photograph with the training split; the interval is that of
the first seed, over test images alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console

from benchmarks import digits
from models_registry import catalog, errors
from models_registry.studies import leaderboard

Json = dict[str, Any]  # configs and lines of the engine
Run = dict[str, float | str | list[float] | None]
"""Scores, seconds a step and the interval of one student, or why it was refused."""

ALONE = "ce"
TEACHER_WIDTH: Json = {"width": 24, "blocks": 2}
STUDENT_WIDTH: Json = {"width": 8, "blocks": 1}


@dataclass(frozen=True)
class Experiment:
    """What is trained for a task, and which scores are told; the first one counts."""

    dataset: str
    teacher: Json
    student: Json
    methods: str
    scores: tuple[str, ...]
    training: Json
    steps: int


DETECTOR: Json = {"anchor_sizes": [2, 4], "detections_per_image": 30}
EXPERIMENTS = {
    "detection": Experiment(
        dataset="digit_scenes",
        teacher={
            "network": "retort/fcos",
            "arguments": {**TEACHER_WIDTH, "head_convs": 2, **DETECTOR},
        },
        student={
            "network": "retort/fcos",
            "arguments": {**STUDENT_WIDTH, "head_convs": 1, **DETECTOR},
        },
        methods="mimic,pkd,densepcka,densepcka+mimic,cwd,at",
        scores=("ap", "ap50", "ap75"),
        training={"recipe": "small_dense"},
        steps=600,
    ),
    "segmentation": Experiment(
        dataset="digit_scenes_masks",
        teacher={"network": "retort/segmenter", "arguments": TEACHER_WIDTH},
        student={"network": "retort/segmenter", "arguments": STUDENT_WIDTH},
        methods="pixelkd,pixeldkd,cwd,pkd,densepcka,rcka_classes,cirkd,skd",
        scores=("miou", "accuracy"),
        # Strokes are a twelfth of the pixels: with equal weights all learn the background alone.
        training={
            "recipe": "small_dense",
            "epochs": 4,
            "optimizer": {"learning_rate": 4e-3},
            "class_weights": "auto",
        },
        steps=900,
    ),
}
VARIANTS: dict[str, Json] = {
    "rcka_classes": {
        "name": "densepcka",
        "pcka_weight": 0,
        "transposed_weight": 0,
        "classes_weight": 10,
    },
}
"""Rows that are a method with other hyper-parameters than its defaults."""


def main() -> None:
    """Run all seeds; print a line for each run on stderr, and the table on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense_figures")
    parser.add_argument("--task", choices=EXPERIMENTS, default="detection")
    parser.add_argument("--methods", help=f"rows, besides {ALONE}; a+b combines two")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each training; the task's own if left out")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    asked = parser.parse_args()
    experiment = EXPERIMENTS[asked.task]
    rows = [ALONE, *(name for name in (asked.methods or experiment.methods).split(",") if name)]
    try:
        choices = {name: method_of(name) for name in rows}
    except errors.Refused as error:
        parser.error(str(error))
    found: dict[str, list[Run]] = {"teacher": [], **{name: [] for name in choices}}
    with tempfile.TemporaryDirectory(prefix="retort-dense-figures-") as name:
        folder = Path(name)
        digits.prepare(folder, experiment.dataset)
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            steps = asked.steps or experiment.steps
            training = {**experiment.training, "max_steps": steps, "seed": seed}
            place = folder / f"{seed}-teacher"
            recipe = recipe_of(folder, asked.task, None, {"name": ALONE}, training)
            keep(found, "teacher", run(folder, place, recipe, None, experiment.scores))
            for number, (row, choice) in enumerate(choices.items()):
                recipe = recipe_of(folder, asked.task, choice, choice, training)
                teacher = place / "student.safetensors"
                done = run(folder, folder / f"{seed}-{number}", recipe, teacher, experiment.scores)
                keep(found, row, done)
    summary = {row: summarised(runs, found[ALONE], experiment) for row, runs in found.items()}
    text = markdown(summary, experiment) if asked.markdown else json.dumps(summary, indent=2)
    sys.stdout.write(text + "\n")


def method_of(row: str) -> Json:
    """Return the choice of method of a row, complete; raises `errors.Refused` for unknown ones."""
    names = row.split("+")
    choice: Json = VARIANTS.get(row, {"name": row})
    if len(names) > 1:
        choice = {"name": "combine", "methods": [{"name": name} for name in names]}
    return catalog.complete_method(choice)


def recipe_of(
    folder: Path, task: str, student_method: Json | None, method: Json, training: Json
) -> Json:
    """Return the engine's recipe of a student; without a method for one, of the teacher."""
    experiment = EXPERIMENTS[task]
    record = json.loads((folder / "dataset" / "dataset.json").read_text())
    beside = {"classes": len(record["classes"]), "input": record["input"]}
    has_teacher = student_method is not None and student_method["name"] != ALONE
    chosen = experiment.teacher if student_method is None else experiment.student
    return {
        "version": 1,
        "task": task,
        "teacher": {**experiment.teacher, **beside} if has_teacher else None,
        "student": {**chosen, **beside},
        "initial": False,
        "method": method,
        "training": catalog.complete_training(training),
        "baseline": False,
        "report": False,
        "accelerator": "cpu",
        "provenance": {},
    }


def run(
    folder: Path, place: Path, recipe: Json, teacher: Path | None, scores: tuple[str, ...]
) -> Run:
    """Train one student in a folder of its own."""
    (place / "teacher").mkdir(parents=True)
    (place / "dataset").symlink_to(folder / "dataset")
    if teacher is not None and recipe["teacher"] is not None:
        (place / "teacher" / "model.safetensors").symlink_to(teacher)
    path = place / "recipe.json"
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "workers.distill", str(path), "--workdir", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(done.stderr[-2000:])
    last = json.loads(done.stdout.splitlines()[-1])
    if last["type"] == "failure":
        return {"refused": str(last["message"])}
    got = last["scores"]["student"]
    seconds = recipe["training"]["batch_size"] / last["images_per_second"]
    return {
        **{name: 100 * float(got[name]) for name in scores},
        "seconds_per_step": seconds,
        "interval": got.get("ap_interval"),
        "parameters": last["parameters"]["student"],
    }


def keep(found: dict[str, list[Run]], row: str, done: Run) -> None:
    """Keep a run and tell of it."""
    found[row].append(done)
    rich.console.Console(stderr=True, highlight=False).print(row, len(found[row]) - 1, done)


def summarised(runs: list[Run], alone: list[Run], experiment: Experiment) -> Json:
    """Return mean and spread of each score, and the difference to the student alone by seed."""
    refused = [run["refused"] for run in runs if "refused" in run]
    if refused:
        return {"refused": refused[0]}
    several = len(runs) > 1
    values = {name: [float(run[name]) for run in runs] for name in experiment.scores}  # type: ignore[arg-type]  # scores are numbers
    first = experiment.scores[0]
    apart = [
        one - float(other[first])  # type: ignore[arg-type]  # scores are numbers
        for one, other in zip(values[first], alone, strict=True)
    ]
    return {
        "scores": {name: statistics.fmean(one) for name, one in values.items()},
        "deviations": {name: statistics.stdev(one) for name, one in values.items()}
        if several
        else None,
        "interval": runs[0]["interval"],
        "difference_mean": statistics.fmean(apart),
        "difference_sd": statistics.stdev(apart) if several else None,
        "seeds": len(runs),
        "p_value": leaderboard.sign_flip_p_value(apart) if several else None,
        "seconds_per_step": statistics.median(float(run["seconds_per_step"]) for run in runs),  # type: ignore[arg-type]  # a number
        "parameters": runs[0]["parameters"],
    }


def markdown(summary: dict[str, Json], experiment: Experiment) -> str:
    """Return the table, in the order in which rows were asked for."""
    names = [name.upper() if name.startswith("ap") else name for name in experiment.scores]
    headings = ["method", *names, "interval", "difference", "p", "s/step"]
    lines = [headings, ["---"] * len(headings)]
    lines += [cells(row, value, experiment) for row, value in summary.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: str, value: Json, experiment: Experiment) -> list[str]:
    """Return one row of the table."""
    if "refused" in value:
        return [row, f"refused: {value['refused']}", *[""] * (len(experiment.scores) + 3)]

    def score(name: str) -> str:
        spread = value["deviations"]
        return f"{value['scores'][name]:.1f}" + (f" ± {spread[name]:.1f}" if spread else "")

    interval, p_value, spread = value["interval"], value["p_value"], value["difference_sd"]
    difference = f"{value['difference_mean']:+.1f}" + (f" ± {spread:.1f}" if spread else "")
    compared = row not in {ALONE, "teacher"}
    return [
        row,
        *(score(name) for name in experiment.scores),
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "",
        difference if compared else "",
        f"{p_value:.2f}" if compared and p_value is not None else "",
        f"{value['seconds_per_step']:.3f}",
    ]


if __name__ == "__main__":
    main()
