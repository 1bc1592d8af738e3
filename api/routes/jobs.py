"""Jobs: submit, read, control, stream."""

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.orm import Session

from api import archives, json_responses, query_parameters, streams
from api.dependencies import (
    CallerDep,
    EditorDep,
    LabelsDep,
    LimitsDep,
    PageDep,
    PublishDep,
    ReadersDep,
    SendFileDep,
    ServiceDep,
    SessionsDep,
    StorageDep,
)
from api.idempotency import IdempotentDep
from api.schemas import jobs as bodies
from api.schemas import lists
from api.schemas.times import UtcTime
from models_registry import errors
from models_registry.access import audit, callers
from models_registry.jobs import actions, lifecycle, logs, queries, reports, submission
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, tables
from models_registry.retention import expired

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LONGEST_WAIT_SECONDS = 25
LONGEST_TRIAL_SECONDS = 10.0
TRIAL_POLL_SECONDS = 0.2
# Numbers that fit the columns they are compared with.
_POSITION = re.compile(r"([0-9]{1,9}):([0-9]{1,18})", re.ASCII)


def _read(session: Session, job: tables.JobRow) -> bodies.JobRead:
    metrics = queries.latest_metrics_of(session, [job])
    return bodies.JobRead.of(job, metrics[job.id])


def _accepted(session: Session, job: tables.JobRow) -> tuple[bodies.JobRead, str]:
    body = _read(session, job)
    return body, body.links.job


@router.post("", operation_id="submit_job", status_code=202, response_model=bodies.JobRead)
def submit(
    spec: JobSpec,
    caller: EditorDep,
    idempotent: IdempotentDep,
    publish: PublishDep,
    limits: LimitsDep,
) -> Response:
    """Submit a job. The spec is validated immediately and cannot be changed afterwards."""

    def work(session: Session) -> tuple[bodies.JobRead, str]:
        job = submission.submit(session, project_id=caller.project_id, spec=spec, limits=limits)
        return _accepted(session, job)

    response = idempotent.respond(work, status=202)
    publish()
    return response


@router.post("/validate", operation_id="validate_job")
def validate(
    spec: JobSpec, caller: CallerDep, sessions: SessionsDep, publish: PublishDep
) -> bodies.JobChecked:
    """Validate a spec as on submission, store no job, and return it with defaults filled in.

    A network of another library that is new here is tried out by an inspector meanwhile, for which
    the answer waits a few seconds.
    """
    deadline = time.monotonic() + LONGEST_TRIAL_SECONDS
    while True:
        with sessions.begin() as session:
            checked = submission.check(session, project_id=caller.project_id, spec=spec)
        if not checked.is_being_tried or time.monotonic() > deadline:
            return bodies.JobChecked.of(checked)
        publish()
        time.sleep(TRIAL_POLL_SECONDS)


@router.get(
    "",
    operation_id="list_jobs",
    response_model=lists.ListRead[bodies.JobRead],
    openapi_extra={query_parameters.PREFIX: "label."},
)
def index(
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    labels: LabelsDep,
    state: Annotated[list[lifecycle.State], Query(description="May be repeated.")] = [],  # noqa: B006 - FastAPI copies defaults
    method: Annotated[str | None, Query(max_length=64)] = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    study: Annotated[str | None, Query(max_length=40, description="Id of a study.")] = None,
    created_after: UtcTime | None = None,
    created_before: UtcTime | None = None,
) -> Response:
    """List the project's jobs, newest first. `label.<key>=<value>` filters by label."""
    filters = queries.JobFilters(
        states=state,
        method=method,
        name=name,
        study_id=study,
        labels=labels,
        created_after=created_after,
        created_before=created_before,
    )
    with readers() as session:
        page = queries.page(session, project_id=caller.project_id, filters=filters, wanted=wanted)
        metrics = queries.latest_metrics_of(session, page.rows)
    found = lists.ListRead[bodies.JobRead].of(
        page, lambda job: bodies.JobRead.of(job, metrics[job.id])
    )
    return json_responses.of(found)


@router.get("/{job_id}", operation_id="get_job", response_model=bodies.JobRead)
def show(job_id: str, caller: CallerDep, readers: ReadersDep) -> Response:
    """Return a job as it is now."""
    with readers() as session:
        body = _read(session, actions.get(session, project_id=caller.project_id, job_id=job_id))
    return json_responses.of(body)


@router.delete("/{job_id}", operation_id="delete_job", status_code=204)
def delete(job_id: str, caller: EditorDep, sessions: SessionsDep) -> None:
    """Delete a job that has ended. Registered students stay."""
    with sessions.begin() as session:
        actions.delete(session, project_id=caller.project_id, job_id=job_id)
        audit.record(session, caller, "job.deleted", job_id)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    responses={202: {"model": bodies.JobRead, "description": "The job is still `cancelling`."}},
)
def cancel(
    job_id: str, caller: EditorDep, sessions: SessionsDep, response: Response
) -> bodies.JobRead:
    """Cancel a job. A running one is `cancelling` (202) until its device is free."""
    with sessions.begin() as session:
        job = actions.cancel(session, project_id=caller.project_id, job_id=job_id)
        body = _read(session, job)
    if job.state == lifecycle.State.CANCELLING:
        response.status_code = 202
    return body


@router.post("/{job_id}/pause", operation_id="pause_job")
def pause(job_id: str, caller: EditorDep, sessions: SessionsDep) -> bodies.JobRead:
    """Pause a job; it can be resumed from a checkpoint."""
    with sessions.begin() as session:
        return _read(session, actions.pause(session, project_id=caller.project_id, job_id=job_id))


@router.post("/{job_id}/resume", operation_id="resume_job")
def resume(
    job_id: str, caller: EditorDep, sessions: SessionsDep, publish: PublishDep
) -> bodies.JobRead:
    """Resume a paused job from its last checkpoint."""
    with sessions.begin() as session:
        body = _read(session, actions.resume(session, project_id=caller.project_id, job_id=job_id))
    publish()
    return body


@router.post(
    "/{job_id}/retry", operation_id="retry_job", status_code=202, response_model=bodies.JobRead
)
def retry(
    job_id: str,
    caller: EditorDep,
    idempotent: IdempotentDep,
    publish: PublishDep,
    limits: LimitsDep,
) -> Response:
    """Submit the spec of a failed or cancelled job again, as a new job."""

    def work(session: Session) -> tuple[bodies.JobRead, str]:
        job = actions.retry(session, project_id=caller.project_id, job_id=job_id, limits=limits)
        return _accepted(session, job)

    response = idempotent.respond(work, status=202)
    publish()
    return response


@router.get("/{job_id}/attempts", operation_id="list_attempts")
def attempts(
    job_id: str, caller: CallerDep, readers: ReadersDep
) -> lists.ListRead[bodies.AttemptRead]:
    """List all attempts of a job, oldest first."""
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        rows = queries.attempts(session, job_id=job.id)
    return lists.ListRead(data=[bodies.AttemptRead.from_row(row) for row in rows])


@router.get("/{job_id}/logs", operation_id="list_logs")
def show_logs(
    job_id: str,
    caller: CallerDep,
    readers: ReadersDep,
    attempt: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="Of this attempt alone.")
    ] = None,
    lines: Annotated[
        int, Query(ge=1, le=logs.MAX_LINES, description="Of each attempt, the last ones.")
    ] = logs.DEFAULT_LINES,
) -> lists.ListRead[bodies.AttemptLog]:
    """Return the last lines of the engine of each of the newest attempts, oldest attempt first.

    They come within seconds while an attempt runs; `/logs/stream` follows them. Kept are the
    newest 1 MiB of each attempt for as long as the project's retention says (30 days), and its
    last lines from then on.
    """
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        tails = logs.tails(session, job_id=job.id, attempt=attempt, lines=lines)
        return lists.ListRead(data=[bodies.AttemptLog.of(tail) for tail in tails])


@router.get("/{job_id}/checkpoints", operation_id="list_checkpoints")
def checkpoints(
    job_id: str, caller: CallerDep, readers: ReadersDep, wanted: PageDep
) -> lists.ListRead[bodies.CheckpointRead]:
    """List the checkpoints from which a job can be resumed, newest first."""
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        page = queries.checkpoints(session, job_id=job.id, wanted=wanted)
        if not page.rows:
            expired.refuse(session, job, "failed_attempts")
    return lists.ListRead.of(page, bodies.CheckpointRead.from_row)


@router.get("/{job_id}/metrics", operation_id="get_metrics")
def metrics(
    job_id: str,
    caller: CallerDep,
    readers: ReadersDep,
    keys: Annotated[
        str | None, Query(max_length=2000, description="Separated by commas; all by default.")
    ] = None,
    from_step: Annotated[int, Query(ge=0, le=2**62)] = 0,
    max_points: Annotated[
        int, Query(ge=1, le=queries.MAX_POINTS, description="Of each series.")
    ] = queries.DEFAULT_POINTS,
) -> bodies.MetricsRead:
    """Return metric values by key, downsampled so that extreme values are kept."""
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        series = queries.series(
            session,
            job_id=job.id,
            keys=[key for key in (keys or "").split(",") if key],
            from_step=from_step,
            max_points=max_points,
        )
        if not series:
            expired.refuse(session, job, "metrics")
    return bodies.MetricsRead(
        data=[bodies.MetricSeries.of(key, points) for key, points in series.items()]
    )


@router.get("/{job_id}/student", operation_id="download_student", response_class=Response)
def student(
    job_id: str, caller: CallerDep, readers: ReadersDep, send_file: SendFileDep
) -> Response:
    """Download the student's `model.safetensors`."""
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        file = queries.student_file(session, job=job)
    return send_file(file)


@router.get("/{job_id}/report", operation_id="list_report")
def report(job_id: str, caller: CallerDep, readers: ReadersDep) -> bodies.ReportRead:
    """List the report files of a job that succeeded: numbers (JSON), pictures, a model card."""
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        return bodies.ReportRead.of(job.id, reports.files(session, job=job))


@router.get(
    "/{job_id}/report.zip",
    operation_id="download_report",
    response_class=Response,
)
def report_archive(
    job_id: str, request: Request, caller: CallerDep, readers: ReadersDep, storage: StorageDep
) -> Response:
    """Download the whole report as one archive."""
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        files = reports.whole(session, job=job)
    entries = [
        archives.ArchiveEntry(file.path, file.sha256, file.size_bytes, file.storage_key)
        for file in files
    ]
    return archives.respond(request, storage, entries, filename=f"{job_id}-report.zip")


@router.get(
    "/{job_id}/report/{path:path}",
    operation_id="download_report_file",
    response_class=Response,
)
def report_file(
    job_id: str, path: str, caller: CallerDep, readers: ReadersDep, send_file: SendFileDep
) -> Response:
    """Download a file of the report, whole or one range of it. Its ETag is its SHA-256."""
    with readers() as session:
        job = actions.get(session, project_id=caller.project_id, job_id=job_id)
        file = reports.file(session, job=job, path=path)
    return send_file(file)


def _watched(kind: str) -> Callable[[str, callers.Caller, database.Sessions], str]:
    def watched(job_id: str, caller: CallerDep, readers: ReadersDep) -> str:
        # Checked before the stream starts: afterwards no 404 can be sent.
        with readers() as session:
            job = actions.get(session, project_id=caller.project_id, job_id=job_id)
            expired.refuse(session, job, kind)
            return job.id

    return watched


WatchedDep = Annotated[str, Depends(_watched("events"))]
WatchedLogDep = Annotated[str, Depends(_watched("logs"))]
Sequence = Annotated[int, Query(ge=0, le=2**31 - 1)]


@router.get("/{job_id}/events", operation_id="list_events")
async def events(
    job_id: WatchedDep,
    caller: CallerDep,
    service: ServiceDep,
    after: Sequence = 0,
    limit: Annotated[int, Query(ge=1, le=queries.MAX_EVENTS)] = 100,
    wait_seconds: Annotated[
        float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="For the first new event.")
    ] = 0,
) -> bodies.EventsRead:
    """Return events after a sequence number; wait for one if there is none yet."""
    rows = await service.hub.events_after(
        job_id,
        after,
        credential_id=caller.credential_id,
        limit=limit + 1,
        wait_seconds=wait_seconds,
    )
    return bodies.EventsRead(
        data=[bodies.EventRead.from_row(event) for event in rows[:limit]],
        has_more=len(rows) > limit,
    )


def _after(
    given: Annotated[
        str | None, Header(alias="Last-Event-ID", description="Of the last event received.")
    ] = None,
) -> int:
    if given is None or given == "":
        return 0
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        fault = errors.Fault(
            "/header/last-event-id", "bad_event_id", "Last-Event-ID is a sequence number"
        )
        raise errors.Malformed(fault.detail, code=fault.code, faults=[fault])
    return int(given)


def _stream_slot(caller: CallerDep, service: ServiceDep) -> Iterator[None]:
    with service.hub.stream_slot(caller.project_id):
        yield


@router.get(
    "/{job_id}/stream",
    operation_id="stream_job",
    response_class=EventSourceResponse,
    dependencies=[Depends(_stream_slot)],
)
async def stream(
    job_id: WatchedDep,
    caller: CallerDep,
    service: ServiceDep,
    after: Annotated[int, Depends(_after)],
) -> AsyncIterator[ServerSentEvent]:
    """Stream a job's events as they happen, and its progress in between, until it ends.

    Events carry their sequence number as `id`; `progress` records carry none. A stream whose key is
    revoked or expires ends within seconds.
    """
    async for record in service.hub.follow(job_id, after, credential_id=caller.credential_id):
        if isinstance(record, streams.Progress):
            yield ServerSentEvent(data=bodies.ProgressRead.of(record), event="progress")
        else:
            body = bodies.EventRead.from_row(record)
            yield ServerSentEvent(data=body, event=body.type, id=str(body.sequence))
    if service.hub.draining:
        yield ServerSentEvent(retry=streams.RETRY_MILLISECONDS)


def _position(
    given: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="Of the last lines received, or `position` of a log; else from the start.",
        ),
    ] = None,
) -> logs.Position:
    if given is None or given == "":
        return logs.Position()
    match = _POSITION.fullmatch(given)
    if match is None:
        fault = errors.Fault(
            "/header/last-event-id",
            "bad_event_id",
            f"Last-Event-ID of a log is ATTEMPT:BYTE, such as 1:4096, got {given[:60]!r}",
        )
        raise errors.Malformed(fault.detail, code=fault.code, faults=[fault])
    return logs.Position(int(match[1]), int(match[2]))


@router.get(
    "/{job_id}/logs/stream",
    operation_id="stream_logs",
    response_class=EventSourceResponse,
    dependencies=[Depends(_stream_slot)],
)
async def stream_logs(
    job_id: WatchedLogDep,
    caller: CallerDep,
    service: ServiceDep,
    position: Annotated[logs.Position, Depends(_position)],
) -> AsyncIterator[ServerSentEvent]:
    """Stream the lines that a job's engine writes, of all attempts, until the job ends.

    A stream whose key is revoked or expires ends within seconds.
    """
    async for row in service.hub.follow_log(job_id, position, credential_id=caller.credential_id):
        yield ServerSentEvent(
            data=bodies.LogSlice.of(row), event="log", id=f"{row.attempt}:{row.end}"
        )
    if service.hub.draining:
        yield ServerSentEvent(retry=streams.RETRY_MILLISECONDS)
