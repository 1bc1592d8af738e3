"""The files, card and lineage of the student that a finished job registers."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from models_registry.artifacts import job_teachers, models, synthetic_datasets
from models_registry.jobs import reports, submission
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables
from workers import card_program, child_files, model_card
from workers.distill.config.result import EPOCHS, RunResult

log = structlog.get_logger()

CARD = "card.md"
WEIGHTS = "student.safetensors"
"""The name of the student's weights in the engine's folder."""
PARTITION = "partition.json"


@dataclass(frozen=True)
class StudentFiles:
    """What `leases.complete` needs to end a job with its student."""

    files: dict[str, str]
    """Paths below the working folder, by their path in the registry."""
    version: models.NewModelVersion
    result: dict[str, Any]
    """The job's result as JSON: the fields of `RunResult` that the engine reported."""
    warnings: tuple[str, ...]
    """What the user should know of these files."""


@dataclass(frozen=True)
class StudentOrigin:
    """A job, and what the model card says about its inputs."""

    job: tables.JobRow
    spec: JobSpec
    facts: model_card.JobFacts | None
    """None where they could not be gathered: a card is not worth a student."""
    dataset_source: Mapping[str, str] = field(default_factory=dict)
    """Where the files are that the data set refers to, and the digest of their listing."""


def origin(session: Session, job_id: str) -> StudentOrigin:
    """Return a job and what is known of its inputs."""
    job = session.get_one(tables.JobRow, job_id)
    taught = job_teachers.of_job(session, job)
    dataset = session.get(tables.DatasetVersionRow, job.dataset_version_id or "")
    spec = submission.spec_of(job)
    try:
        facts = model_card.JobFacts(
            job_id=job.id,
            attempt=job.attempt,
            spec=spec,
            dataset=None if dataset is None else model_card.DataFacts.of(dataset),
            teacher=model_card.TeacherFacts.of(taught[0]) if len(taught) == 1 else None,
            several=tuple(map(model_card.TeacherFacts.of, taught)) if len(taught) > 1 else (),
            warnings=tuple(told["message"] for told in job.warnings or ()),
        )
    except Exception:  # whatever it is, it must not cost the student
        log.exception("card_facts_missing", job_id=job_id)
        facts = None
    by_reference = dataset.lineage if dataset is not None and dataset.source else {}
    return StudentOrigin(job, spec, facts, by_reference)


def report_files(workdir: Path) -> dict[str, str]:
    """Return the paths of the engine's report's files by those in the registry; may be empty."""
    return _files_in(workdir, reports.FOLDER)


def _files_in(workdir: Path, name: str) -> dict[str, str]:
    folder = workdir / name
    found = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    paths = [f"{name}{path.name}" for path in found if path.is_file() and not path.is_symlink()]
    return {path: path for path in paths}


def make(
    origin: StudentOrigin, report: dict[str, Any], workdir: Path, *, stored: Collection[str] = ()
) -> StudentFiles:
    """Return everything that `leases.complete` needs; writes card and manifest into `workdir`.

    `stored` are the paths of those report files that are in the store already: the card shows them.
    """
    job, spec = origin.job, origin.spec
    result = RunResult.model_validate(report)
    description = child_files.json_below(workdir, "model.json")
    lineage = {
        **_lineage(job, spec, result),
        **{f"dataset_{name}": value for name, value in origin.dataset_source.items()},
    }
    card, *warnings = _card(origin, description, result, stored)
    written = {CARD: card, "manifest.json": json.dumps(lineage, indent=2) + "\n"}
    if stored:
        # Once more inside the report, where the pictures are its neighbours.
        beside = [path.removeprefix(reports.FOLDER) for path in stored]
        written[f"{reports.FOLDER}{CARD}"] = _card(origin, description, result, beside)[0]
    for name, text in written.items():
        child_files.write_below(workdir, name, text.encode())
    files = {
        models.WEIGHTS: WEIGHTS,
        "config.json": "model.json",
        "metrics.json": "metrics.json",
        # The network's own source, where it is one of ours.
        **{name: name for name in (card_program.FILE,) if (workdir / name).is_file()},
        # Synthetic images of a data-free method, where the job keeps them.
        **_files_in(workdir, synthetic_datasets.FOLDER),
        # The student as other epochs left it, where the job keeps several.
        **_files_in(workdir, EPOCHS),
        # Which images each client of a federation had.
        **{name: name for name in (PARTITION,) if (workdir / name).is_file()},
        **{name: name for name in written},
    }
    version = models.NewModelVersion(
        name=spec.student.register_as or "student",
        network=description["network"],
        arguments=description["arguments"],
        task=description["task"],
        classes=description["classes"],
        input=description["input"],
        job_id=job.id,
        parameters=result.parameters.get("student"),
        scores=result.scores.get("student") or {},
        lineage=lineage,
        card=card,
        tags={},
    )
    document = result.model_dump(mode="json", exclude_unset=True)
    return StudentFiles(files, version, document, tuple(warnings))


def _card(
    origin: StudentOrigin,
    description: dict[str, Any],
    result: RunResult,
    pictures: Collection[str],
) -> tuple[str, ...]:
    """Return the text of the card; with a warning where there is only a substitute."""
    try:
        if origin.facts is None:
            raise ValueError("the facts about the job's inputs could not be read")
        return (
            model_card.write(
                origin.facts, description=description, result=result, pictures=pictures
            ),
        )
    except Exception as error:  # whatever it is, it must not cost the student
        log.exception("card_not_written", job_id=origin.job.id)
        message = (
            f"The model card could not be written ({type(error).__name__}: {error}); config.json, "
            "metrics.json and manifest.json have its facts."
        )
        name = origin.spec.student.register_as or "student"
        return f"# {name}\n\n{message}\n\nJob: {origin.job.id}\n", message


def _several(job: tables.JobRow, spec: JobSpec) -> dict[str, Any]:
    if not spec.teachers:
        return {}
    return {
        "teachers": spec.teachers,
        "teacher_digests": job.spec.get("teacher_digests"),
        "teacher_weighting": spec.teacher_weighting,
    }


def _lineage(job: tables.JobRow, spec: JobSpec, result: RunResult) -> dict[str, Any]:
    return {
        "job": job.id,
        "attempt": job.attempt,
        "teacher": spec.teacher,
        "teacher_digest": job.spec.get("teacher_digest"),
        "teacher_kinds": job.spec.get("teacher_kinds"),
        **_several(job, spec),
        "initial": spec.student.initial,
        "initial_digest": job.spec.get("initial_digest"),
        "dataset": spec.dataset,
        "dataset_digest": job.spec.get("dataset_digest"),
        "method": spec.method,
        "training": spec.training,
        "device": result.device,
        "versions": result.versions,
    }
