"""Bodies of jobs and of what belongs to one."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from api import media_types, numbers, streams
from api.schemas import rows, versions
from models_registry.artifacts import models
from models_registry.jobs import logs, queries, reports, submission
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables
from workers.distill.config.result import RunResult

# Everything that is free-form JSON here is written by the engine or frozen at submission.
Json = dict[str, Any]
Number = float | str


class JobFailure(BaseModel):
    """Why a job failed."""

    code: str = Field(description="From a closed list, such as `diverged` or `worker_lost`.")
    message: str
    retryable: bool
    attempt: int
    log_tail: list[str] = Field(default=[], description="Last lines of the engine's log.")


class JobWarning(BaseModel):
    """Something that a user should know of a job, though it did not stop it."""

    code: str = Field(description="Such as `class_names_differ` or `teacher_weak`.")
    message: str


class JobChecked(JobSpec):
    """A spec that was found right, complete, with what its submitter should know."""

    warnings: list[JobWarning] = Field(
        default=[], description="Told again at submission; left out of a spec that is submitted."
    )

    @classmethod
    def of(cls, checked: submission.Checked) -> "JobChecked":
        """Return the body of a spec that was checked."""
        told = [JobWarning(code=w.code, message=w.detail) for w in checked.warnings]
        return cls.model_construct(**dict(checked.spec), warnings=told)


class JobResult(RunResult):
    """What a job that succeeded has made: the engine's result, and the registered student."""

    # Results are stored as the engine of their time reported them.
    model_config = ConfigDict(extra="allow")

    student: str = Field(description="Reference of the registered model version.")
    digest: str = Field(description="`sha256:` and the digest of the student's weights.")


class JobLinks(BaseModel):
    """Paths of what belongs to the job."""

    job: str
    events: str
    stream: str
    metrics: str
    attempts: str
    checkpoints: str
    logs: str
    student: str | None = None
    report: str | None = None


class JobRead(rows.RowRead):
    """A job in its current state."""

    id: str
    name: str
    state: str = Field(description="Treat a state that you do not know as not final.")
    state_reason: str | None
    state_message: str | None
    attempt: int
    progress: float = Field(ge=0, le=1)
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    estimated_end_at: datetime | None
    retry_of: str | None = None
    study: str | None = Field(
        default=None, description="Study that it belongs to; a retry replaces it there."
    )
    variant: int | None = Field(default=None, description="Number of its variant in the study.")
    depends_on: dict[str, str] = Field(
        default={},
        description="Jobs whose students it waits for, or waited for, by field.",
    )
    spec: Json = Field(description="As stored: defaults filled in, references resolved.")
    metrics: dict[str, Number] = Field(description="Latest values.")
    warnings: list[JobWarning] = Field(
        default=[], description="Of the submission and of the engine; also among the events."
    )
    failure: JobFailure | None
    result: JobResult | None
    labels: dict[str, str]
    priority: int = 0
    max_attempts: int = 1
    links: JobLinks

    @classmethod
    def of(cls, job: tables.JobRow, metrics: dict[str, float]) -> Self:
        """Return the body of a row with its latest metrics."""
        return cls.from_row(
            job,
            study=job.study_id,
            variant=job.study_variant,
            depends_on=job.spec.get("depends_on", {}),
            metrics={key: numbers.in_json(value) for key, value in metrics.items()},
            warnings=[JobWarning.model_validate(told) for told in job.warnings or ()],
            failure=JobFailure.model_validate(job.failure) if job.failure else None,
            result=JobResult.model_validate(job.result) if job.result else None,
            links=_links(job),
        )


class AttemptRead(rows.RowRead):
    """One attempt at a job: a worker's lease on it."""

    number: int
    worker_id: str | None
    device: str | None
    resumed_from_step: int | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    message: str | None


class AttemptLog(BaseModel):
    """The last lines that an attempt's engine has written so far."""

    attempt: int
    lines: list[str]
    ended_at: datetime | None
    is_cut: bool = Field(description="Whether there were lines before these.")
    position: str = Field(description="`Last-Event-ID` for the stream of what follows these lines.")

    @classmethod
    def of(cls, tail: logs.LogTail) -> Self:
        """Return the body of the end of a log."""
        attempt = tail.attempt
        return cls(
            attempt=attempt.number,
            lines=tail.lines,
            ended_at=attempt.ended_at,
            is_cut=tail.is_cut,
            position=f"{attempt.number}:{tail.end}",
        )


class LogSlice(BaseModel):
    """Lines of an attempt's log, as they were written."""

    attempt: int
    lines: list[str]

    @classmethod
    def of(cls, row: tables.LogSliceRow) -> Self:
        """Return the body of a row."""
        return cls(attempt=row.attempt, lines=row.text.splitlines())


class CheckpointRead(rows.RowRead):
    """A checkpoint from which a job can resume."""

    id: str
    attempt: int
    step: int
    epoch: int
    phase: str
    sha256: str
    size_bytes: int
    created_at: datetime


class EventRead(rows.RowRead):
    """One entry of a job's log; sequence numbers have no gaps."""

    sequence: int
    type: str
    at: datetime
    data: Json


class EventsRead(BaseModel):
    """Events after a sequence number."""

    data: list[EventRead]
    has_more: bool


class ProgressRead(rows.RowRead):
    """Progress of a job between two events; has no sequence number and is not stored."""

    state: str
    attempt: int
    progress: float
    estimated_end_at: datetime | None
    metrics: dict[str, Number]

    @classmethod
    def of(cls, told: streams.Progress) -> Self:
        """Return the body of a progress report."""
        return cls.from_row(told.snapshot, metrics=told.metrics)


class MetricPoint(rows.RowRead):
    """One measured value."""

    step: int
    epoch: int | None
    value: Number = Field(description='A number, or "NaN", "Infinity", "-Infinity".')
    at: datetime


class MetricSeries(BaseModel):
    """The values of one key, in order of step."""

    key: str
    points: list[MetricPoint]

    @classmethod
    def of(cls, key: str, points: list[queries.SeriesPoint]) -> Self:
        """Return the body of a series."""
        return cls(
            key=key,
            points=[
                MetricPoint.from_row(point, value=numbers.in_json(point.value)) for point in points
            ],
        )


class ReportFile(versions.StoredFile):
    """One file of a report; `path` is relative to the report."""

    url: str

    @classmethod
    def part_of(cls, job_id: str, file: models.File) -> Self:
        """Return the body of a file of a job's report."""
        path = reports.name_of(file)
        return cls(
            path=path,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            media_type=media_types.of(path),
            url=f"/v1/jobs/{job_id}/report/{path}",
        )


class ReportRead(BaseModel):
    """The report of a finished job; without files where the job was to write none."""

    data: list[ReportFile]
    archive: str | None = Field(description="All of them in one file.")

    @classmethod
    def of(cls, job_id: str, files: list[models.File]) -> Self:
        """Return the body of a job's report."""
        return cls(
            data=[ReportFile.part_of(job_id, file) for file in files],
            archive=f"/v1/jobs/{job_id}/report.zip" if files else None,
        )


class MetricsRead(BaseModel):
    """Series of a job, by key."""

    data: list[MetricSeries]


def _links(job: tables.JobRow) -> JobLinks:
    here = f"/v1/jobs/{job.id}"
    return JobLinks.model_construct(  # all of it is made here
        job=here,
        student=f"{here}/student" if job.student_version_id else None,
        report=f"{here}/report" if job.student_version_id else None,
        events=f"{here}/events",
        stream=f"{here}/stream",
        metrics=f"{here}/metrics",
        attempts=f"{here}/attempts",
        checkpoints=f"{here}/checkpoints",
        logs=f"{here}/logs",
    )
