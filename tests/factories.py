"""Rows that tests need, made through the registry's own verbs."""

import io
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.access import keys
from models_registry.artifacts import aliases, datasets, models, uploads
from models_registry.jobs import leases, submission, transitions
from models_registry.jobs.lifecycle import Event, Reason
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables
from models_registry.persistence.storage import Storage
from models_registry.studies import studies
from models_registry.studies.spec import StudySpec

DIGITS_INPUT: dict[str, Any] = {
    "channels": 1,
    "height": 8,
    "width": 8,
    "mean": [0.3],
    "std": [0.3],
}


def spec(**changes: Any) -> dict[str, Any]:
    """Return the body of a job that needs no teacher's weights to be accepted."""
    return {
        "name": "digits-kd",
        "teacher": "digits-teacher@1",
        "student": {"network": "retort/resnet8"},
        "dataset": "digits@1",
        "method": {"name": "kd"},
        "training": {"recipe": "small", "epochs": 2},
        **changes,
    }


def study_spec(**changes: Any) -> dict[str, Any]:
    """Return the body of a study: a baseline and two variants of KD, with two seeds each."""
    return {
        "name": "digits-methods",
        "teacher": "digits-teacher@1",
        "student": {"network": "retort/resnet8"},
        "dataset": "digits@1",
        "methods": [{"name": "kd", "temperature": {"grid": [2.0, 4.0]}}],
        "training": {"recipe": "small", "epochs": 2},
        "seeds": [0, 1],
        **changes,
    }


def data_free_spec(**changes: Any) -> dict[str, Any]:
    """Return the body of a job that invents its images, and has no data set."""
    return spec(**{"dataset": None, "method": {"name": "dafl"}, **changes})


def stored(
    session: Session, storage: Storage, content: bytes = b"weights", *, path: str = models.WEIGHTS
) -> leases.OutputFile:
    """Store bytes, by default as the weights of a model, with their blob's row."""
    kept = storage.put(io.BytesIO(content))
    uploads.adopt(session, sha256=kept.sha256, size_bytes=kept.size_bytes, storage_key=kept.key)
    return leases.OutputFile(path, kept.sha256, kept.size_bytes, kept.key)


def new_version(name: str = "digits-teacher", **changes: Any) -> models.NewModelVersion:
    """Return a version that fits the built-in data set `digits`."""
    facts: dict[str, Any] = {
        "name": name,
        "network": "retort/resnet8x4",
        "arguments": {},
        "task": "classification",
        "classes": 10,
        "input": DIGITS_INPUT,
        **changes,
    }
    return models.NewModelVersion(**facts)


def key(session: Session, *, project_id: str, role: str = "admin") -> str:
    """Add a key with this role, and return its text."""
    _, text = keys.create_key(
        session, project_id=project_id, name=role, role=role, environment="test"
    )
    return text


def alias(session: Session, *, project_id: str, name: str, alias: str, version: int = 1) -> None:
    """Let a model's new alias name one of its versions."""
    aliases.put(
        session, project_id=project_id, name=name, alias=alias, version=version, expected=None
    )


def teacher(
    session: Session,
    storage: Storage,
    *,
    project_id: str,
    name: str = "digits-teacher",
    content: bytes = b"weights",
    **changes: Any,
) -> tables.ModelVersionRow:
    """Add a version that is ready to teach."""
    file = stored(session, storage, content)
    return models.add_version(
        session,
        project_id=project_id,
        new=new_version(name, **changes),
        files={file.path: file.sha256},
        state="ready",
    )


def dataset_version(
    session: Session, *, project_id: str, name: str = "faces", **changes: Any
) -> tables.DatasetVersionRow:
    """Add a version of a data set that is ready, without files."""
    facts: dict[str, Any] = {"state": "ready", "format": "imagefolder", "task": "classification"}
    return datasets.add_version(session, project_id=project_id, name=name, **{**facts, **changes})


def job(session: Session, *, project_id: str, **changes: Any) -> tables.JobRow:
    """Submit a job; its teacher must be there."""
    wanted = JobSpec.model_validate(spec(**changes))
    return submission.submit(session, project_id=project_id, spec=wanted)


def study(session: Session, *, project_id: str, **changes: Any) -> tables.StudyRow:
    """Submit a study; its teacher must be there."""
    wanted = StudySpec.model_validate(study_spec(**changes))
    return studies.submit(session, project_id=project_id, spec=wanted)


def members(session: Session, study: tables.StudyRow) -> list[tables.JobRow]:
    """Return the jobs of a study as they were queued: seed by seed, by variant."""
    row = tables.JobRow
    query = sa.select(row).where(row.study_id == study.id)
    return list(session.scalars(query.order_by(row.study_seed, row.study_variant)))


def claimed(session: Session, row: tables.JobRow, *, worker_id: str = "wrk_1") -> leases.Lease:
    """Have a worker take a queued job."""
    lease = leases.claim(session, job_id=row.id, worker_id=worker_id, lease_seconds=60)
    if lease is None:
        raise AssertionError(f"{row.id} is {row.state} and cannot be claimed")
    return lease


def running(session: Session, row: tables.JobRow, *, worker_id: str = "wrk_1") -> leases.Lease:
    """Have a worker take a queued job and start its engine."""
    lease = claimed(session, row, worker_id=worker_id)
    leases.started(session, lease, device="cpu", resumed_from_step=None)
    return lease


def lost(session: Session, row: tables.JobRow) -> None:
    """Let the worker of a job fall silent, and queue the job again at once."""
    transitions.move(session, row, Event.LEASE_EXPIRED, because=Reason.ATTEMPT_LOST)
    row.not_before = row.created_at
    session.flush()


def succeeded(
    session: Session,
    storage: Storage,
    row: tables.JobRow,
    *,
    content: bytes = b"student",
    accuracy: float = 0.97,
    report: Mapping[str, bytes] = MappingProxyType({}),
    images: Mapping[str, bytes] = MappingProxyType({}),
) -> tables.JobRow:
    """Run a queued job to its end, with a student that has these bytes and is this good.

    `images` are files that a data-free method has kept.
    """
    lease = running(session, row)
    files = [stored(session, storage, content)]
    for folder, beside in (("report", report), ("synthetic", images)):
        for path, text in beside.items():
            files.append(stored(session, storage, text, path=f"{folder}/{path}"))
    leases.complete(
        session,
        lease,
        result={"scores": {"student": {"accuracy": accuracy}}, "parameters": {"student": 78_042}},
        student=new_version("digits-student", network="retort/resnet8", job_id=row.id),
        files=files,
    )
    return row


IMAGES_RECORD: dict[str, Any] = {
    "version": 1,
    "task": "classification",
    "classes": [str(number) for number in range(10)],
    "splits": {"train": 6, "validation": 2, "test": 2},
    "input": DIGITS_INPUT,
    "flip": False,
    "notes": [],
}
IMAGES = {
    "dataset.json": json.dumps(IMAGES_RECORD).encode(),
    **{f"{split}.safetensors": split.encode() for split in ("train", "validation", "test")},
}


def synthetic_job(
    session: Session,
    storage: Storage,
    *,
    project_id: str,
    images: Mapping[str, bytes] = MappingProxyType(IMAGES),
    **changes: Any,
) -> tables.JobRow:
    """Run a data-free job to its end, with these images kept; its teacher must exist."""
    wanted = JobSpec.model_validate(data_free_spec(**changes))
    row = submission.submit(session, project_id=project_id, spec=wanted)
    return succeeded(session, storage, row, images=images)
