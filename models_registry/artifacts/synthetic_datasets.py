"""Register the synthetic images that a data-free job has kept as a data set.

They are files of its student's version under `synthetic/`, in the engine's prepared form. Other
jobs can then train on them, and the lineage says where they come from. No bytes are copied.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import datasets, input_checks, models, uploads
from models_registry.jobs import actions, validation
from models_registry.jobs.lifecycle import State
from models_registry.persistence import tables
from models_registry.persistence.storage import Storage

FOLDER = "synthetic/"
FORMAT = "synthetic"
RECORD = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class NewSyntheticDataset:
    """What a caller says about a job whose images become a data set."""

    name: str
    job_id: str
    task: str | None = None
    """The task that the caller expects; None if it gave none."""
    card: str = ""
    tags: dict[str, str] = field(default_factory=dict)


def register(
    session: Session, storage: Storage, *, project_id: str, new: NewSyntheticDataset
) -> tables.DatasetVersionRow:
    """Add a version that is ready at once, with the files that the job has kept.

    Raises: errors.Refused with everything that is wrong.
    """
    faults = [
        *input_checks.faults_of_name(new.name),
        *input_checks.faults_of_notes(card=new.card, tags=new.tags),
    ]
    input_checks.refuse(faults, code="invalid_version")
    job = _job(session, project_id=project_id, job_id=new.job_id)
    student = _student(session, job)
    kept = {
        file.path.removeprefix(FOLDER): file
        for file in models.files_under(session, student, folder=FOLDER)
    }
    if RECORD not in kept:
        raise _refused("no_images", _why_none(job))
    with storage.open(kept[RECORD].storage_key) as chunks:
        record = json.loads(b"".join(chunks))
    if new.task not in (None, record["task"]):
        detail = f"the images of job {job.id} are for {record['task']}; leave task out"
        input_checks.refuse([errors.Fault("/task", "wrong_task", detail)], code="invalid_version")
    row = datasets.add_version(
        session,
        project_id=project_id,
        name=new.name,
        state="ready",
        format=FORMAT,
        task=record["task"],
        classes=record["classes"],
        splits=record["splits"],
        notes=record["notes"],
        input=record["input"],
        sha256=datasets.digest({path: file.sha256 for path, file in kept.items()}),
        lineage=_lineage(job, student),
        job_id=job.id,
        card=new.card or _card(job),
        tags=dict(new.tags),
    )
    for path, file in kept.items():
        # Their age is reset: a sweep that runs after the student was deleted must not take them.
        uploads.adopt(
            session, sha256=file.sha256, size_bytes=file.size_bytes, storage_key=file.storage_key
        )
        session.add(
            tables.DatasetFileRow(
                version_id=row.id, path=path, sha256=file.sha256, size_bytes=file.size_bytes
            )
        )
    session.flush()
    return row


def _job(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    try:
        job = actions.get(session, project_id=project_id, job_id=job_id)
    except errors.NotFound as error:
        raise _refused(error.code, error.message) from error
    if job.state != State.SUCCEEDED:
        raise _refused(
            "job_not_succeeded",
            f"job {job.id} is {job.state}: only jobs that succeeded have images to register",
        )
    return job


def _student(session: Session, job: tables.JobRow) -> tables.ModelVersionRow:
    # Locked, so that it is not deleted before its files belong to the data set too.
    version = session.get_one(
        tables.ModelVersionRow,
        job.student_version_id,
        populate_existing=True,
        with_for_update={"read": True, "key_share": True},
    )
    if version.deleted_at is not None:
        raise _refused(
            "student_deleted",
            f"the student of job {job.id} was deleted from the registry, and its images with it: "
            "run the job again",
        )
    return version


def _why_none(job: tables.JobRow) -> str:
    method = job.spec["method"]
    if not validation.is_data_free(method):
        return f"job {job.id} has made no images: its method {method['name']} is not data-free"
    if not method["synthesis"]["keep_images"]:
        return (
            f"job {job.id} has kept no images: submit it again with method.synthesis.keep_images "
            "true"
        )
    return (
        f"job {job.id} has kept no images: its replay buffer held too few for a data set; see the "
        "job's warnings"
    )


def _lineage(job: tables.JobRow, student: tables.ModelVersionRow) -> dict[str, Any]:
    return {
        "job": job.id,
        "images": "synthetic, made by the method",
        "labels": "predictions of the teacher",
        "teacher": job.spec["teacher"],
        "teacher_digest": job.spec["teacher_digest"],
        "student": models.reference_of(student),
        "student_digest": f"sha256:{student.sha256}",
        "method": job.spec["method"],
    }


def _card(job: tables.JobRow) -> str:
    method = job.spec["method"]["name"]
    return (
        f"Synthetic images that the method {method} made in job {job.id}; their labels are the "
        f"predictions of the teacher {job.spec['teacher']}."
    )


def _refused(code: str, detail: str) -> errors.Refused:
    return errors.Refused(detail, code=code, faults=[errors.Fault("/job", code, detail)])
