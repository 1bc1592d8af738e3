"""How good every data-free method is on the digits, over several seeds, from one teacher.

    OMP_NUM_THREADS=1 python -m benchmarks.datafree_digits [--seeds 3] [--first-seed 0]
        [--rows ssdkd,fast]
        [--part real,methods,ablation,scale,shares] [--pair convnet|resnet] [--markdown]
        [--folder DIR [--seconds 150]]

The small experiment of the field guide: a teacher of 24,058 parameters trained on 1,257 real
digits, students of 6,274, 540 updates of batches of 64 for each of them. Beside the methods stand
noise, all real images and a tenth of them. Scores are of the test split (360 images) after the last
epoch; seconds are those of the processor, evaluation of every epoch included. Seeds vary student,
generator and draws; the teacher is one.

With `--folder`, data set, teacher and the result of each row and seed stay there and are not made
again, so that a long table can be made in pieces: no row begins after `--seconds`.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeAlias

import rich.console
import torch

from workers.distill.data import catalog as datasets
from workers.distill.data import dataset, splits
from workers.distill.run import run
from workers.distill.runtime import events, signals

Json = dict[str, Any]  # recipes and lines of the engine

Pair: TypeAlias = tuple[Json, Json, Json]
"""A teacher, how it was trained, and a student."""

SMALL_TRAINING: Json = {
    "epochs": 40,
    "batch_size": 64,
    "optimizer": {
        "name": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": True,
    },
    "schedule": {"name": "cosine"},
}
PAIRS: dict[str, Pair] = {
    "convnet": (
        {"network": "retort/convnet", "arguments": {"widths": [16, 32, 64]}},
        SMALL_TRAINING,
        {"network": "retort/convnet", "arguments": {"widths": [8, 16, 32]}},
    ),
    "resnet": ({"network": "retort/resnet20"}, {"epochs": 30}, {"network": "retort/resnet8"}),
}
EPOCHS, UPDATES = 27, 20
TRAINING: Json = {
    "epochs": EPOCHS,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "final_factor": 0.002},
}
POOL: Json = {"batch_size": 64, "student_steps": UPDATES, "warmup_calls": 3, "buffer_images": 640}
LATENT: Json = {
    **POOL,
    "steps": 15,
    "latent_size": 64,
    "width": 24,
    "learning_rate": 2e-3,
    "latent_learning_rate": 0.01,
}
STREAM: Json = {"batch_size": 64, "student_steps": 5, "calls_per_epoch": UPDATES // 5}
GENERATOR: Json = {**STREAM, "generator": "small", "latent_size": 64, "width": 24}
WEIGHTS: Json = {"bn_weight": 1.0, "onehot_weight": 1.0, "adversarial_weight": 1.0}
SSDKD: Json = {
    "name": "ssdkd",
    **WEIGHTS,
    "temperature": 4.0,
    "bn_momentum": 0.0,
    "synthesis": {**LATENT, "data_scale": None},
}
FAST: Json = {"name": "fast", **WEIGHTS, "temperature": 4.0, "bn_momentum": 0.0}
NO_META: Json = {**LATENT, "meta": "none", "restart_epoch": None}

METHODS: dict[str, Json] = {
    "noise, Gaussian": {"name": "noise", "synthesis": STREAM},
    "noise, uniform": {"name": "noise", "synthesis": {**STREAM, "distribution": "uniform"}},
    "dafl": {"name": "dafl", "synthesis": GENERATOR},
    "zskt": {"name": "zskt", "synthesis": GENERATOR},
    "dfad": {"name": "dfad", "synthesis": GENERATOR},
    "dfq": {
        "name": "dfq",
        "synthesis": {**GENERATOR, "student_steps": 10, "calls_per_epoch": UPDATES // 10},
    },
    "mad": {
        "name": "mad",
        "synthesis": {**GENERATOR, "student_steps": 10, "calls_per_epoch": UPDATES // 10},
    },
    "deepinversion, 100 steps": {
        "name": "deepinversion",
        "temperature": 4.0,
        "bn_weight": 1.0,
        "synthesis": {**POOL, "steps": 100},
    },
    "cmi, 60 steps": {
        "name": "cmi",
        "temperature": 4.0,
        "bank_size": 640,
        "bank_draws": 256,
        "synthesis": {**LATENT, "steps": 60},
    },
    "fast": {**FAST, "synthesis": {**LATENT, "restart_epoch": None}},
    "fast, no meta-learning": {**FAST, "synthesis": NO_META},
    "ssdkd": SSDKD,
    "nayer, 30 steps": {
        "name": "nayer",
        **WEIGHTS,
        "temperature": 4.0,
        "code_size": 64,
        "synthesis": {
            **LATENT,
            "steps": 30,
            "calls_per_epoch": 1,
            "learning_rate": 4e-3,
            "latent_learning_rate": 0.0,
        },
    },
    "spaceshipnet, 60 steps": {
        "name": "spaceshipnet",
        "temperature": 4.0,
        "synthesis": {**LATENT, "steps": 60},
    },
}
ABLATION: dict[str, Json] = {
    "both modules": SSDKD,
    "no diversity": {**SSDKD, "diversity": False},
    "no difficulty": {**SSDKD, "difficulty": False},
    "no modulation (neither)": {**SSDKD, "diversity": False, "difficulty": False},
    "no priority sampling": {**SSDKD, "prioritise": False},
    "neither module": {**SSDKD, "diversity": False, "difficulty": False, "prioritise": False},
    "weights in priorities alone": {**SSDKD, "correct_loss": False},
    "weights over their largest": {**SSDKD, "normalise_weights": True},
    "no adversarial term": {**SSDKD, "adversarial_weight": 0.0},
    "no batch-norm term": {**SSDKD, "bn_weight": 0.0},
    "targets by the teacher": {**SSDKD, "target": "argmax"},
    "modulation over its mean": {**SSDKD, "normalise_modulation": True},
    "5 synthesis steps": {**SSDKD, "synthesis": {**SSDKD["synthesis"], "steps": 5}},
}
SHARES = (0.01, 0.05, 0.1, 0.25)
SCALE: dict[str, Json] = {
    **{
        f"{share:.0%}: buffer, {UPDATES} updates an epoch": {
            **SSDKD,
            "synthesis": {**SSDKD["synthesis"], "buffer_images": round(share * 1257)},
        }
        for share in SHARES
    },
    **{
        f"{share:.0%}: buffer and updates": {
            **SSDKD,
            "synthesis": {
                **SSDKD["synthesis"],
                "buffer_images": None,
                "student_steps": None,
                "data_scale": share,
            },
        }
        for share in SHARES
    },
}
REAL: dict[str, tuple[str, int]] = {
    # The set, and the passes over it that make 540 updates.
    "kd, all 1,257 real images": ("dataset", EPOCHS),
    "kd, 126 real images": ("tenth", EPOCHS * UPDATES // 2),
}
SHARED: dict[str, Json] = {
    # Every method with a buffer of a share of the training images, and the same updates.
    f"{share:.0%}: {name}": {
        **method,
        "synthesis": {**method["synthesis"], "buffer_images": round(share * 1257)},
    }
    for share in (0.1, 0.25)
    for name, method in {
        "ssdkd": SSDKD,
        "ssdkd, targets by the teacher": {**SSDKD, "target": "argmax"},
        "fast, no meta-learning": METHODS["fast, no meta-learning"],
        "deepinversion, 100 steps": METHODS["deepinversion, 100 steps"],
    }.items()
}
PARTS: dict[str, dict[str, Any]] = {
    "real": REAL,
    "methods": METHODS,
    "ablation": ABLATION,
    "scale": SCALE,
    "shares": SHARED,
}


def main() -> None:
    """Run the rows; print each on stderr as it is done, and all as JSON or Markdown on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datafree_digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--part", default="methods", help=f"of {', '.join(PARTS)}; with commas")
    parser.add_argument("--pair", choices=list(PAIRS), default="convnet")
    parser.add_argument("--rows", help="names, or beginnings of names, with commas")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--folder", type=Path, help="keeps what was made, and continues from it")
    parser.add_argument("--seconds", type=float, help="no row begins after so many")
    asked = parser.parse_args()
    if asked.seconds is not None and asked.folder is None:
        parser.error("--seconds needs --folder, from which the next call continues")
    ends = math.inf if asked.seconds is None else time.monotonic() + asked.seconds
    say = rich.console.Console(stderr=True, highlight=False).print
    wanted = None if asked.rows is None else tuple(asked.rows.split(","))
    unknown = set(asked.part.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    rows = {name: row for part in asked.part.split(",") for name, row in PARTS[part].items()}
    table: dict[str, list[Json]] = {}
    with tempfile.TemporaryDirectory(prefix="retort-datafree-") as name:
        folder = Path(name) if asked.folder is None else asked.folder / asked.pair
        bench = Bench(folder, PAIRS[asked.pair])
        say(f"teacher {100 * bench.teach():.2f}")
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            for row, method in rows.items():
                if wanted is not None and not row.startswith(wanted):
                    continue
                if not bench.has(row, seed) and time.monotonic() > ends:
                    say(f"{row}, seed {seed}: left for the next call")
                    continue
                table.setdefault(row, []).append(bench.row(row, method, seed))
                say(row, seed, f"{100 * table[row][-1]['accuracy']:.2f}")
    summary = {row: amounts(got) for row, got in table.items()}
    text = markdown(summary) if asked.markdown else json.dumps(summary, indent=2)
    sys.stdout.write(text + "\n")


class Bench:
    """A folder with the digits, a tenth of them, and a teacher."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        self._folder = folder
        self._teacher, self._taught_by, self._student = pair
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tenth").exists():
            self._write(folder)
        self._input = dataset.load(folder / "dataset").record.input.model_dump()

    def _write(self, folder: Path) -> None:
        datasets.DATASETS["digits"].write(folder / "dataset")
        whole = dataset.load(folder / "dataset")
        parts = {name: whole.split(name) for name in dataset.SPLITS}
        train = parts["train"]
        (chosen,) = splits.stratified(train.labels.numpy(), (round(0.1 * len(train.labels)),))
        tenth = {name: (part.images, part.labels) for name, part in parts.items()}
        tenth["train"] = (train.images[chosen].clone(), train.labels[chosen].clone())
        counts = {**whole.record.splits, "train": len(chosen)}
        dataset.write(folder / "tenth", whole.record.model_copy(update={"splits": counts}), tenth)

    def teach(self) -> float:
        """Train the teacher, and return its accuracy on the test split."""
        if not self._result("teacher").exists():
            line = self._run("teacher", self._teacher, {"name": "ce"}, self._taught_by, "dataset")
            self._keep("teacher", {"accuracy": line["scores"]["student"]["accuracy"]})
        return float(json.loads(self._result("teacher").read_text())["accuracy"])

    def has(self, row: str, seed: int) -> bool:
        """Whether the row's result was kept by an earlier call."""
        return self._result(f"{row}-{seed}").exists()

    def _result(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '-')}.json"

    def _keep(self, name: str, result: Json) -> None:
        part = self._result(name).with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(self._result(name))

    def row(self, row: str, method: Any, seed: int) -> Json:
        """Train one student; return its accuracy, the seconds, and the images it was shown."""
        if self.has(row, seed):
            kept: Json = json.loads(self._result(f"{row}-{seed}").read_text())
            return kept
        began = time.process_time()
        if isinstance(method, tuple):
            dataset, epochs = method
            kd = {"name": "kd", "task_weight": 0.0, "kd_weight": 1.0, "temperature": 4.0}
            training = {**TRAINING, "epochs": epochs, "seed": seed}
            line = self._run(f"{row}-{seed}", self._student, kd, training, dataset)
        else:
            training = {**TRAINING, "seed": seed}
            line = self._run(f"{row}-{seed}", self._student, method, training, "dataset")
        made = line.get("synthesis", {})
        result = {
            "accuracy": line["scores"]["student"]["accuracy"],
            "best": line.get("validation", {}).get("best"),
            "seconds": time.process_time() - began,
            "synthesis_seconds": made.get("synthesis_seconds"),
            "images": made.get("images"),
            "steps": line["steps"],
            "classes": made.get("buffer", {}).get("classes"),
        }
        self._keep(f"{row}-{seed}", result)
        return result

    def _run(self, name: str, network: Json, method: Json, training: Json, dataset: str) -> Json:
        workdir = self._folder / name.replace("/", "-")
        shutil.rmtree(workdir, ignore_errors=True)  # of a call that was stopped
        workdir.mkdir()
        (workdir / "dataset").symlink_to(self._folder / dataset)
        taught = self._folder / "teacher" / "student.safetensors"
        teacher = None
        if name != "teacher":
            (workdir / "teacher").mkdir()
            (workdir / "teacher" / "model.safetensors").symlink_to(taught)
            teacher = self._choice(self._teacher)
        recipe = {
            "version": 1,
            "teacher": teacher,
            "student": self._choice(network),
            "method": method,
            "training": training,
            "report": False,
            "accelerator": "cpu",
        }
        path = workdir / "recipe.json"
        path.write_text(json.dumps(recipe))
        lines = workdir / "lines.jsonl"
        descriptor = os.open(lines, os.O_WRONLY | os.O_CREAT)
        code = run.execute(path, workdir, events.Reporter(descriptor), signals.Stop())
        os.close(descriptor)
        last: Json = json.loads(lines.read_text().splitlines()[-1])
        if code:
            raise SystemExit(f"{name}: {last['message']}")
        return last

    def _choice(self, network: Json) -> Json:
        return {**network, "classes": 10, "input": self._input}


def amounts(seeds: list[Json]) -> Json:
    """Return mean and spread of what the seeds gave."""
    accuracy = [100 * got["accuracy"] for got in seeds]
    return {
        "accuracy": [round(value, 2) for value in accuracy],
        "mean": round(statistics.mean(accuracy), 2),
        "spread": round(statistics.stdev(accuracy), 2) if len(accuracy) > 1 else None,
        "cpu_seconds": round(statistics.mean(got["seconds"] for got in seeds), 1),
        "images": seeds[0]["images"],
        "updates": seeds[0]["steps"],
        "classes": seeds[0]["classes"],
    }


def markdown(summary: dict[str, Json]) -> str:
    """Return the rows as a table."""
    lines = [
        "| row | accuracy: mean ± sd | each seed | CPU s | images made | updates |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row, got in summary.items():
        each = ", ".join(f"{value:.1f}" for value in got["accuracy"])
        spread = "" if got["spread"] is None else f" ± {got['spread']:.1f}"
        images = "none" if got["images"] is None else f"{got['images']:,}"
        lines.append(
            f"| {row} | {got['mean']:.1f}{spread} | {each} | {got['cpu_seconds']:.0f} | {images} | "
            f"{got['updates']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
