"""`retort demo`: what distillation is for, on real images, over HTTP, in a few minutes.

Starts the service in a data folder of its own, trains a teacher through it, uploads the teacher's
checkpoint as a user would, and compares students over several seeds: with a hundred labels, alone
and with the teacher; on all images without a label; and without a single image. It downloads the
best student and rebuilds it in a fresh process from the file alone. Every number it prints was
measured in this run.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console

from retort import client, errors, types, watching
from retort.cli import display, shell, up

LABELS = 100
"""Labelled images that the first students have."""
FEW_LABELS_SEEDS = tuple(range(8))
# More than enough: students that have all labels hardly differ.
ALL_LABELS_SEEDS = (0, 1, 2)
# Making images takes most of the time; the differences are so large that three seeds show them.
SEEDS_WITHOUT_IMAGES = (0, 1, 2)
NETWORK = "retort/convnet"
TEACHER: dict[str, Any] = {"network": NETWORK, "arguments": {"widths": [16, 32, 64]}}
STUDENT: dict[str, Any] = {"network": NETWORK, "arguments": {"widths": [8, 16, 32]}}
TRAINING: dict[str, Any] = {
    "epochs": 40,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4, "nesterov": True},
    "schedule": {"name": "cosine"},
}
FEW_LABELS_TRAINING: dict[str, Any] = {**TRAINING, "epochs": 60}
KD: dict[str, Any] = {"name": "kd", "task_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}
SSDKD: dict[str, Any] = {
    "name": "ssdkd",
    "bn_weight": 1.0,
    "onehot_weight": 1.0,
    "temperature": 4.0,
    "bn_momentum": 0.0,
    "synthesis": {
        "steps": 15,
        "batch_size": 64,
        "student_steps": 20,
        "data_scale": None,
        "warmup_calls": 3,
        "buffer_images": 640,
        "latent_size": 64,
        "width": 24,
        "learning_rate": 2e-3,
        "latent_learning_rate": 0.01,
    },
}
SYNTHESIS_TRAINING: dict[str, Any] = {
    "epochs": 27,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "final_factor": 0.002},
}


def run(*, data_dir: Path = Path("demo-data"), port: int = 8766) -> None:
    """Run the demonstration and print its tables.

    Raises: errors.RetortError when a step fails; the message says which.
    """
    console = shell.console(sys.stderr)
    out = shell.console(sys.stdout)
    began = time.monotonic()
    with _service(data_dir, port) as service, client.Client(service.url, service.api_key) as retort:
        console.print(f"The service is up at {service.url}, its data is in {service.data_dir}.")
        few = _few_labels(retort, console, data_dir)
        unlabelled = _without_labels(retort, console, data_dir)
        teacher, score = _teacher(retort, console, data_dir)
        plans = {
            "few": _study("few-labels", few, KD, FEW_LABELS_TRAINING, FEW_LABELS_SEEDS, teacher),
            "unlabelled": _study(
                "no-labels", unlabelled, KD, TRAINING, ALL_LABELS_SEEDS, teacher, baseline=False
            ),
            "all": _study(
                "all-labels", "digits@1", {"name": "ce"}, TRAINING, ALL_LABELS_SEEDS, None
            ),
            "none": _study(
                "no-images", "digits@1", SSDKD, SYNTHESIS_TRAINING, SEEDS_WITHOUT_IMAGES, teacher
            ),
        }
        studies = {key: retort.studies.submit(plan) for key, plan in plans.items()}
        ended = {key: _follow(retort, console, study) for key, study in studies.items()}
        _tell(out, score, ended)
        _check_best(retort, console, ended["few"], data_dir)
    console.print(f"The demonstration took {time.monotonic() - began:.0f} seconds.")


@contextmanager
def _service(data_dir: Path, port: int) -> Iterator[up.LocalService]:
    try:
        with up.started(data_dir=data_dir, host="127.0.0.1", port=port, device="auto") as service:
            yield service
    except up.UpFailed as error:
        raise errors.CannotStart(str(error)) from error


def _few_labels(retort: client.Client, console: rich.console.Console, data_dir: Path) -> str:
    """Upload a hundred labelled digits as a data set of their own; return its reference."""
    path = data_dir / f"digits-{LABELS}.npz"
    console.print(f"Uploading {path}: {LABELS} labelled digits, and the whole test split.")
    return _digits(retort, f"demo-digits-{LABELS}", path, f"--labels={LABELS}")


def _without_labels(retort: client.Client, console: rich.console.Console, data_dir: Path) -> str:
    """Upload all digits, those of training without their labels; return the reference."""
    path = data_dir / "digits-unlabelled.npz"
    console.print(f"Uploading {path}: all digits, those of training without their labels.")
    return _digits(retort, "demo-digits-unlabelled", path, "--labels=0", "--keep-unlabelled")


def _digits(retort: client.Client, name: str, path: Path, *options: str) -> str:
    made = _engine_program(
        "workers.distill.data.few_labels", "digits", *options, f"--output={path}"
    )
    version = retort.datasets.register(
        name,
        retort.uploads.send(path, purpose="dataset"),
        format="npz",
        # Of all digits, as the teacher's: few images would give slightly other numbers.
        input={name: made["input"][name] for name in ("mean", "std")},
    )
    return retort.datasets.wait(version.name, version.version).reference


def _teacher(
    retort: client.Client, console: rich.console.Console, data_dir: Path
) -> tuple[types.ModelVersion, float]:
    """Train a teacher, download its checkpoint, upload it as a user would; return its accuracy."""
    console.print(f"Training a teacher, {TEACHER['network']}, on all digits through a `ce` job.")
    job = retort.jobs.submit(
        {
            "name": "demo-pretraining",
            "student": {**TEACHER, "register_as": "demo-pretrained"},
            "dataset": "digits@1",
            "method": {"name": "ce"},
            "training": TRAINING,
            "report": False,
            "labels": {"demo": "teacher"},
        }
    )
    trained = _watch(retort, console, job)
    checkpoint = retort.jobs.download_student(trained.id, data_dir / "teacher.safetensors")
    made = retort.models.resolve(_student_of(trained))
    console.print(f"Uploading {checkpoint} as a teacher checkpoint over HTTP.")
    upload = retort.uploads.send(checkpoint, purpose="model")
    version = retort.models.register(
        "demo-teacher",
        upload,
        network=TEACHER["network"],
        arguments=TEACHER["arguments"],
        classes=made.classes or 10,
        input=made.input or {},
        card="Trained on the digits by the demonstration.",
    )
    ready = retort.models.wait(version.name, version.version)
    console.print(f"The teacher is registered as {ready.reference}: {ready.parameters:,} weights.")
    return ready, float(made.scores["accuracy"])


def _study(
    name: str,
    dataset: str,
    method: dict[str, Any],
    training: dict[str, Any],
    seeds: tuple[int, ...],
    teacher: types.ModelVersion | None,
    *,
    baseline: bool | None = None,
) -> dict[str, Any]:
    return {
        "name": f"demo-{name}",
        **({} if teacher is None else {"teacher": teacher.reference}),
        "student": STUDENT,
        "dataset": dataset,
        "methods": [method],
        "training": training,
        "seeds": list(seeds),
        # What has a teacher is compared with the same student without one.
        "baseline": teacher is not None if baseline is None else baseline,
        "report": False,
        "labels": {"demo": name},
    }


def _watch(retort: client.Client, console: rich.console.Console, job: types.Job) -> types.Job:
    shown = watching.view(console, job.name or job.id)
    try:
        ended = watching.follow(retort, job.id, shown)
    finally:
        shown.close()
    if ended.state != "succeeded":
        why = ended.failure.message if ended.failure else ended.state_message
        raise errors.JobFailed(f"{ended.name} ({ended.id}) {ended.state}: {why}")
    return ended


def _follow(
    retort: client.Client, console: rich.console.Console, study: types.Study
) -> types.Leaderboard:
    """Watch a study to its end and return its leaderboard."""
    shown = watching.view(console, study.name or study.id)
    try:
        ended = watching.follow_study(retort, study.id, shown)
    finally:
        shown.close()
    board = retort.studies.leaderboard(study.id)
    if ended.state != "succeeded":
        raise errors.JobFailed(
            f"{study.name} ({study.id}) {ended.state}: `retort study show {study.id}` says why"
        )
    return board


def _student_of(job: types.Job) -> str:
    if job.result is None or job.result.student is None:
        raise errors.JobFailed(f"{job.id} has succeeded without a student")
    return job.result.student


def _row(board: types.Leaderboard, *, baseline: bool) -> types.LeaderboardRow:
    return next(row for row in board.rows if row.is_baseline == baseline)


def _tell(
    out: rich.console.Console, teacher_accuracy: float, ended: dict[str, types.Leaderboard]
) -> None:
    """Print what the studies show: a line for each, and a sentence below each table."""
    alone, distilled = (_row(ended["few"], baseline=is_alone) for is_alone in (True, False))
    everything = _row(ended["all"], baseline=False)
    unlabelled = _row(ended["unlabelled"], baseline=False)
    out.print(
        f"\n1. Few labels. The teacher learned from all 1,257 training images and is right on "
        f"{teacher_accuracy:.1%} of the 360 test images; the student has a quarter of its weights.",
        soft_wrap=True,
    )
    _print_rows(
        out,
        {
            f"student alone, {LABELS} labels": alone,
            f"student distilled by KD, the same {LABELS} images": distilled,
            "student distilled by KD, all 1,257 images, no label": unlabelled,
            "student alone, all 1,257 labels": everything,
        },
    )
    out.print(
        f"{_sentence('With the teacher', distilled)} The teacher's answers say more about an image "
        "than its label does, and images that nobody has labelled teach as well: "
        f"{_mean(unlabelled):.1%} without a single label, {_mean(everything):.1%} with all.",
        soft_wrap=True,
    )
    noise, synthetic = (_row(ended["none"], baseline=is_noise) for is_noise in (True, False))
    out.print(
        "\n2. No images. The student never sees a digit: SSD-KD makes images from the teacher "
        "alone.",
        soft_wrap=True,
    )
    _print_rows(
        out,
        {"student trained on noise": noise, "student distilled by SSD-KD": synthetic},
    )
    out.print(
        f"{_sentence('On synthetic images', synthetic)} That is what a teacher's weights alone are "
        "worth when its data may not be had.",
        soft_wrap=True,
    )


def _print_rows(out: rich.console.Console, rows: dict[str, types.LeaderboardRow]) -> None:
    display.table(
        out,
        ("", "accuracy", "95 % interval", "seeds"),
        [(name, *_cells(row)) for name, row in rows.items()],
    )


def _mean(row: types.LeaderboardRow) -> float:
    if row.accuracy is None:
        raise errors.JobFailed(f"the variant {row.name} has no accuracy")
    return row.accuracy.mean


def _cells(row: types.LeaderboardRow) -> tuple[str, ...]:
    score = row.accuracy
    if score is None or score.interval is None:
        raise errors.JobFailed(f"the variant {row.name} has no accuracy over several seeds")
    low, high = score.interval
    return f"{score.mean:.1%}", f"{max(0.0, low):.1%} to {min(1.0, high):.1%}", str(row.finished)


def _sentence(what: str, row: types.LeaderboardRow) -> str:
    """Say what a variant gains over its baseline, and whether the seeds can show it."""
    difference = row.difference
    if difference is None or difference.interval is None:
        raise errors.JobFailed(f"the variant {row.name} was compared with nothing")
    low, high = (100 * bound for bound in difference.interval)
    change = f"{100 * difference.mean:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
    if low > 0:
        return f"{what} the same student gains {change}."
    if high < 0:
        return f"{what} the same student loses {change}."
    return f"{what} the same student changes by {change}, which so few seeds cannot tell from 0."


def _check_best(
    retort: client.Client, console: rich.console.Console, board: types.Leaderboard, data_dir: Path
) -> None:
    """Download the best student with few labels, and measure it again from the file alone."""
    runs = [run for run in _row(board, baseline=False).runs if run.student is not None]
    best = max(runs, key=lambda run: run.accuracy or 0.0)
    stated = best.accuracy or 0.0
    path = retort.jobs.download_student(best.job, data_dir / "student.safetensors")
    console.print(f"Downloaded {best.student} to {path} ({path.stat().st_size:,} bytes).")
    measured = _engine_program(
        "workers.distill.evaluation.evaluate", str(path), "--dataset", "digits"
    )
    line = (
        f"Rebuilt from the file alone: {measured['correct']} of {measured['samples']} right, "
        f"{measured['accuracy']:.2%}; the registry states {stated:.2%}"
    )
    if not math.isclose(measured["accuracy"], stated):
        raise errors.JobFailed(f"{line}: these differ")
    console.print(f"{line}.", soft_wrap=True)


def _engine_program(module: str, *arguments: str) -> Any:  # Any: the JSON that it prints
    """Run a program of the engine in a process of its own, and return what it printed.

    Raises: errors.JobFailed when it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise errors.JobFailed(f"{module} failed: {answer.stderr.strip()[-500:]}")
    return json.loads(answer.stdout)
