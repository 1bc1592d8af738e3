"""`retort demo`: the whole path on real images, over HTTP, in a few minutes.

Starts the service in a data folder of its own, trains a teacher through it, uploads the teacher's
checkpoint as a user would, distils two students (and one without the teacher, for comparison),
downloads the better one, and rebuilds it in a fresh process from the file alone. Every number it
prints was measured in this run.
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

# A teacher that is better than the student alone, with room between them; chosen with two seeds,
# and measured with five others in docs/measurements.md.
TEACHER: dict[str, Any] = {
    "network": "retort/resnet20",
    "arguments": {},
}
TEACHER_TRAINING: dict[str, Any] = {"recipe": "small", "epochs": 30}
STUDENT: dict[str, Any] = {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 8, 16]}}
STUDENT_TRAINING: dict[str, Any] = {"recipe": "small", "epochs": 15}
METHODS: dict[str, dict[str, Any]] = {
    "kd": {"name": "kd", "task_weight": 0.5, "kd_weight": 0.5},
    "dkd": {"name": "dkd", "beta": 2.0, "warmup_epochs": 3},
}


def run(*, data_dir: Path = Path("demo-data"), port: int = 8766) -> None:
    """Run the demonstration and print its table.

    Raises: errors.RetortError when a step fails; the message says which.
    """
    console = shell.console(sys.stderr)
    began = time.monotonic()
    with _service(data_dir, port) as service, client.Client(service.url, service.api_key) as retort:
        console.print(f"The service is up at {service.url}, its data is in {service.data_dir}.")
        pretraining, teacher = _teacher(retort, console, data_dir)
        jobs = {
            name: retort.jobs.submit(_spec(name, method, teacher))
            for name, method in METHODS.items()
        }
        for name, job in jobs.items():
            console.print(f"Submitted a {name.upper()} job: {job.id}", soft_wrap=True)
        done = {name: _watch(retort, console, job) for name, job in jobs.items()}
        _print_table(pretraining, done)
        _check_best(retort, console, done, data_dir)
    console.print(f"The demonstration took {time.monotonic() - began:.0f} seconds.")


@contextmanager
def _service(data_dir: Path, port: int) -> Iterator[up.LocalService]:
    try:
        with up.started(data_dir=data_dir, host="127.0.0.1", port=port, device="auto") as service:
            yield service
    except up.UpFailed as error:
        raise errors.CannotStart(str(error)) from error


def _teacher(
    retort: client.Client, console: rich.console.Console, data_dir: Path
) -> tuple[types.Job, types.ModelVersion]:
    """Train a teacher, download its checkpoint, and upload it as a user would."""
    console.print(f"Training a teacher, {TEACHER['network']}, on the digits through a `ce` job.")
    job = retort.jobs.submit(
        {
            "name": "demo-pretraining",
            "student": {**TEACHER, "register_as": "demo-pretrained"},
            "dataset": "digits@1",
            "method": {"name": "ce"},
            "training": TEACHER_TRAINING,
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
    return trained, ready


def _spec(name: str, method: dict[str, Any], teacher: types.ModelVersion) -> dict[str, Any]:
    return {
        "name": f"demo-{name}",
        "teacher": teacher.reference,
        "student": {**STUDENT, "register_as": f"demo-{name}"},
        "dataset": "digits@1",
        "method": method,
        "training": STUDENT_TRAINING,
        # One baseline is enough: both jobs train the same student with the same seed.
        "baseline": name == next(iter(METHODS)),
        "labels": {"demo": "student"},
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


def _student_of(job: types.Job) -> str:
    if job.result is None or job.result.student is None:
        raise errors.JobFailed(f"{job.id} has succeeded without a student")
    return job.result.student


def _scores(job: types.Job, role: str) -> dict[str, Any]:
    score = job.result.scores.get(role) if job.result else None
    if score is None:
        raise errors.JobFailed(f"{job.id} has no scores of its {role}")
    return score


def _print_table(pretraining: types.Job, done: dict[str, types.Job]) -> None:
    """Print teacher, baseline and students, and compare each student with the baseline."""
    first = next(iter(done.values()))
    baseline = _scores(first, "baseline")
    rows = [
        ("teacher", _scores(first, "teacher"), _parameters(first, "teacher"), pretraining),
        ("student alone", baseline, _parameters(first, "student"), None),
        *(
            (name.upper(), _scores(job, "student"), _parameters(job, "student"), job)
            for name, job in done.items()
        ),
    ]
    out = shell.console(sys.stdout)
    out.print(
        "\nDigits, test split of 360 images; the first student's job trained the baseline too."
    )
    heads = ("", "accuracy", "95 % interval", "parameters", "agreement", "seconds")
    display.table(out, heads, [_row(*row) for row in rows])
    for name, job in done.items():
        sentence = verdict(name.upper(), _scores(job, "student"), baseline)
        out.print(sentence, soft_wrap=True)


def _row(
    name: str, score: dict[str, Any], parameters: int, job: types.Job | None
) -> tuple[str, ...]:
    low, high = score["accuracy_interval"]
    agreement = score.get("agreement")
    seconds = job.result.wall_seconds if job and job.result else None
    return (
        name,
        f"{score['accuracy']:.2%}",
        f"{low:.2%} to {high:.2%}",
        f"{parameters:,}",
        "" if agreement is None else f"{agreement:.2%}",
        "" if seconds is None else f"{seconds:.1f}",
    )


def _parameters(job: types.Job, role: str) -> int:
    return (job.result.parameters.get(role) if job.result else None) or 0


def verdict(name: str, student: dict[str, Any], baseline: dict[str, Any]) -> str:
    """Say whether a student beats, matches or misses its baseline, and by how much.

    Within one standard error of the difference counts as matched.
    """
    difference = student["accuracy"] - baseline["accuracy"]
    variance = sum(
        score["accuracy"] * (1 - score["accuracy"]) / score["samples"]
        for score in (student, baseline)
    )
    error = math.sqrt(variance)
    word = "matches" if abs(difference) <= error else "beats" if difference > 0 else "misses"
    return (
        f"{name} {word} the student trained alone: {100 * difference:+.2f} points, "
        f"standard error of the difference {100 * error:.2f}."
    )


def _check_best(
    retort: client.Client,
    console: rich.console.Console,
    done: dict[str, types.Job],
    data_dir: Path,
) -> None:
    """Download the best student and measure it again in a process that has only the file."""
    best = max(done.values(), key=lambda job: float(_scores(job, "student")["accuracy"]))
    stated = retort.models.resolve(_student_of(best)).scores["accuracy"]
    path = retort.jobs.download_student(best.id, data_dir / "student.safetensors")
    console.print(f"Downloaded {_student_of(best)} to {path} ({path.stat().st_size:,} bytes).")
    command = [
        sys.executable,
        "-m",
        "workers.distill.evaluation.evaluate",
        str(path),
        "--dataset",
        "digits",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise errors.JobFailed(f"the student could not be rebuilt: {answer.stderr.strip()[-500:]}")
    measured = json.loads(answer.stdout)
    line = (
        f"Rebuilt from the file alone: {measured['correct']} of {measured['samples']} right, "
        f"{measured['accuracy']:.2%}; the registry states {stated:.2%}"
    )
    if not math.isclose(measured["accuracy"], stated):
        raise errors.JobFailed(f"{line}: these differ")
    console.print(f"{line}.", soft_wrap=True)
