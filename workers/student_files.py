"""What a finished job leaves in the registry: the student's files, card and lineage."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from models_registry.artifacts import models, synthetic_datasets
from models_registry.jobs import jobs, reports
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables
from workers import model_card

# Facts about the run that everyone may see; the report's own fields stay out.
_RESULT_FIELDS = (
    *("scores", "parameters", "flops", "images_per_second", "floor_share", "wall_seconds"),
    *("epochs", "steps", "best_epoch", "device", "precision", "compile", "versions", "latency_ms"),
    *("report_seconds", "shared_with"),
    *("training_images_read", "evaluated_on", "synthesis", "validation"),
)
CARD = "card.md"


@dataclass(frozen=True)
class Kit:
    """Files by the path they get, the version to add, and the job's result."""

    files: dict[str, Path]
    version: models.NewModelVersion
    result: dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """A job as its student's files tell of it."""

    job: tables.JobRow
    told: model_card.Origin


def origin(session: Session, job_id: str) -> Origin:
    """Return a job and what is known of its inputs."""
    job = session.get_one(tables.JobRow, job_id)
    teacher = session.get(tables.ModelVersionRow, job.teacher_version_id or "")
    dataset = session.get(tables.DatasetVersionRow, job.dataset_version_id or "")
    told = model_card.Origin(
        job_id=job.id,
        attempt=job.attempt,
        spec=jobs.spec_of(job),
        dataset=None if dataset is None else model_card.DataFacts.of(dataset),
        teacher=None if teacher is None else model_card.TeacherFacts.of(teacher),
    )
    return Origin(job, told)


def report_files(workdir: Path) -> dict[str, Path]:
    """Return the files of the engine's report by the path they get; none if it wrote none."""
    return _files_in(workdir, reports.FOLDER)


def _files_in(workdir: Path, name: str) -> dict[str, Path]:
    folder = workdir / name
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {f"{name}{path.name}": path for path in found if path.is_file()}


def make(
    origin: Origin, report: dict[str, Any], workdir: Path, *, stored: Collection[str] = ()
) -> Kit:
    """Return everything that `leases.complete` needs, written into `workdir` where it is a file.

    `stored` are the paths of the files of the report that are in the store: the card shows them.
    """
    job, spec = origin.job, origin.told.spec
    result = {name: report[name] for name in _RESULT_FIELDS if name in report}
    description = json.loads((workdir / "model.json").read_text())
    lineage = _lineage(job, spec, result)
    facts = {"description": description, "result": result}
    card = model_card.write(origin.told, pictures=stored, **facts)
    written = {CARD: card, "manifest.json": json.dumps(lineage, indent=2) + "\n"}
    if stored:
        # Once more inside the report, where the pictures are its neighbours.
        beside = [path.removeprefix(reports.FOLDER) for path in stored]
        written[f"{reports.FOLDER}{CARD}"] = model_card.write(origin.told, pictures=beside, **facts)
    for name, text in written.items():
        (workdir / name).write_text(text, encoding="utf-8")
    files = {
        models.WEIGHTS: workdir / "student.safetensors",
        "config.json": workdir / "model.json",
        "metrics.json": workdir / "metrics.json",
        # Images that a data-free method has invented, where they are to be kept.
        **_files_in(workdir, synthetic_datasets.FOLDER),
        **{name: workdir / name for name in written},
    }
    version = models.NewModelVersion(
        name=spec.student.register_as or "student",
        network=description["network"],
        arguments=description["arguments"],
        task=description["task"],
        classes=description["classes"],
        input=description["input"],
        job_id=job.id,
        parameters=result["parameters"]["student"],
        scores=result["scores"]["student"] or {},
        lineage=lineage,
        card=card,
        tags={},
    )
    return Kit(files, version, result)


def _lineage(job: tables.JobRow, spec: JobSpec, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "job": job.id,
        "attempt": job.attempt,
        "teacher": spec.teacher,
        "teacher_digest": job.spec.get("teacher_digest"),
        "initial": spec.student.initial,
        "initial_digest": job.spec.get("initial_digest"),
        "dataset": spec.dataset,
        "dataset_digest": job.spec.get("dataset_digest"),
        "method": spec.method,
        "training": spec.training,
        "device": result.get("device"),
        "versions": result.get("versions", {}),
    }
