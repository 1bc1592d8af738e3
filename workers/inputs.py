"""The inputs that an engine needs for a job: files, and the job's configuration.

Teacher and data set are the same for all jobs that share an engine; start weights, checkpoints and
configuration belong to one job.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import dataset_sources, datasets, job_teachers
from models_registry.jobs import leases, submission, validation
from models_registry.persistence import tables
from workers.distill.config import teachers
from workers.distill.config.descriptions import WITHOUT_CLASSES

# A file that is not in the working folder cannot be read by the engine.
_TRAINING_IMAGES = frozenset({"train.safetensors"})


@dataclass(frozen=True)
class AttemptInputs:
    """A job's inputs: blobs by their path in the working folder, and the engine's configuration."""

    shared: dict[str, tables.BlobRow]
    builtin: str | None
    """Name of a data set that is not in the store but written by a child process; else None."""
    source: dataset_sources.SourceInputs | None
    """Of a data set that is not in the store but refers to files elsewhere; else None."""
    withheld: frozenset[str]
    """Files of the data set that the job must not see."""
    own: dict[str, tables.BlobRow]
    checkpoints: dict[str, tables.BlobRow]
    # Any: JSON.
    recipe: dict[str, Any]


def of(session: Session, job_id: str) -> AttemptInputs:
    """Return the inputs of a job."""
    job = session.get_one(tables.JobRow, job_id)
    initial, dataset = _versions(session, job)
    withheld = _withheld(job)
    builtin = None
    if dataset is not None and dataset.format == datasets.BUILTIN:
        builtin = datasets.name_of(dataset)
    return AttemptInputs(
        shared={
            **_teachers(session, job),
            **(dataset_files(session, dataset, withheld=withheld) if dataset else {}),
        },
        builtin=builtin,
        source=dataset_sources.inputs_of(session, dataset),
        withheld=withheld,
        own=_weights(session, "initial", initial),
        checkpoints=_checkpoint_files(session, job.id),
        recipe=recipe_of(session, job),
    )


def sizes(session: Session, job_id: str) -> dict[str, int]:
    """Return the sizes in bytes of a job's input files, by digest; none for an unknown job."""
    job = session.get(tables.JobRow, job_id)
    if job is None:
        return {}
    initial, dataset = _versions(session, job)
    files = (
        _teachers(session, job),
        _weights(session, "initial", initial),
        dataset_files(session, dataset, withheld=_withheld(job)) if dataset else {},
        _checkpoint_files(session, job.id),
    )
    return {blob.sha256: blob.size_bytes for blobs in files for blob in blobs.values()}


def source_of(session: Session, job_id: str) -> dataset_sources.SourceInputs | None:
    """Return what a job's data set has by reference; None where its files are stored, or no job."""
    job = session.get(tables.JobRow, job_id)
    return None if job is None else dataset_sources.inputs_of(session, _versions(session, job)[1])


def recipe_of(session: Session, job: tables.JobRow) -> dict[str, Any]:
    """Return the `JobConfig` of a job as JSON, without ids of the service.

    The job's id is left out so that the same spec gives the same bytes.
    Raises: errors.Refused when neither data set nor teacher says what the images look like.
    """
    taught = job_teachers.of_job(session, job)
    teacher = taught[0] if taught else None
    initial, dataset = _versions(session, job)
    spec = submission.spec_of(job)
    # Synthetic images have the form of the teacher's input, whatever the student is evaluated on.
    source = teacher if validation.is_data_free(spec.method) else dataset or teacher
    if source is None or source.input is None:
        raise errors.Refused("A job needs a data set or a teacher to know its input from.")
    classes = validation.classes_of(source, teacher)
    provenance = {
        "teacher": ", ".join(spec.all_teachers) or None,
        "teacher_digest": _digests(job),
        "dataset": spec.dataset,
        "dataset_digest": job.spec.get("dataset_digest"),
    }
    return {
        "version": 1,
        "task": spec.task,
        "teacher": _network(taught[0]) if len(taught) == 1 else None,
        **(
            {
                "teachers": [_network(one) for one in taught],
                "teacher_weighting": spec.teacher_weighting,
            }
            if len(taught) > 1
            else {}
        ),
        "student": {
            "network": spec.student.network,
            "arguments": spec.student.arguments,
            "classes": 0 if spec.task in WITHOUT_CLASSES else len(classes),
            "input": source.input,
            "class_names": None if initial is None else initial.classes,
        },
        "class_names": classes,
        "initial": initial is not None,
        "method": spec.method,
        "training": spec.training,
        "baseline": spec.baseline,
        "report": spec.report,
        "accelerator": spec.resources.accelerator,
        "devices": spec.resources.devices,
        "provenance": {key: value for key, value in provenance.items() if value},
    }


def _withheld(job: tables.JobRow) -> frozenset[str]:
    return _TRAINING_IMAGES if validation.is_data_free(job.spec["method"]) else frozenset()


def _network(version: tables.ModelVersionRow) -> dict[str, Any]:
    return {
        "network": version.network,
        "arguments": version.arguments,
        "classes": len(version.classes),
        "input": version.input,
        "class_names": version.classes,
    }


def _digests(job: tables.JobRow) -> str | None:
    """Return the digest of the teacher, or those of several as one text."""
    several = job.spec.get("teacher_digests")
    return ", ".join(map(str, several)) if several else job.spec.get("teacher_digest")


def _teachers(session: Session, job: tables.JobRow) -> dict[str, tables.BlobRow]:
    rows = job_teachers.of_job(session, job)
    return {
        path: blob
        for place, row in enumerate(rows)
        for path, blob in _weights(session, teachers.folder_of(place, len(rows)), row).items()
    }


def _versions(
    session: Session, job: tables.JobRow
) -> tuple[tables.ModelVersionRow | None, tables.DatasetVersionRow | None]:
    return (
        _version(session, tables.ModelVersionRow, job.initial_version_id),
        _version(session, tables.DatasetVersionRow, job.dataset_version_id),
    )


# Any: the row of either kind.
def _version(session: Session, kind: Any, identity: str | None) -> Any:
    return None if identity is None else session.get_one(kind, identity)


def _weights(
    session: Session, folder: str, version: tables.ModelVersionRow | None
) -> dict[str, tables.BlobRow]:
    if version is None:
        return {}
    path = f"{folder}/{teachers.file_of(version.network)}"
    return {path: session.get_one(tables.BlobRow, version.sha256)}


def dataset_files(
    session: Session, dataset: tables.DatasetVersionRow, *, withheld: Collection[str]
) -> dict[str, tables.BlobRow]:
    """Return the files of a data set by their path in a working folder, without those withheld."""
    rows = session.query(tables.DatasetFileRow).filter_by(version_id=dataset.id)
    return {
        f"dataset/{row.path}": session.get_one(tables.BlobRow, row.sha256)
        for row in rows
        if not datasets.is_withheld(row.path, withheld)
    }


def _checkpoint_files(session: Session, job_id: str) -> dict[str, tables.BlobRow]:
    # Newest last: of two attempts that reached the same step, the later one counts.
    rows = reversed(leases.checkpoints(session, job_id=job_id))
    return {row.path: session.get_one(tables.BlobRow, row.sha256) for row in rows}
