"""How good teacher, baseline, KD and DKD are on the digits, over several seeds.

    python -m benchmarks.digits [--seeds 5] [--first-seed 0] [--markdown]

Networks and trainings are those of `digit_pairs.py`. Each seed trains its own teacher; all
methods of a seed share it, and the student's start. Scores are of the test split (360 images).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rich.console

from benchmarks import digit_pairs
from models_registry import catalog

Scores = dict[str, dict[str, float]]


def main() -> None:
    """Run all seeds; print a line for each on stderr, and the summary on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    asked = parser.parse_args()
    say = rich.console.Console(stderr=True, highlight=False).print
    rows: list[Scores] = []
    with tempfile.TemporaryDirectory(prefix="retort-digits-") as name:
        folder = Path(name)
        prepare(folder)
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            rows.append(run_seed(folder, seed))
            say(seed, {role: f"{100 * got['accuracy']:.2f}" for role, got in rows[-1].items()})
    found = summary(rows)
    text = markdown(found, len(rows)) if asked.markdown else json.dumps(found, indent=2)
    sys.stdout.write(text + "\n")


def prepare(folder: Path, name: str = "digits") -> None:
    """Write a built-in data set in the engine's form."""
    request = folder / "request.json"
    request.write_text(json.dumps({"kind": "builtin", "name": name}))
    _run("workers.distill.inspection.uploads", str(request), "--workdir", str(folder))


def run_seed(folder: Path, seed: int) -> Scores:
    """Train a teacher and all students of one seed; return accuracy and seconds by role."""
    teacher, taught = run_recipe(
        folder,
        f"{seed}-teacher",
        digit_pairs.TEACHER,
        {"name": "ce"},
        digit_pairs.TEACHER_TRAINING,
        seed,
        None,
    )
    scores = {"teacher": taught}
    methods = {"baseline": {"name": "ce"}, **digit_pairs.METHODS}
    for name, method in methods.items():
        _, scores[name] = run_recipe(
            folder,
            f"{seed}-{name}",
            digit_pairs.STUDENT,
            method,
            digit_pairs.STUDENT_TRAINING,
            seed,
            teacher,
        )
    return scores


def run_recipe(
    folder: Path,
    name: str,
    network: dict[str, Any],
    method: dict[str, Any],
    training: dict[str, Any],
    seed: int,
    teacher: Path | None,
) -> tuple[Path, dict[str, float]]:
    """Run the engine once; return the student's file, its accuracies and the seconds."""
    workdir = folder / name
    (workdir / "teacher").mkdir(parents=True)
    (workdir / "dataset").symlink_to(folder / "dataset")
    record = json.loads((folder / "dataset" / "dataset.json").read_text())
    size, classes = record["input"], len(record["classes"])
    if teacher is not None:
        (workdir / "teacher" / "model.safetensors").symlink_to(teacher)
    recipe = {
        "version": 1,
        "task": "classification",
        "teacher": teacher and {**digit_pairs.TEACHER, "classes": classes, "input": size},
        "student": {**network, "classes": classes, "input": size},
        "initial": False,
        "method": method,
        "training": catalog.complete_training({**training, "seed": seed}),
        "baseline": False,
        "report": False,
        "accelerator": "cpu",
        "provenance": {},
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    began = time.perf_counter()
    lines = _run("workers.distill", str(path), "--workdir", str(workdir))
    score = lines[-1]["scores"]["student"]["accuracy"]
    points = [p for line in lines if line["type"] == "metrics" for p in line["points"]]
    best = max(p["value"] for p in points if p["key"] == "validation/accuracy")
    seconds = time.perf_counter() - began
    got = {"accuracy": score, "validation": best, "seconds": seconds}
    return workdir / "student.safetensors", got


def _run(module: str, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def summary(rows: list[Scores]) -> dict[str, dict[str, float]]:
    """Return mean and spread by role, and each role's difference to the baseline by seed."""
    found: dict[str, dict[str, float]] = {}
    for role in rows[0]:
        accuracy = [row[role]["accuracy"] for row in rows]
        difference = [row[role]["accuracy"] - row["baseline"]["accuracy"] for row in rows]
        found[role] = {
            "accuracy_mean": statistics.fmean(accuracy),
            "accuracy_sd": statistics.stdev(accuracy) if len(rows) > 1 else 0.0,
            "validation_mean": statistics.fmean(row[role]["validation"] for row in rows),
            "difference_mean": statistics.fmean(difference),
            "difference_sd": statistics.stdev(difference) if len(rows) > 1 else 0.0,
            "seeds_above_baseline": sum(value > 0 for value in difference),
            "seconds_mean": statistics.fmean(row[role]["seconds"] for row in rows),
        }
    return found


def markdown(found: dict[str, dict[str, float]], seeds: int) -> str:
    """Return the summary as a table, in percent."""
    lines = [
        "| | accuracy, mean ± sd over seeds | difference to the baseline | seeds above it |",
        "|---|---|---|---|",
    ]
    for role, got in found.items():
        mean, spread = 100 * got["accuracy_mean"], 100 * got["accuracy_sd"]
        more, apart = 100 * got["difference_mean"], 100 * got["difference_sd"]
        above = f"{got['seeds_above_baseline']:.0f} of {seeds}"
        beside = "| |" if role == "baseline" else f"{more:+.2f} ± {apart:.2f} | {above} |"
        lines.append(f"| {role} | {mean:.2f} ± {spread:.2f} | {beside}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
