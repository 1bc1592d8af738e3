"""Studies: many jobs submitted together, and their leaderboard."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy.orm import Session

from api import query_parameters
from api.dependencies import (
    CallerDep,
    EditorDep,
    LabelsDep,
    LimitsDep,
    PageDep,
    PublishDep,
    ReadersDep,
    SessionsDep,
)
from api.idempotency import IdempotentDep
from api.schemas import lists
from api.schemas import studies as bodies
from api.schemas.times import UtcTime
from models_registry import errors
from models_registry.access import audit
from models_registry.persistence import tables
from models_registry.studies import searches, studies
from models_registry.studies.spec import StudySpec

router = APIRouter(prefix="/v1/studies", tags=["studies"])

CSV = "text/csv"
_UNFINISHED = {studies.StudyState.QUEUED, studies.StudyState.RUNNING}


def _read(session: Session, study: tables.StudyRow) -> bodies.StudyRead:
    status = studies.statuses(session, [study])[study.id]
    return bodies.StudyRead.of(study, status)


@router.post("", operation_id="submit_study", status_code=202, response_model=bodies.StudyRead)
def submit(
    spec: StudySpec,
    caller: EditorDep,
    readers: ReadersDep,
    idempotent: IdempotentDep,
    publish: PublishDep,
    limits: LimitsDep,
) -> Response:
    """Submit a study: all of its jobs, or none. Each spec is validated as for a single job.

    With `search`, its jobs are made one after the other, as trials end; the bounds of all spaces
    are validated now.
    """
    # Before the transaction, which has SQLite's one writer; a repeated request is answered as the
    # first time, whatever would be wrong with it now.
    planned: studies.StudyPlan | errors.Refused
    try:
        with readers() as session:
            planned = studies.plan(session, project_id=caller.project_id, spec=spec)
    except errors.Refused as error:
        planned = error

    def work(session: Session) -> tuple[bodies.StudyRead, str]:
        if isinstance(planned, errors.Refused):
            raise planned
        study = studies.submit(
            session, project_id=caller.project_id, spec=spec, planned=planned, limits=limits
        )
        body = _read(session, study)
        return body, body.links.study

    response = idempotent.respond(work, status=202)
    publish()
    return response


@router.post("/validate", operation_id="validate_study")
def validate(spec: StudySpec, caller: CallerDep, readers: ReadersDep) -> bodies.StudyPlanRead:
    """Validate a study as on submission, store nothing, and return the variants it would have."""
    with readers() as session:
        plan = studies.plan(session, project_id=caller.project_id, spec=spec)
    return bodies.StudyPlanRead.of(plan)


@router.get(
    "",
    operation_id="list_studies",
    openapi_extra={query_parameters.PREFIX: "label."},
)
def index(
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    labels: LabelsDep,
    active: Annotated[
        bool | None, Query(description="Whether some of its jobs have not ended.")
    ] = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    created_after: UtcTime | None = None,
    created_before: UtcTime | None = None,
) -> lists.ListRead[bodies.StudyRead]:
    """List the project's studies, newest first. `label.<key>=<value>` filters by label."""
    filters = studies.StudyFilters(
        name=name,
        is_active=active,
        labels=labels,
        created_after=created_after,
        created_before=created_before,
    )
    with readers() as session:
        page = studies.page(session, project_id=caller.project_id, filters=filters, wanted=wanted)
        statuses = studies.statuses(session, page.rows)
    return lists.ListRead.of(page, lambda study: bodies.StudyRead.of(study, statuses[study.id]))


@router.get("/{study_id}", operation_id="get_study")
def show(study_id: str, caller: CallerDep, readers: ReadersDep) -> bodies.StudyRead:
    """Return a study as it is now."""
    with readers() as session:
        study = studies.get(session, project_id=caller.project_id, study_id=study_id)
        return _read(session, study)


@router.delete("/{study_id}", operation_id="delete_study", status_code=204)
def delete(study_id: str, caller: EditorDep, sessions: SessionsDep) -> None:
    """Delete a study with its jobs, all of which must have ended. Registered students stay."""
    with sessions.begin() as session:
        studies.delete(session, project_id=caller.project_id, study_id=study_id)
        audit.record(session, caller, "study.deleted", study_id)


@router.post(
    "/{study_id}/cancel",
    operation_id="cancel_study",
    responses={202: {"model": bodies.StudyRead, "description": "Some jobs are still stopping."}},
)
def cancel(
    study_id: str, caller: EditorDep, sessions: SessionsDep, response: Response
) -> bodies.StudyRead:
    """Cancel all jobs that have not ended. 202 while some are still stopping."""
    with sessions.begin() as session:
        study = studies.cancel(session, project_id=caller.project_id, study_id=study_id)
        body = _read(session, study)
    if body.state in _UNFINISHED:
        response.status_code = 202
    return body


@router.get("/{study_id}/trials", operation_id="list_trials")
def trials(
    study_id: str, caller: CallerDep, readers: ReadersDep, wanted: PageDep
) -> lists.ListRead[bodies.TrialRead]:
    """List the trials of a search, newest first, as compared on the validation split."""
    with readers() as session:
        study = studies.get(session, project_id=caller.project_id, study_id=study_id)
        page = searches.trials(session, study, wanted=wanted)
        jobs = searches.jobs_of_trials(session, study, [trial.number for trial in page.rows])
    return lists.ListRead.of(page, lambda trial: bodies.TrialRead.of(trial, jobs[trial.number]))


@router.get(
    "/{study_id}/leaderboard",
    operation_id="get_leaderboard",
    response_model=bodies.LeaderboardRead,
    responses={200: {"content": {CSV: {"schema": {"type": "string"}}}}},
)
def leaderboard(
    study_id: str,
    caller: CallerDep,
    readers: ReadersDep,
    response: Response,
    form: Annotated[
        Literal["json", "csv"] | None,
        Query(alias="format", description="Takes precedence over the header `Accept`."),
    ] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> bodies.LeaderboardRead | Response:
    """Compare the variants of a study by the results so far, best first.

    Of a search they are the best trial and the default settings, trained with fresh seeds.

    As JSON, or as CSV with `Accept: text/csv` or `format=csv`.
    """
    with readers() as session:
        study = studies.get(session, project_id=caller.project_id, study_id=study_id)
        state = studies.statuses(session, [study])[study.id].state
        compared = studies.compare(session, study)
    body = bodies.LeaderboardRead.of(study, state, compared)
    headers = {"vary": "Accept"}
    if form == "csv" or (form is None and prefers_csv(accept or "")):
        return Response(body.csv(), media_type=CSV, headers=headers)
    response.headers.update(headers)
    return body


def prefers_csv(accept: str) -> bool:
    """Return whether an `Accept` header prefers CSV to JSON."""
    qualities: dict[str, float] = {}
    for entry in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        qualities[kind] = float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0

    def quality_of(*kinds: str) -> float:
        # The most specific media type decides (RFC 9110, 12.5.1).
        return next((qualities[kind] for kind in kinds if kind in qualities), 0.0)

    csv = quality_of(CSV, "text/*", "*/*")
    return csv > quality_of("application/json", "application/*", "*/*")
