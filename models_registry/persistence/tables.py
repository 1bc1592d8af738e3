"""Every row of the service: SQLAlchemy 2 typed mappings, no methods, no queries.

Every tenant's row carries `project_id`. `blobs` do not: bytes are addressed by their content and
shared, and only rows of a project can lead to them.
"""

import math
from datetime import datetime
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from models_registry.persistence.database import UTCDateTime

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Number(TypeDecorator[float]):
    """A float that may be NaN: SQLite has none, so NaN is stored as NULL."""

    impl = sa.Float(53)
    cache_ok = True

    def process_bind_param(self, value: float | None, _dialect: Dialect) -> float | None:
        """Store NaN as NULL."""
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: float | None, _dialect: Dialect) -> float:
        """Read NULL as NaN."""
        return math.nan if value is None else value


Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts only INTEGER keys


class Row(DeclarativeBase):
    """Base of all rows; names constraints, so that migrations can find them again."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: UTCDateTime, dict[str, Any]: JSON, list[Any]: JSON}


class ProjectRow(Row):
    """A tenant: owns everything below."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(96), unique=True)
    created_at: Mapped[datetime]
    # Of its own; None: those of the service alone.
    limit_jobs_queued: Mapped[int | None]
    limit_jobs_running: Mapped[int | None]
    limit_storage_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    limit_upload_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    limit_requests_per_minute: Mapped[int | None]
    # A project with twice the weight gets twice the workers, where both have jobs waiting.
    share_weight: Mapped[float] = mapped_column(sa.Float(53), default=1.0)
    share_position: Mapped[float] = mapped_column(sa.Float(53), default=0.0)  # grows with claims


class ApiKeyRow(Row):
    """A credential; only the hash of its secret is stored."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(sa.String(96))
    role: Mapped[str] = mapped_column(sa.String(16))
    scopes: Mapped[list[Any] | None]  # null: whatever its role allows
    secret_sha256: Mapped[str] = mapped_column(sa.String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    rotated_at: Mapped[datetime | None]
    # The secret before the last rotation, which opens the same for a while.
    former_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    former_expires_at: Mapped[datetime | None]
    former_last_used_at: Mapped[datetime | None]


class AuditRow(Row):
    """What somebody did to keys, names, deletions or rules; the database refuses to change it."""

    __tablename__ = "audit_entries"
    __table_args__ = (sa.Index("ix_audit_entries_project_id_at_id", "project_id", "at", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    at: Mapped[datetime]
    action: Mapped[str] = mapped_column(sa.String(64))
    subject: Mapped[str] = mapped_column(sa.String(300))
    actor: Mapped[str] = mapped_column(sa.String(300))
    key_id: Mapped[str | None] = mapped_column(sa.String(40))
    request_id: Mapped[str | None] = mapped_column(sa.String(64))
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)


class BlobRow(Row):
    """Immutable bytes in storage, by SHA-256."""

    __tablename__ = "blobs"
    sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    storage_key: Mapped[str] = mapped_column(sa.String(200))
    # When a transaction last named it whose bytes were just put, perhaps again.
    adopted_at: Mapped[datetime]
    # Since when a sweep has found no row that needs it.
    marked_at: Mapped[datetime | None] = mapped_column(index=True)


class UploadRow(Row):
    """Parts on their way to one blob."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    filename: Mapped[str] = mapped_column(sa.String(255))
    purpose: Mapped[str] = mapped_column(sa.String(16))
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    part_size_bytes: Mapped[int]
    state: Mapped[str] = mapped_column(sa.String(16))  # open, completed, expired, deleted
    blob_sha256: Mapped[str | None] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    completed_at: Mapped[datetime | None]


class UploadPartRow(Row):
    """One received part; sending it again replaces it."""

    __tablename__ = "upload_parts"
    upload_id: Mapped[str] = mapped_column(
        sa.ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    storage_key: Mapped[str] = mapped_column(sa.String(200))
    received_at: Mapped[datetime]


class Inspected:
    """Columns of a version whose upload a worker inspects before it may be used.

    `inspection_fence` proves, as a job's fence does, that a result is from the last inspector.
    """

    state: Mapped[str] = mapped_column(sa.String(16), index=True)  # pending, ready, rejected
    rejection: Mapped[dict[str, Any] | None]
    inspection_fence: Mapped[int] = mapped_column(default=0)
    inspection_attempts: Mapped[int] = mapped_column(default=0)
    inspection_expires_at: Mapped[datetime | None]
    announced_at: Mapped[datetime | None]


class ModelRow(Row):
    """A line of versions under one name."""

    __tablename__ = "models"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(sa.String(96))
    card: Mapped[str] = mapped_column(sa.Text, default="")
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    last_version: Mapped[int] = mapped_column(default=0)  # never goes back: no number twice
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class ModelVersionRow(Inspected, Row):
    """One trained network: immutable but for card, tags and deprecation."""

    __tablename__ = "model_versions"
    __table_args__ = (sa.UniqueConstraint("model_id", "version"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    model_id: Mapped[str] = mapped_column(sa.ForeignKey("models.id"))
    version: Mapped[int]
    network: Mapped[str] = mapped_column(sa.String(160))
    arguments: Mapped[dict[str, Any]]
    task: Mapped[str] = mapped_column(sa.String(32))
    classes: Mapped[list[Any]]  # names, in the order of the logits
    reading: Mapped[dict[str, Any] | None]  # how the uploader wants the file to be read
    notes: Mapped[list[Any] | None]  # what the inspection chose, converted and left aside
    traits: Mapped[dict[str, Any] | None]  # of its network, as the inspection found them
    input: Mapped[dict[str, Any]]
    sha256: Mapped[str | None] = mapped_column(sa.String(64), index=True)  # of the weights
    parameters: Mapped[int | None] = mapped_column(sa.BigInteger)
    scores: Mapped[dict[str, Any]] = mapped_column(default=dict)
    lineage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    upload_id: Mapped[str | None] = mapped_column(sa.ForeignKey("uploads.id"), index=True)
    # The job that made it; no foreign key, since jobs refer to their teachers already.
    job_id: Mapped[str | None] = mapped_column(sa.String(40), index=True)
    card: Mapped[str] = mapped_column(sa.Text, default="")
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    deprecated: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class NetworkTrialRow(Row):
    """A network of another library for images of one size, built once by an inspector."""

    __tablename__ = "network_trials"
    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)  # of all that follows
    network: Mapped[str] = mapped_column(sa.String(160))
    arguments: Mapped[dict[str, Any]]
    input: Mapped[dict[str, Any]]  # channels, height, width, classes
    state: Mapped[str] = mapped_column(sa.String(16), index=True)  # pending, ready, rejected
    traits: Mapped[dict[str, Any] | None]
    rejection: Mapped[dict[str, Any] | None]
    attempts: Mapped[int] = mapped_column(default=0)
    announced_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class ModelFileRow(Row):
    """One file of a model version."""

    __tablename__ = "model_files"
    version_id: Mapped[str] = mapped_column(
        sa.ForeignKey("model_versions.id", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(sa.String(200), primary_key=True)
    sha256: Mapped[str] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)


class ModelAliasRow(Row):
    """A movable pointer to a version, such as `champion`."""

    __tablename__ = "model_aliases"
    model_id: Mapped[str] = mapped_column(sa.ForeignKey("models.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(sa.String(96), primary_key=True)
    version: Mapped[int]
    revision: Mapped[int]  # counts moves; the ETag of the alias
    history: Mapped[list[Any]]
    updated_at: Mapped[datetime]


class ModelExportRow(Row):
    """A version in another form, made by a worker; its files are files of the version."""

    __tablename__ = "model_exports"
    __table_args__ = (
        sa.Index("ix_model_exports_version_id_created_at_id", "version_id", "created_at", "id"),
    )
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    version_id: Mapped[str] = mapped_column(sa.ForeignKey("model_versions.id"))
    format: Mapped[str] = mapped_column(sa.String(32))
    precision: Mapped[str] = mapped_column(sa.String(16))
    include_preprocessing: Mapped[bool]
    max_drop: Mapped[float] = mapped_column(sa.Float(53))
    # queued, running, ready, failed, refused
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    failure: Mapped[dict[str, Any] | None]  # code and message, of failed and refused ones
    # What was measured: opset, library_versions, checks, latency.
    measured: Mapped[dict[str, Any] | None]
    notes: Mapped[list[Any]] = mapped_column(default=list)
    fence: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    claim_expires_at: Mapped[datetime | None]
    announced_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class PredictionRow(Row):
    """Pictures that somebody tries a version with; deleted minutes after they were sent."""

    __tablename__ = "predictions"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    version_id: Mapped[str] = mapped_column(sa.ForeignKey("model_versions.id"), index=True)
    export_id: Mapped[str] = mapped_column(sa.String(40))
    # In base64, until there is an answer; megabytes, which only the worker reads.
    pictures: Mapped[list[Any] | None] = mapped_column(deferred=True)
    state: Mapped[str] = mapped_column(sa.String(16))  # queued, running, ready, failed
    answer: Mapped[dict[str, Any] | None]
    failure: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class DatasetSamplesRow(Row):
    """A few pictures of each class of a data set version; made when they are first asked for."""

    __tablename__ = "dataset_samples"
    version_id: Mapped[str] = mapped_column(sa.ForeignKey("dataset_versions.id"), primary_key=True)
    state: Mapped[str] = mapped_column(sa.String(16))  # queued, running, ready, failed
    # A megabyte, which only who looks at it reads.
    sheet: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    failure: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class DatasetRow(Row):
    """A line of data set versions under one name."""

    __tablename__ = "datasets"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(sa.String(96))
    card: Mapped[str] = mapped_column(sa.Text, default="")
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    last_version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class DatasetVersionRow(Inspected, Row):
    """One immutable data set in the engine's canonical form."""

    __tablename__ = "dataset_versions"
    __table_args__ = (sa.UniqueConstraint("dataset_id", "version"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    dataset_id: Mapped[str] = mapped_column(sa.ForeignKey("datasets.id"))
    version: Mapped[int]
    format: Mapped[str] = mapped_column(sa.String(32))
    task: Mapped[str] = mapped_column(sa.String(32))
    classes: Mapped[list[Any]] = mapped_column(default=list)
    splits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # In detection: boxes of each class by split; no other task has them.
    boxes: Mapped[dict[str, Any] | None]
    # Images with a label by split; null where all have one.
    labelled: Mapped[dict[str, Any] | None]
    # How its pictures are stored that are decoded when used; null where images are decoded.
    encoded: Mapped[dict[str, Any] | None]
    # What was converted, left out or chosen; unknown of those registered before 0006.
    notes: Mapped[list[Any] | None]
    input: Mapped[dict[str, Any] | None]
    sha256: Mapped[str | None] = mapped_column(sa.String(64))  # of its manifest
    lineage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    upload_id: Mapped[str | None] = mapped_column(sa.ForeignKey("uploads.id"), index=True)
    # The file as it was uploaded, kept for downloads; the upload itself lets go of it.
    archive_sha256: Mapped[str | None] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    # Files elsewhere that it refers to, instead of an upload: see artifacts/dataset_sources.py.
    source: Mapped[dict[str, Any] | None]
    # The job that made its synthetic images; as for models, no foreign key.
    job_id: Mapped[str | None] = mapped_column(sa.String(40), index=True)
    card: Mapped[str] = mapped_column(sa.Text, default="")
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class DatasetFileRow(Row):
    """One file of a data set version."""

    __tablename__ = "dataset_files"
    version_id: Mapped[str] = mapped_column(
        sa.ForeignKey("dataset_versions.id", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(sa.String(200), primary_key=True)
    sha256: Mapped[str] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)


class DatasetSourceFileRow(Row):
    """One prepared file of a version that refers to a source: made by workers, and not stored."""

    __tablename__ = "dataset_source_files"
    version_id: Mapped[str] = mapped_column(
        sa.ForeignKey("dataset_versions.id", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(sa.String(200), primary_key=True)
    # No reference to a blob: no bytes of it are in the store.
    sha256: Mapped[str] = mapped_column(sa.String(64))
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)


class StudyRow(Row):
    """Jobs that differ in method, hyper-parameters and seed; its state is that of its jobs.

    A search makes its jobs one after the other, and so has a phase and a summary of its own.
    """

    __tablename__ = "studies"
    __table_args__ = (
        sa.Index("ix_studies_project_id_created_at_id", "project_id", "created_at", "id"),
    )
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(sa.String(200))
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    spec: Mapped[dict[str, Any]]
    variants: Mapped[list[Any]]  # what its jobs differ in, by number from 1
    search_phase: Mapped[str | None] = mapped_column(sa.String(16), index=True)
    search: Mapped[dict[str, Any] | None]  # what there is to say of its trials
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class TrialRow(Row):
    """One choice of values in a search; its jobs are the variant of its number."""

    __tablename__ = "study_trials"
    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # from 1
    state: Mapped[str] = mapped_column(sa.String(16))  # running, complete, pruned, failed
    method: Mapped[str] = mapped_column(sa.String(200))
    place: Mapped[int]  # of the method in the study's spec
    choices: Mapped[dict[str, Any]]  # by pointer, as the sampler is told of them
    settings: Mapped[dict[str, Any]]  # the values themselves, by name
    rungs: Mapped[list[Any]]  # where it was compared: epoch, value, needed, among, kept
    value: Mapped[float | None]  # of the objective; of a pruned one, when it was pruned
    message: Mapped[str | None] = mapped_column(sa.Text)  # why it ended early, or failed
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class JobRow(Row):
    """One request to distil; `state` is written by `jobs.move` alone.

    In a study there is one job for each variant and seed; a retry takes the place of its job.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("study_id", "study_variant", "study_seed"),
        sa.Index("ix_jobs_project_id_created_at_id", "project_id", "created_at", "id"),
        sa.Index("ix_jobs_state_not_before", "state", "not_before"),
        sa.Index("ix_jobs_claim_order", "project_id", "state", "claim_order_at", "id"),
        # For lists with filters that few of a project's jobs pass.
        sa.Index(
            "ix_jobs_project_id_state_created_at_id", "project_id", "state", "created_at", "id"
        ),
        sa.Index(
            "ix_jobs_project_id_method_created_at_id", "project_id", "method", "created_at", "id"
        ),
        sa.Index("ix_jobs_project_id_name_created_at_id", "project_id", "name", "created_at", "id"),
    )
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(sa.String(200))
    task: Mapped[str] = mapped_column(sa.String(32))
    method: Mapped[str] = mapped_column(sa.String(64))
    queue: Mapped[str] = mapped_column(sa.String(32))
    devices: Mapped[int] = mapped_column(default=1)
    priority: Mapped[int] = mapped_column(default=0)
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    spec: Mapped[dict[str, Any]]
    teacher_version_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("model_versions.id"), index=True
    )
    initial_version_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("model_versions.id"), index=True
    )
    dataset_version_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("dataset_versions.id"), index=True
    )
    retry_of: Mapped[str | None] = mapped_column(sa.ForeignKey("jobs.id"))
    study_id: Mapped[str | None] = mapped_column(sa.ForeignKey("studies.id"))
    study_variant: Mapped[int | None]
    study_seed: Mapped[int | None]

    state: Mapped[str] = mapped_column(sa.String(16))
    state_reason: Mapped[str | None] = mapped_column(sa.String(64))
    state_message: Mapped[str | None] = mapped_column(sa.Text)
    cancel_target: Mapped[str | None] = mapped_column(sa.String(16))
    last_sequence: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    releases: Mapped[int] = mapped_column(default=0)  # attempts that did not count
    max_attempts: Mapped[int] = mapped_column(default=3)
    checkpoints_last: Mapped[int | None]  # to keep, where the spec says it; else the policy
    fence: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(sa.String(40))
    lease_expires_at: Mapped[datetime | None]
    not_before: Mapped[datetime]
    claim_order_at: Mapped[datetime]  # its place among the jobs of its project
    announced_at: Mapped[datetime | None]
    announce_again_at: Mapped[datetime | None]  # set from the second announcement on
    max_runtime_seconds: Mapped[float | None]
    queue_deadline_seconds: Mapped[float | None]
    active_seconds: Mapped[float] = mapped_column(default=0.0)  # of ended attempts

    warnings: Mapped[list[Any] | None]  # of the submission and of the engine, each once
    traceparent: Mapped[str | None] = mapped_column(sa.String(55))  # of its submission
    progress: Mapped[float] = mapped_column(default=0.0)
    estimated_end_at: Mapped[datetime | None]
    failure: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    student_version_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("model_versions.id"), index=True
    )
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class JobDependencyRow(Row):
    """A job that waits for the student of another one, as its `teacher` or `initial`."""

    __tablename__ = "job_dependencies"
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    field: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    depends_on_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), index=True)
    depth: Mapped[int]  # length of the longest chain of jobs that it ends


class JobTeacherRow(Row):
    """One of a job's teachers, where it has several."""

    __tablename__ = "job_teachers"
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(sa.ForeignKey("model_versions.id"), index=True)


class AttemptRow(Row):
    """One lease on a job: one fence, one engine process."""

    __tablename__ = "job_attempts"
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    fence: Mapped[int]
    worker_id: Mapped[str | None] = mapped_column(sa.String(40))
    device: Mapped[str | None] = mapped_column(sa.String(64))
    resumed_from_step: Mapped[int | None]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(sa.String(32))
    message: Mapped[str | None] = mapped_column(sa.Text)
    log_tail: Mapped[list[Any] | None]


class LogSliceRow(Row):
    """Some lines of an attempt's log, shipped while it runs; the oldest go when there are many."""

    __tablename__ = "job_log_slices"
    __table_args__ = (
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"], ["job_attempts.job_id", "job_attempts.number"]
        ),
    )
    job_id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    start: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)  # byte in the engine's log
    end: Mapped[int] = mapped_column(sa.BigInteger)  # byte after the last
    text: Mapped[str] = mapped_column(sa.Text)
    at: Mapped[datetime]


class EventRow(Row):
    """One entry of a job's log; `sequence` is total and without gaps."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(sa.String(64))
    at: Mapped[datetime]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class MetricRow(Row):
    """One point of one series."""

    __tablename__ = "job_metrics"
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(96), primary_key=True)
    step: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[int | None]
    value: Mapped[float] = mapped_column(Number, nullable=True)
    at: Mapped[datetime]


class CheckpointRow(Row):
    """A point from which a job can go on."""

    __tablename__ = "job_checkpoints"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), index=True)
    attempt: Mapped[int]
    step: Mapped[int] = mapped_column(sa.BigInteger)
    epoch: Mapped[int]
    phase: Mapped[str] = mapped_column(sa.String(16))
    path: Mapped[str] = mapped_column(sa.String(200))
    sha256: Mapped[str] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime]


class OutboxRow(Row):
    """A message that is to be published after the transaction that wrote it."""

    __tablename__ = "outbox"
    __table_args__ = (sa.Index("ix_outbox_published_at_id", "published_at", "id"),)
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    task: Mapped[str] = mapped_column(sa.String(64))
    queue: Mapped[str] = mapped_column(sa.String(32))
    payload: Mapped[dict[str, Any]]
    priority: Mapped[int] = mapped_column(default=0)
    traceparent: Mapped[str | None] = mapped_column(sa.String(55))
    created_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
    claim_expires_at: Mapped[datetime | None]  # of the relay that is sending it


class IdempotencyRow(Row):
    """The first response to a request, returned again for the same key."""

    __tablename__ = "idempotency_keys"
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), primary_key=True)
    route: Mapped[str] = mapped_column(sa.String(200), primary_key=True)  # method and path
    key: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[int | None]
    response: Mapped[dict[str, Any] | None]
    location: Mapped[str | None] = mapped_column(sa.String(255))
    created_at: Mapped[datetime] = mapped_column(index=True)


class CounterRow(Row):
    """What processes without `/metrics` have counted, and when they last did."""

    __tablename__ = "service_counters"
    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[int] = mapped_column(sa.BigInteger)
    counted_at: Mapped[datetime]


class WorkerRow(Row):
    """A worker process that has registered itself."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    queues: Mapped[list[Any]]
    devices: Mapped[list[Any]]
    memory_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    versions: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime] = mapped_column(index=True)
    stopped_at: Mapped[datetime | None]
    gpu_utilisation: Mapped[float | None]  # mean of its cards at the last heartbeat, 0 to 1
    # Why it takes no jobs: code, message, since, retry_at.
    fault: Mapped[dict[str, Any] | None]
    # How its engines are isolated, by measure: is_active, detail.
    isolation: Mapped[dict[str, Any] | None]
    offered_devices: Mapped[int] = mapped_column(default=1)  # a job may use so many at most
    slots: Mapped[int] = mapped_column(default=1)  # so many engines run side by side at most
    total_devices: Mapped[int] = mapped_column(default=1)  # that its slots share


class FederationRow(Row):
    """The remote clients' side of one federated job; its state follows from that of the job."""

    __tablename__ = "federations"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), unique=True)
    method: Mapped[str] = mapped_column(sa.String(64))
    rounds: Mapped[int]
    min_clients: Mapped[int]
    deadline_seconds: Mapped[float]
    join_seconds: Mapped[float]
    # What clients need to know to take part; written by the engine when it starts.
    plan: Mapped[dict[str, Any] | None]
    open_set_sha256: Mapped[str | None] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    gathering_since: Mapped[datetime | None]  # when the engine began to wait for clients to join
    revision: Mapped[int] = mapped_column(default=0)  # counts what clients wait for
    created_at: Mapped[datetime]


class FederationClientRow(Row):
    """One party and its key: invited, then joined; only the hash of the key's secret is stored."""

    __tablename__ = "federation_clients"
    __table_args__ = (sa.UniqueConstraint("federation_id", "name"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    federation_id: Mapped[str] = mapped_column(sa.ForeignKey("federations.id"))
    name: Mapped[str] = mapped_column(sa.String(96))
    secret_sha256: Mapped[str] = mapped_column(sa.String(64))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    joined_at: Mapped[datetime | None]
    left_at: Mapped[datetime | None]
    last_seen_at: Mapped[datetime | None]
    samples: Mapped[int | None] = mapped_column(sa.BigInteger)  # as the client says
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)  # of its last reply
    last_round: Mapped[int | None]  # that it has answered
    bytes_up: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    late: Mapped[int] = mapped_column(default=0)
    refused: Mapped[int] = mapped_column(default=0)


class FederationRoundRow(Row):
    """One round; number 0 holds only what clients start from."""

    __tablename__ = "federation_rounds"
    federation_id: Mapped[str] = mapped_column(sa.ForeignKey("federations.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(sa.String(16))  # open, closed, published
    task: Mapped[dict[str, Any]]  # what a reply must be, and what else clients are told
    opened_at: Mapped[datetime]
    deadline_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
    published_at: Mapped[datetime | None]
    consensus_sha256: Mapped[str | None] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    consensus_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)


class FederationReplyRow(Row):
    """One accepted message of a client; its bytes are kept until no resume can need them."""

    __tablename__ = "federation_replies"
    __table_args__ = (
        sa.ForeignKeyConstraint(
            ["federation_id", "round"],
            ["federation_rounds.federation_id", "federation_rounds.number"],
        ),
    )
    federation_id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(sa.ForeignKey("federation_clients.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    blob_sha256: Mapped[str | None] = mapped_column(sa.ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    samples: Mapped[int] = mapped_column(sa.BigInteger)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    received_at: Mapped[datetime]


class RetentionPolicyRow(Row):
    """For how long a project keeps what jobs leave behind; null days: for good."""

    __tablename__ = "retention_policies"
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), primary_key=True)
    checkpoints_last: Mapped[int]
    failed_attempts_days: Mapped[int | None]
    logs_days: Mapped[int | None]
    metrics_days: Mapped[int | None]
    events_days: Mapped[int | None]
    updated_at: Mapped[datetime]


class RetentionMarkRow(Row):
    """What a job leaves behind of one kind, marked to be deleted; kept after that, for answers."""

    __tablename__ = "retention_marks"
    __table_args__ = (
        sa.Index(
            "ix_retention_marks_project_id_swept_at_marked_at",
            "project_id",
            "swept_at",
            "marked_at",
        ),
    )
    kind: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    marked_at: Mapped[datetime]
    swept_at: Mapped[datetime | None]
    entries: Mapped[int] = mapped_column(Big, default=0)  # deleted so far
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger, default=0)


class ErasedBlobRow(Row):
    """Bytes of an erased data set, which caches of workers drop at their next heartbeat."""

    __tablename__ = "erased_blobs"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    storage_key: Mapped[str] = mapped_column(sa.String(200))
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    adopted_at: Mapped[datetime]  # as of the blob
    erased_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None] = mapped_column(index=True)  # from storage


class TaskLeaseRow(Row):
    """The right to do one kind of maintenance, until it expires."""

    __tablename__ = "task_leases"
    name: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(40))
    expires_at: Mapped[datetime]


class WebhookEndpointRow(Row):
    """An address that is told of a project's events."""

    __tablename__ = "webhook_endpoints"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    url: Mapped[str] = mapped_column(sa.String(2000))
    description: Mapped[str] = mapped_column(sa.String(200), default="")
    events: Mapped[list[Any] | None]  # types that are sent; None: all
    # Not hashed: each delivery is signed with it.
    secret: Mapped[str] = mapped_column(sa.String(100))
    former_secret: Mapped[str | None] = mapped_column(sa.String(100))
    former_secret_expires_at: Mapped[datetime | None]
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_reason: Mapped[str | None] = mapped_column(sa.String(32))
    disabled_message: Mapped[str | None] = mapped_column(sa.Text)
    disabled_at: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]  # the first failure after the last success
    last_delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookDeliveryRow(Row):
    """One event on its way to one endpoint; the number of its attempt is its fencing token."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        sa.Index(
            "ix_webhook_deliveries_endpoint_id_created_at_id", "endpoint_id", "created_at", "id"
        ),
        sa.Index("ix_webhook_deliveries_state_next_attempt_at", "state", "next_attempt_at"),
        sa.Index("ix_webhook_deliveries_created_at", "created_at"),
    )
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(
        sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
    )
    # Of the event: the same for every endpoint, and in every attempt.
    message_id: Mapped[str] = mapped_column(sa.String(60))
    type: Mapped[str] = mapped_column(sa.String(64))
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(sa.String(16))  # pending, delivered, failed
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)  # since the schedule began; a place in it
    next_attempt_at: Mapped[datetime]
    claim_expires_at: Mapped[datetime | None]  # of the process that is sending it
    announced_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class WebhookAttemptRow(Row):
    """One request of a delivery, and what was answered; without an end, its sender was lost."""

    __tablename__ = "webhook_attempts"
    delivery_id: Mapped[str] = mapped_column(
        sa.ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(sa.Text)
    excerpt: Mapped[str | None] = mapped_column(sa.Text)  # of the answer's body
