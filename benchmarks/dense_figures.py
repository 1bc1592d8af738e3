"""How good methods of detection and segmentation are on composed scenes, over several seeds.

    python -m benchmarks.dense_figures [--experiment detection] [--methods mimic,pkd,mimic+pkd]
        [--seeds 3] [--first-seed 0] [--steps N] [--together] [--folder FOLDER] [--markdown]
        [--times] [--write]

The small experiment of the guide of dense prediction (8.3): scenes of 96x96 composed of real digits
on real photographs, the recipe `small_dense`, a teacher of width 24 with two blocks a stage and a
student of width 8 with one. Each seed trains its own teacher; all rows of a seed share it, the
student's start and the order of the images. `ce`, the student alone, is always there.
Hyper-parameters are those that the service takes, with `balance: auto`; a row `a+b` combines two
methods, `rcka_classes` is the class term of densepcka alone, and `densepcka_images` has a centred
kernel for each image.

Experiments: `detection` (FCOS), `distributions` (FCOS whose head predicts distributions over the
sides of boxes, which method ld needs), `proposals` (Faster R-CNN) and `segmentation`. The recipe's
schedule runs over 750 steps, so with 600 it ends before the rate is zero. Segmentation makes all
750, at twice the rate and with class weights, and is validated at its end alone. Faster R-CNN,
whose steps are slower, makes one epoch of 250.

Scores are of the test split (250 scenes), which shares neither digit nor photograph with the
training split; the interval of the JSON is that of the first seed, over test images alone; p is
the exact paired sign-flip test. `--together` trains the students of a seed side by side, with one
forward pass of the teacher for all of them: the students are the same, byte for byte, in less time,
but seconds a step are not known then; `--times` measures them by a short training of each row of
the first seed alone. `--folder` keeps all runs, and goes on from those that are
there. `--write` adds the rows that are one method to the figures by which the service ranks
methods; those of another experiment of the same task add what is not there yet.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console

from benchmarks import digits
from models_registry import catalog, errors
from models_registry.jobs import measured_methods
from models_registry.studies import leaderboard

Json = dict[str, Any]  # configs and lines of the engine
Run = dict[str, float | str | list[float] | None]
"""Scores, seconds a step and the interval of one student, or why it was refused."""

ALONE = "ce"
TIMED_STEPS = 40
TEACHER_WIDTH: Json = {"width": 24, "blocks": 2}
STUDENT_WIDTH: Json = {"width": 8, "blocks": 1}


@dataclass(frozen=True)
class Experiment:
    """What is trained for a task, and which scores are told; the first one counts.

    `steps` None makes as many as the training has.
    """

    task: str
    dataset: str
    teacher: Json
    student: Json
    methods: str
    scores: tuple[str, ...]
    training: Json
    steps: int | None


def _detectors(
    network: str,
    methods: str,
    teacher: Json,
    student: Json,
    *,
    training: Json | None = None,
    steps: int | None = 600,
) -> Experiment:
    """Return an experiment of detection with a large and a small network of one kind."""
    return Experiment(
        task="detection",
        dataset="digit_scenes",
        teacher={"network": network, "arguments": {**TEACHER_WIDTH, **DETECTOR, **teacher}},
        student={"network": network, "arguments": {**STUDENT_WIDTH, **DETECTOR, **student}},
        methods=methods,
        scores=("ap", "ap50", "ap75"),
        training={"recipe": "small_dense", **(training or {})},
        steps=steps,
    )


DETECTOR: Json = {"detections_per_image": 30}
FCOS_ANCHORS: Json = {"anchor_sizes": [2, 4]}
DISTRIBUTIONS: Json = {**FCOS_ANCHORS, "reg_max": 16}
EXPERIMENTS = {
    "detection": _detectors(
        "retort/fcos",
        "mimic,pkd,densepcka,densepcka+mimic,cwd,at,headkd,headdkd,reviewkd,headdkd+reviewkd,"
        "crosskd",
        {"head_convs": 2, **FCOS_ANCHORS},
        {"head_convs": 1, **FCOS_ANCHORS},
    ),
    "distributions": _detectors(
        "retort/fcos",
        "ld,headkd,headkd+ld,crosskd",
        {"head_convs": 2, **DISTRIBUTIONS},
        {"head_convs": 1, **DISTRIBUTIONS},
    ),
    "proposals": _detectors(
        "retort/fasterrcnn",
        "roikd,roidkd,reviewkd,roidkd+reviewkd",
        {},
        # Else these two layers were four fifths of the student.
        {"representation_size": 64},
        training={"epochs": 1},
        steps=None,
    ),
    "segmentation": Experiment(
        task="segmentation",
        dataset="digit_scenes_masks",
        teacher={"network": "retort/segmenter", "arguments": TEACHER_WIDTH},
        student={"network": "retort/segmenter", "arguments": STUDENT_WIDTH},
        methods="pixelkd,pixeldkd,cwd,pkd,densepcka,cirkd,skd,at",
        scores=("miou", "accuracy"),
        # Strokes are a twelfth of the pixels: with equal weights all learn the background alone.
        training={
            "recipe": "small_dense",
            "optimizer": {"learning_rate": 4e-3},
            "class_weights": "auto",
            "evaluate_every_epochs": 3,
        },
        steps=None,
    ),
}
TASKS_OWN = ("detection", "segmentation")
"""Experiments whose rows count where another one of their task has the same method."""
MEASURED_ON = {
    "detection": "scenes of 96x96 pixels composed of digits and photographs, small networks, "
    "600 steps; methods of proposals: 250 steps",
    "segmentation": "scenes of 96x96 pixels composed of digits and photographs, small networks, "
    "750 steps, class weights",
}
VARIANTS: dict[str, Json] = {
    "rcka_classes": {
        "name": "densepcka",
        "pcka_weight": 0,
        "transposed_weight": 0,
        "classes_weight": 10,
    },
    # A kernel for each image tells a segmenter's pictures apart, one for each class does not.
    "densepcka_images": {
        "name": "densepcka",
        "axis": "batch",
        "centered": True,
        "transposed_weight": 0,
    },
}
"""Rows that are a method with other hyper-parameters than its defaults."""


def main() -> None:
    """Run all seeds; print a line for each run on stderr, and the table on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense_figures")
    parser.add_argument("--experiment", choices=EXPERIMENTS, default="detection")
    parser.add_argument("--methods", help=f"rows, besides {ALONE}; a+b combines two")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each training; the experiment's if left out")
    parser.add_argument("--together", action="store_true", help="train a seed's rows as one group")
    parser.add_argument(
        "--times", action="store_true", help=f"train each row alone for {TIMED_STEPS} steps as well"
    )
    parser.add_argument("--folder", type=Path, help="keep runs here, and go on from those in it")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    parser.add_argument(
        "--write", action="store_true", help=f"add the rows to {measured_methods.PATH.name}"
    )
    asked = parser.parse_args()
    experiment = EXPERIMENTS[asked.experiment]
    rows = [ALONE, *(name for name in (asked.methods or experiment.methods).split(",") if name)]
    try:
        choices = {name: method_of(name) for name in rows}
    except errors.Refused as error:
        parser.error(str(error))
    found: dict[str, list[Run]] = {"teacher": [], **{name: [] for name in choices}}
    with tempfile.TemporaryDirectory(prefix="retort-dense-figures-") as scratch:
        folder = Path(asked.folder or scratch) / asked.experiment
        if not (folder / "dataset" / "dataset.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            digits.prepare(folder, experiment.dataset)
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            runs = run_seed(folder, experiment, seed, choices, asked.steps, asked.together)
            for row, done in runs:
                keep(found, row, done)
        if asked.times:
            for row, choice in choices.items():
                seconds = seconds_per_step(folder, experiment, asked.first_seed, row, choice)
                found[row][0]["seconds_per_step"] = seconds
    summary = {row: summarised(runs, found[ALONE], experiment) for row, runs in found.items()}
    if asked.write:
        made = measured(measured_methods.figures(), asked.experiment, summary)
        measured_methods.PATH.write_text(json.dumps(made, indent=2) + "\n")
    text = markdown(summary, experiment) if asked.markdown else json.dumps(summary, indent=2)
    sys.stdout.write(text + "\n")


def run_seed(
    folder: Path,
    experiment: Experiment,
    seed: int,
    choices: dict[str, Json],
    steps: int | None,
    together: bool,
) -> Iterator[tuple[str, Run]]:
    """Train the teacher of a seed, and yield it and each of its students."""
    most = steps or experiment.steps
    limit = {} if most is None else {"max_steps": most}
    training = {**experiment.training, **limit, "seed": seed}
    place = folder / f"{seed}-teacher"
    [(_, taught)] = run(
        folder, place, {"teacher": recipe_of(folder, experiment, None, training)}, None, experiment
    )
    yield "teacher", taught
    recipes = {row: recipe_of(folder, experiment, one, training) for row, one in choices.items()}
    if together and len(recipes) > 1:
        # A group agrees in its teacher, so the student alone is told of it, and does not ask it.
        taught_by = next(one["teacher"] for one in recipes.values() if one["teacher"])
        recipes = {row: {**one, "teacher": taught_by} for row, one in recipes.items()}
        groups = [recipes]
    else:
        groups = [{row: recipe} for row, recipe in recipes.items()]
    for group in groups:
        name = f"{seed}-{'-'.join(group) if len(group) == 1 else 'together'}"
        yield from run(folder, folder / name, group, place / "student.safetensors", experiment)


def seconds_per_step(
    folder: Path, experiment: Experiment, seed: int, row: str, choice: Json
) -> float | None:
    """Return the seconds of a step of a row that is trained alone, with the teacher of a seed.

    None where it was refused.
    """
    training = {**experiment.training, "max_steps": TIMED_STEPS, "seed": seed}
    recipe = recipe_of(folder, experiment, choice, training)
    place, teacher = folder / f"{seed}-time-{row}", folder / f"{seed}-teacher"
    [(_, done)] = run(folder, place, {row: recipe}, teacher / "student.safetensors", experiment)
    seconds = done.get("seconds_per_step")
    return None if seconds is None else float(seconds)  # type: ignore[arg-type]  # a number


def method_of(row: str) -> Json:
    """Return the choice of method of a row, complete; raises `errors.Refused` for unknown ones."""
    names = row.split("+")
    choice: Json = VARIANTS.get(row, {"name": row})
    if len(names) > 1:
        choice = {"name": "combine", "methods": [{"name": name} for name in names]}
    return catalog.complete_method(choice)


def recipe_of(folder: Path, experiment: Experiment, method: Json | None, training: Json) -> Json:
    """Return the engine's recipe of a student; without a method, that of the teacher."""
    record = json.loads((folder / "dataset" / "dataset.json").read_text())
    beside = {"classes": len(record["classes"]), "input": record["input"]}
    complete = catalog.complete_training(training)
    has_teacher = method is not None and method["name"] != ALONE
    chosen = experiment.teacher if method is None else experiment.student
    return {
        "version": 1,
        "task": experiment.task,
        "teacher": {**experiment.teacher, **beside} if has_teacher else None,
        "student": {**chosen, **beside},
        "initial": False,
        "method": catalog.method_of_job(
            method or method_of(ALONE), task=experiment.task, training=complete
        ),
        "training": complete,
        "baseline": False,
        "report": False,
        "accelerator": "cpu",
        "provenance": {},
    }


def run(
    folder: Path,
    place: Path,
    recipes: dict[str, Json],
    teacher: Path | None,
    experiment: Experiment,
) -> list[tuple[str, Run]]:
    """Train the students of these rows, several side by side, in a folder of their own.

    What the folder already has of the same recipes is gone on from. Raises `RuntimeError` where it
    has other recipes, or where the engine ends without a last line for each row.
    """
    keys = {f"row-{number}": row for number, row in enumerate(recipes)}
    alone = len(recipes) == 1
    members: list[Json] = [{"key": key, "recipe": recipes[row]} for key, row in keys.items()]
    content: Json = members[0]["recipe"] if alone else {"version": 1, "members": members}
    path, kept = place / "recipe.json", place / "lines.json"
    if path.exists() and json.loads(path.read_text()) != content:
        raise RuntimeError(f"{path} has other recipes than are asked for; choose another --folder")
    if not kept.exists():
        (place / "teacher").mkdir(parents=True, exist_ok=True)
        links = {place / "dataset": folder / "dataset"}
        if teacher is not None and any(recipe["teacher"] for recipe in recipes.values()):
            links[place / "teacher" / "model.safetensors"] = teacher
        for link, there in links.items():
            if not link.is_symlink():
                link.symlink_to(there.resolve())
        path.write_text(json.dumps(content))
        kept.write_text(json.dumps(engine(path, place, count=len(recipes))))
    lines = json.loads(kept.read_text())
    found = {keys[line.get("member") or "row-0"]: line for line in lines}
    return [(row, scored(found[row], recipes[row], experiment, alone=alone)) for row in recipes]


def engine(path: Path, place: Path, *, count: int) -> list[Json]:
    """Return the engine's last line of each student; raises `RuntimeError` where one has none."""
    command = [sys.executable, "-m", "workers.distill", str(path), "--workdir", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    last = [line for line in lines if line["type"] in {"result", "failure"}]
    if len(last) != count:
        raise RuntimeError(f"the engine ended with code {done.returncode}: {done.stderr[-2000:]}")
    return last


def scored(last: Json, recipe: Json, experiment: Experiment, *, alone: bool) -> Run:
    """Return what a student's last line says of it."""
    if last["type"] == "failure":
        return {"refused": str(last["message"])}
    got = last["scores"]["student"]
    seconds = recipe["training"]["batch_size"] / last["images_per_second"]
    return {
        **{name: 100 * float(got[name]) for name in experiment.scores},
        "seconds_per_step": seconds if alone else None,
        "interval": got.get(f"{experiment.scores[0]}_interval"),
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
    seconds = [run["seconds_per_step"] for run in runs if run["seconds_per_step"] is not None]
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
        "each": values[first],
        "interval": runs[0]["interval"],
        "differences": apart,
        "seeds": len(runs),
        "p_value": leaderboard.sign_flip_p_value(apart) if several else None,
        "seconds_per_step": statistics.median(map(float, seconds)) if seconds else None,  # type: ignore[arg-type]  # numbers
        "parameters": runs[0]["parameters"],
    }


def measured(figures: Json, name: str, summary: dict[str, Json]) -> Json:
    """Return the figures by which the service ranks methods, with those of an experiment.

    Rows that combine methods, or change what a method takes by default, are no methods.
    """
    experiment = EXPERIMENTS[name]
    training = catalog.complete_training(experiment.training)
    known = figures.get(experiment.task, {}).get("methods", {})
    methods = dict(known)
    for row, value in summary.items():
        if row not in catalog.load().methods or row == ALONE or "refused" in value:
            continue
        if row in known and name not in TASKS_OWN:
            continue
        method = catalog.method_of_job(method_of(row), task=experiment.task, training=training)
        difference = round(statistics.fmean(value["differences"]), 2)
        found = {"difference": difference, "lowest": difference, "seeds": value["seeds"]}
        methods[row] = {method.get("balance") or "published": {**found, "pairs": 1}}
    section = {
        "made_with": "python -m benchmarks.dense_figures --experiment NAME --write",
        "measured_on": MEASURED_ON[experiment.task],
        "methods": dict(sorted(methods.items())),
    }
    return {**figures, experiment.task: section}


def markdown(summary: dict[str, Json], experiment: Experiment) -> str:
    """Return the table, in the order in which rows were asked for."""
    first, *others = (one.upper() if one.startswith("ap") else one for one in experiment.scores)
    headings = ["method", f"{first}: mean ± sd", "each seed", *others]
    headings += ["difference to the student alone, each seed", "p", "s/step"]
    lines = [headings, ["---"] * len(headings)]
    lines += [cells(row, value, experiment) for row, value in summary.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: str, value: Json, experiment: Experiment) -> list[str]:
    """Return one row of the table."""
    first, *others = experiment.scores
    if "refused" in value:
        return [row, f"refused: {value['refused']}", *[""] * (len(others) + 4)]
    spread, p_value, seconds = value["deviations"], value["p_value"], value["seconds_per_step"]
    mean = f"{value['scores'][first]:.1f}" + (f" ± {spread[first]:.1f}" if spread else "")
    compared = row not in {ALONE, "teacher"}
    return [
        row,
        mean,
        ", ".join(f"{one:.1f}" for one in value["each"]),
        *(f"{value['scores'][name]:.1f}" for name in others),
        ", ".join(f"{one:+.1f}" for one in value["differences"]) if compared else "",
        f"{p_value:.2f}" if compared and p_value is not None else "",
        "" if seconds is None else f"{seconds:.3f}",
    ]


if __name__ == "__main__":
    main()
