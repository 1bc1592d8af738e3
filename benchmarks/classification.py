"""How good every classification method is on the digits, over several seeds and two pairs.

    python -m benchmarks.classification [--data digits] [--seeds 5] [--first-seed 0]
        [--pairs narrow,vgg] [--methods kd,dkd] [--balance auto] [--at-once N] [--markdown]
        [--lines FILE] [--teachers FOLDER] [--read] [--write]

Each seed trains its own teacher; all methods of a seed share it, the student's start and the order
of the images, in one group run each pair. Hyper-parameters are the catalog's defaults, which were
made for CIFAR-100 and 240 epochs; `--balance` says how strong they may be beside the labels, what
counts epochs follows the training, and CRD draws fewer negatives than there are images.
`linear_probe`, which needs a trained student, is no row. Scores are of the test split. Seconds an
epoch come from a short run of each method alone, on one thread.

`--data photographs` is a second real set, with networks of timm: see `photographs.py`.

`--lines` appends the scores of each group to a file, one JSON object a line, and leaves out what is
there, so that seeds, or `--at-once` few rows of one, may be run one by one; `--teachers` keeps the
teachers for that. `--read` summarises such a file, and `--write` makes the figures from it by which
the service ranks methods.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console

from benchmarks import digit_pairs, digits, line_files, photographs
from models_registry import catalog
from models_registry.jobs import measured_methods
from models_registry.studies import leaderboard
from workers.distill import errors
from workers.distill.data import dataset
from workers.distill.methods import catalog as engine_catalog
from workers.distill.networks import catalog as networks

Json = dict[str, Any]  # specs and lines of the engine


@dataclass(frozen=True)
class Problem:
    """A data set, a teacher, and the pairs that it makes with students."""

    title: str
    prepare: Callable[[Path], None]
    """Write the data set in the engine's form into the folder `dataset` of a folder."""
    teacher: Json
    teacher_training: Json
    students: dict[str, Json]
    training: Json


def _prepare_photographs(folder: Path) -> None:
    photographs.write(folder / "dataset")


# Few updates: a rate that is adapted to each weight learns more in them.
PHOTOGRAPHS_TRAINING: Json = {
    "recipe": "small",
    "batch_size": 32,
    "optimizer": {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05},
    "schedule": {"name": "cosine"},
}
PROBLEMS = {
    "digits": Problem(
        title="the digits (8x8 pixels), small networks, 15 epochs",
        prepare=digits.prepare,
        teacher=digit_pairs.TEACHER,
        teacher_training=digit_pairs.TEACHER_TRAINING,
        students={
            "narrow": digit_pairs.STUDENT,
            "vgg": {"network": "retort/vgg8", "arguments": {"widths": [4, 8, 8, 16, 16]}},
        },
        training={"recipe": "small", "epochs": 15},
    ),
    "photographs": Problem(
        title="patches of photographs (96x96 pixels), networks of timm, 8 epochs",
        prepare=_prepare_photographs,
        teacher={"network": "timm/resnet10t", "arguments": {}},
        teacher_training={**PHOTOGRAPHS_TRAINING, "epochs": 12},
        students={"resnet": {"network": "timm/test_resnet", "arguments": {}}},
        training={**PHOTOGRAPHS_TRAINING, "epochs": 8},
    ),
}
FEWER: dict[str, Json] = {
    "crd": {"negatives": 512},
}
LSKD: Json = {"name": "kd", "kd_weight": 9.0, "temperature": 2.0, "standardize": "population"}
BESIDE: dict[str, Json] = {
    "kd (0.5 + 0.5)": {"name": "kd", "task_weight": 0.5, "kd_weight": 0.5},
    "kd + lskd": LSKD,
    "kd + lskd, task_weight 0.1": {**LSKD, "task_weight": 0.1},
    "kd + dot": {"name": "kd"},
    "mlld, task_weight 0.1": {"name": "mlld", "task_weight": 0.1},
    "mlld, reference": {"name": "mlld", "variant": "reference"},
    "crd + kd": {"name": "combine", "methods": [{"name": "crd", "negatives": 512}, {"name": "kd"}]},
}
TRAININGS: dict[str, Json] = {"kd + dot": {"optimizer": {"name": "dot"}}}
BASELINE = "ce"
OTHER_FAMILIES = ("datafree", "federated")
"""Those that learn from other images, or from clients'."""
NO_ROWS = ("combine", "linear_probe")
"""Methods that need others, or a trained student."""
MEASURED = measured_methods.PATH


def main() -> None:
    """Run all seeds and pairs; print a line for each on stderr, and the table on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classification")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data", choices=PROBLEMS, default="digits")
    parser.add_argument("--pairs", default="", help="pairs of the data set; all")
    parser.add_argument("--methods", default="", help="rows to run besides the baseline; all")
    parser.add_argument("--balance", choices=["auto", "published"], default="auto")
    parser.add_argument("--at-once", type=int, default=0, help="rows trained side by side; all")
    parser.add_argument(
        "--lines", type=Path, help="append the scores of each group to this file, and go on from it"
    )
    parser.add_argument("--teachers", type=Path, help="folder that keeps the teachers")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"train nothing: make {MEASURED.name} from the file of --lines",
    )
    parser.add_argument(
        "--read", action="store_true", help="train nothing: summarise the file of --lines"
    )
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    parser.add_argument("--no-times", action="store_true", help="leave out seconds an epoch")
    options = parser.parse_args()
    say = rich.console.Console(stderr=True, highlight=False).print
    if (options.write or options.read) and options.lines is None:
        parser.error("--write and --read need the file of --lines")
    lines = line_files.read(options.lines)
    if options.write:
        made = {**measured_methods.figures(), "classification": measured(lines)}
        MEASURED.write_text(json.dumps(made, indent=2) + "\n")
        return
    problem = PROBLEMS[options.data]
    pairs = options.pairs.split(",") if options.pairs else list(problem.students)
    if unknown := set(pairs) - set(problem.students):
        known = ", ".join(problem.students)
        parser.error(f"{options.data} has no pair {unknown.pop()!r}; it has {known}")
    wanted = rows(set(filter(None, options.methods.split(","))), options.balance)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with tempfile.TemporaryDirectory(prefix="retort-methods-") as name:
        folder = Path(name)
        if not options.read:
            problem.prepare(folder)
            for seed, pair in itertools.product(seeds, pairs):
                key = {"data": options.data, "balance": options.balance, "pair": pair, "seed": seed}
                missing = [row for row in wanted if row not in scores_of(lines, key)]
                for scores in trained(folder, key, missing, wanted, options):
                    lines.append({**key, "scores": scores})
                    line_files.append(options.lines, lines[-1])
                    say(pair, seed, {row: shown(value) for row, value in scores.items()})
        found: dict[str, Any] = {}
        for pair in pairs:
            key = {"data": options.data, "balance": options.balance, "pair": pair}
            # Of a file all its seeds count.
            counted = {one["seed"] for one in lines} if options.read else seeds
            runs = [scores_of(lines, {**key, "seed": seed}) for seed in sorted(counted)]
            found[pair] = summary([run for run in runs if run], wanted)
            for row, choice in {} if options.read else wanted.items():
                found[pair][row]["extra_parameters"] = extra_parameters(
                    folder, problem, pair, choice
                )
                if not options.no_times:
                    teacher = trained_teacher(
                        folder, options.data, options.first_seed, options.teachers
                    )
                    seconds = seconds_an_epoch(folder, problem, pair, row, choice, teacher)
                    found[pair][row]["seconds_per_epoch"] = seconds
    text = markdown(found, problem) if options.markdown else json.dumps(found, indent=2)
    sys.stdout.write(text + "\n")


def trained(
    folder: Path,
    key: Json,
    missing: list[str],
    wanted: dict[str, Json],
    options: argparse.Namespace,
) -> Iterator[dict[str, float | str]]:
    """Train the missing rows of a pair and seed, and yield the scores of each group of them."""
    if not set(missing) - {BASELINE}:
        return
    teacher = trained_teacher(folder, key["data"], key["seed"], options.teachers)
    for group in groups(missing, options.at_once):
        choices = {row: wanted[row] for row in wanted if row in group}
        yield run_group(folder, PROBLEMS[key["data"]], key["pair"], key["seed"], teacher, choices)


def scores_of(lines: list[Json], key: Json) -> dict[str, float | str]:
    """Return the scores of all lines of a pair and seed, by row.

    Older lines do not name their data set: it is the digits.
    """
    found: dict[str, float | str] = {}
    for one in lines:
        if {**one, "data": one.get("data", "digits")}.items() >= key.items():
            found |= one["scores"]
    return found


def groups(missing: list[str], at_once: int) -> list[set[str]]:
    """Return which rows are trained side by side; the baseline is in each group."""
    others = [row for row in missing if row != BASELINE]
    size = at_once or len(others)
    return [{BASELINE, *others[start : start + size]} for start in range(0, len(others), size)]


def trained_teacher(folder: Path, problem_name: str, seed: int, kept: Path | None) -> Path:
    """Return the file of a seed's teacher, trained unless this or an earlier run has it."""
    place = (kept or folder) / f"{problem_name}-teacher-{seed}.safetensors"
    if not place.exists():
        problem = PROBLEMS[problem_name]
        made, _ = digits.run_recipe(
            folder,
            f"{seed}-teacher",
            problem.teacher,
            {"name": BASELINE},
            problem.teacher_training,
            seed,
            None,
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, place)
    return place.absolute()


def rows(wanted: set[str], balance: str) -> dict[str, Json]:
    """Return the choice of method of each row; the baseline is always there."""
    every = {
        name: {"name": name, **FEWER.get(name, {})}
        for name, entry in catalog.load().methods.items()
        if "classification" in entry["tasks"] and entry["family"] not in OTHER_FAMILIES
    }
    for name in NO_ROWS:
        del every[name]
    every |= BESIDE
    for row, choice in every.items():
        if "balance" in catalog.load().methods[choice["name"]]["params_schema"]["properties"]:
            every[row] = {**choice, "balance": balance}
    return {row: every[row] for row in every if not wanted or row in wanted | {BASELINE}}


def recipe_of(
    folder: Path, problem: Problem, pair: str, row: str, choice: Json, training: Json
) -> Json:
    """Return the engine's recipe of one student."""
    record = json.loads((folder / "dataset" / "dataset.json").read_text())
    size, classes = record["input"], len(record["classes"])
    complete = catalog.complete_training({**problem.training, **TRAININGS.get(row, {}), **training})
    return {
        "version": 1,
        "task": "classification",
        "teacher": {**problem.teacher, "classes": classes, "input": size},
        "student": {**problem.students[pair], "classes": classes, "input": size},
        "initial": False,
        "method": catalog.method_of_job(choice, task="classification", training=complete),
        "training": complete,
        "baseline": False,
        "report": False,
        "accelerator": "cpu",
        "provenance": {},
    }


def run_group(
    folder: Path, problem: Problem, pair: str, seed: int, teacher: Path, wanted: dict[str, Json]
) -> dict[str, float | str]:
    """Train all rows side by side; return each one's test accuracy, or why it was refused."""
    workdir = Path(tempfile.mkdtemp(dir=folder, prefix=f"{pair}-{seed}-"))
    place(folder, workdir.name, teacher)
    keys = {f"row-{number}": row for number, row in enumerate(wanted)}
    members = [
        {"key": key, "recipe": recipe_of(folder, problem, pair, row, wanted[row], {"seed": seed})}
        for key, row in keys.items()
    ]
    path = workdir / "group.json"
    path.write_text(json.dumps({"version": 1, "members": members}))
    found: dict[str, float | str] = {}
    for line in engine(path, workdir):
        if line["type"] == "result":
            found[keys[line["member"]]] = line["scores"]["student"]["accuracy"]
        elif line["type"] == "failure":
            found[keys[line["member"]]] = str(line["message"])
    return {row: found[row] for row in wanted}


def seconds_an_epoch(
    folder: Path, problem: Problem, pair: str, row: str, choice: Json, teacher: Path
) -> float:
    """Return the seconds of one epoch, trained alone."""
    workdir = place(folder, f"{pair}-time-{row}".replace(" ", ""), teacher)
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe_of(folder, problem, pair, row, choice, {"epochs": 4})))
    last = list(engine(path, workdir))[-1]
    if last["type"] == "failure":
        return float("nan")
    count = dataset.load(workdir / "dataset").record.splits["train"]
    return round(count / float(last["images_per_second"]), 3)


def extra_parameters(folder: Path, problem: Problem, pair: str, choice: Json) -> int | None:
    """Return how many numbers a method keeps besides the student: parameters and buffers."""
    found = dataset.load(folder / "dataset")
    size = found.record.input
    built = [
        networks.build(
            network["network"],
            classes=len(found.record.classes),
            channels=size.channels,
            height=size.height,
            width=size.width,
            arguments=network["arguments"],
        )
        for network in (problem.students[pair], problem.teacher)
    ]
    try:
        method = engine_catalog.build(catalog.complete_method(choice), built[0], built[1])
    except errors.DistillError:
        return None
    method.prepare(found.split("train").labels)
    return sum(int(value.numel()) for value in method.state_dict().values())


def place(folder: Path, name: str, teacher: Path) -> Path:
    """Make a working folder with the shared data set and a teacher."""
    workdir = folder / name
    (workdir / "teacher").mkdir(parents=True)
    (workdir / "dataset").symlink_to(folder / "dataset")
    (workdir / "teacher" / "model.safetensors").symlink_to(teacher)
    return workdir


def engine(path: Path, workdir: Path) -> list[Json]:
    """Run the engine, which may refuse some members, and return its lines."""
    command = [sys.executable, "-m", "workers.distill", str(path), "--workdir", str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if not lines:
        raise RuntimeError(done.stderr[-2000:])
    return lines


def summary(runs: list[dict[str, float | str]], wanted: Collection[str]) -> dict[str, Json]:
    """Return mean and spread of each row, and its differences to the baseline by seed.

    A row counts the seeds that have it.
    """
    found: dict[str, Json] = {}
    for row in wanted:
        having = [run for run in runs if row in run]
        scores = [run[row] for run in having]
        if not scores:
            continue
        if not all(isinstance(score, float) for score in scores):
            found[row] = {"refused": next(str(s) for s in scores if isinstance(s, str))}
            continue
        accuracy = [float(score) for score in scores]
        difference = [100 * (float(run[row]) - float(run[BASELINE])) for run in having]
        several = len(having) > 1
        found[row] = {
            "accuracy_mean": 100 * statistics.fmean(accuracy),
            "accuracy_sd": 100 * statistics.stdev(accuracy) if several else None,
            "difference_mean": statistics.fmean(difference),
            "difference_sd": statistics.stdev(difference) if several else None,
            "seeds_above_baseline": sum(value > 0 for value in difference),
            "seeds": len(having),
            "p_value": leaderboard.sign_flip_p_value(difference) if row != BASELINE else None,
        }
    return found


def measured(lines: list[Json]) -> Json:
    """Return the figures by which methods are ranked, by method and balance.

    Differences are to the student alone of the same pair and seed. A row with another name than its
    method, such as `crd + kd`, is no method of its own, and one that was refused has no figures.
    Lines of other data sets than the digits are left out.
    """
    lines = [one for one in lines if one.get("data", "digits") == "digits"]
    alone = {
        (one["pair"], one["seed"]): one["scores"][BASELINE]
        for one in lines
        if BASELINE in one["scores"]
    }
    differences: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in lines:
        for row, score in one["scores"].items():
            if row in catalog.load().methods and row != BASELINE and isinstance(score, float):
                by_pair = differences.setdefault((row, one["balance"]), {})
                apart = 100 * (score - alone[one["pair"], one["seed"]])
                by_pair.setdefault(one["pair"], []).append(apart)
    methods: Json = {}
    for (name, balance), by_pair in sorted(differences.items()):
        means = [statistics.fmean(values) for values in by_pair.values()]
        methods.setdefault(name, {})[balance] = {
            "difference": round(statistics.fmean(means), 2),
            "lowest": round(min(means), 2),
            "seeds": min(len(values) for values in by_pair.values()),
            "pairs": len(means),
        }
    return {
        "made_with": "python -m benchmarks.classification --lines FILE --write",
        "measured_on": PROBLEMS["digits"].title,
        "methods": methods,
    }


def markdown(found: dict[str, Any], problem: Problem) -> str:
    """Return the tables, best first."""
    lines: list[str] = []
    for pair, table in found.items():
        student = problem.students[pair]
        named = f"{student['network']} {json.dumps(student['arguments'])}"
        lines += [f"**{pair}**: {problem.teacher['network']} to {named}", ""]
        lines += [
            "| method | accuracy | difference | seeds above | p | s/epoch | extra numbers |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        ranked = sorted(table.items(), key=lambda item: -item[1].get("accuracy_mean", 0))
        lines += [line(row, value) for row, value in ranked]
        lines.append("")
    return "\n".join(lines)


def line(row: str, value: Json) -> str:
    """Return one row of a table."""
    if "refused" in value:
        return f"| {row} | refused: {value['refused']} | | | | | |"
    spread, apart = value["accuracy_sd"] or 0.0, value["difference_sd"] or 0.0
    p_value = "" if value["p_value"] is None else f"{value['p_value']:.2f}"
    cells = [
        row,
        f"{value['accuracy_mean']:.2f} ± {spread:.2f}",
        "" if row == BASELINE else f"{value['difference_mean']:+.2f} ± {apart:.2f}",
        "" if row == BASELINE else f"{value['seeds_above_baseline']} of {value['seeds']}",
        p_value,
        f"{value['seconds_per_epoch']:.2f}" if "seconds_per_epoch" in value else "",
        f"{value['extra_parameters'] or 0:,}" if "extra_parameters" in value else "",
    ]
    return f"| {' | '.join(cells)} |"


def shown(value: float | str) -> str:
    """Return a score in percent, or the first words of a refusal."""
    return f"{100 * value:.2f}" if isinstance(value, float) else value[:60]


if __name__ == "__main__":
    main()
