"""A transformer without its classifier into a small convolutional backbone, on the digits.

    nice -n 19 python -m benchmarks.backbones --output FILE.jsonl [--seeds 5] [--epochs N]

Each seed trains a ViT by the labels, takes its classifier out, and distils it by each of `METHODS`
into a student that sees no label. Scores of the test split: k-NN and linear probe of the teacher,
of each student, and of the student before training. A line is written after each seed, and seeds
that are in the file already are left out, so a run that was stopped goes on.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import rich.console

from benchmarks import any_teacher, digit_pairs, digits, line_files
from models_registry import catalog
from workers.distill.files import tensorfile
from workers.distill.networks import backbones, weights

TEACHER: dict[str, Any] = {
    "network": "timm/vit_tiny_patch16_224",
    "arguments": {"patch_size": 2, "embed_dim": 48, "depth": 4, "num_heads": 4},
}
TEACHER_TRAINING: dict[str, Any] = {
    "recipe": "small",
    # After 30 epochs its neighbours say less than those of an untrained convolutional network.
    "epochs": 100,
    "optimizer": {"name": "adamw", "learning_rate": 0.002},
}
METHODS: dict[str, dict[str, Any]] = {
    "embedkd": {"name": "embedkd"},
    "at": {"name": "at"},
    "embedkd + at": {"name": "combine", "methods": [{"name": "embedkd"}, {"name": "at"}]},
}
METRICS = ("knn", "linear_probe", "cka")


def main() -> None:
    """Run all seeds, and print the summary of all lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backbones")
    parser.add_argument("--output", type=Path, required=True, help="file of lines, one a seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of teachers and students; by default theirs")
    options = parser.parse_args()
    say = rich.console.Console(stderr=True, highlight=False).print
    lines = line_files.read(options.output)
    with tempfile.TemporaryDirectory(prefix="retort-backbones-") as name:
        folder = Path(name)
        digits.prepare(folder)
        for seed in range(options.seeds):
            if any(line["seed"] == seed for line in lines):
                continue
            line = run_seed(folder, seed, options.epochs)
            lines.append(line)
            line_files.append(options.output, line)
            say(line)
    sys.stdout.write(json.dumps(summary(lines), indent=2) + "\n")


def run_seed(folder: Path, seed: int, epochs: int | None) -> dict[str, Any]:
    """Train a teacher and its students; return the scores of all by role."""
    stop = {} if epochs is None else {"epochs": epochs}
    training = {**TEACHER_TRAINING, **stop}
    name = f"{seed}-teacher"
    file, _ = digits.run_recipe(folder, name, TEACHER, {"name": "ce"}, training, seed, None)
    backbone, _ = weights.rebuild(file)
    backbones.remove_classifier(backbone)
    tensorfile.write(file, backbone.state_dict(), {"format": "pt"})
    line: dict[str, Any] = {"seed": seed}
    for name, method in METHODS.items():
        scores = distil(folder, folder / f"{seed}-{name}", file, method, {**stop, "seed": seed})
        line["teacher"], line["before training"] = scores["teacher"], scores["baseline"]
        line[name] = scores["student"]
    return line


def distil(
    folder: Path, workdir: Path, teacher: Path, method: dict[str, Any], training: dict[str, Any]
) -> dict[str, Any]:
    """Distil once; return the test scores by role, the baseline's before training."""
    (workdir / "teacher").mkdir(parents=True)
    (workdir / "teacher" / "model.safetensors").symlink_to(teacher)
    (workdir / "dataset").symlink_to(folder / "dataset")
    size = {"classes": 0, "input": any_teacher.size_of(folder / "dataset")}
    recipe = {
        "task": "embedding",
        "teacher": {**TEACHER, **size},
        "student": {**digit_pairs.STUDENT, **size},
        "method": method,
        "training": catalog.complete_training({**digit_pairs.STUDENT_TRAINING, **training}),
        "baseline": True,
        "report": False,
        "accelerator": "cpu",
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    scores: dict[str, Any] = any_teacher.run_engine(path, workdir)[-1]["scores"]
    return scores


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and sample standard deviations over the seeds; of shares in percent."""
    found: dict[str, Any] = {"seeds": len(lines)}
    for role in ("teacher", "before training", *METHODS):
        for metric in METRICS:
            values = [100 * line[role][metric] for line in lines if metric in line[role]]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                found.setdefault(role, {})[metric] = {
                    "mean": round(statistics.mean(values), 2),
                    "sd": round(spread, 2),
                }
    return found


if __name__ == "__main__":
    main()
