"""Federations: what the owner of a federated job sees, and what its remote clients do.

Owners come with an API key of their project. Clients come with a client key, which opens these
routes of its own federation and nothing else; they only call out.
"""

import functools
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from api import errors as problems
from api import ranges, request_body
from api.dependencies import (
    BearerDep,
    CallerDep,
    EditorDep,
    PageDep,
    ReadersDep,
    ServiceDep,
    SessionsDep,
    take_token,
)
from api.federation_waits import LONGEST_WAIT_SECONDS
from api.routes.uploads import PART_BODY
from api.schemas import federations as bodies
from api.schemas import lists
from models_registry import errors
from models_registry.access import audit
from models_registry.artifacts import models
from models_registry.federations import clients, federations, replies, rounds, situations
from models_registry.federations.clients import Member

router = APIRouter(prefix="/v1/federations", tags=["federations"])

RoundNumber = Annotated[int, Path(ge=0, le=100_000)]
Wait = Annotated[
    float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="How long to wait for it.")
]


# -- for the owner ---------------------------------------------------------------------------------


@router.get("", operation_id="list_federations")
def index(
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    job: Annotated[str | None, Query(max_length=40, description="Id of a job.")] = None,
) -> lists.ListRead[bodies.FederationRead]:
    """List the project's federations, newest first."""
    with readers() as session:
        page = federations.page(session, project_id=caller.project_id, job_id=job, wanted=wanted)
        shown = {
            overview.federation.id: bodies.FederationRead.of(overview)
            for overview in federations.overviews(session, page.rows)
        }
    return lists.ListRead.of(page, lambda row: shown[row.id])


@router.get("/{federation_id}", operation_id="get_federation")
def show(federation_id: str, caller: CallerDep, readers: ReadersDep) -> bodies.FederationRead:
    """Return a federation as it is now."""
    with readers() as session:
        row = federations.get(session, project_id=caller.project_id, federation_id=federation_id)
        return bodies.FederationRead.of(federations.overviews(session, [row])[0])


@router.post("/{federation_id}/clients", operation_id="invite_client", status_code=201)
def invite(
    federation_id: str,
    body: bodies.ClientInvite,
    caller: EditorDep,
    sessions: SessionsDep,
    service: ServiceDep,
) -> bodies.ClientInvited:
    """Add a client. Only this response contains its key, which opens this federation alone."""
    with sessions.begin() as session:
        row = federations.get(session, project_id=caller.project_id, federation_id=federation_id)
        client, text = clients.invite(
            session, row, name=body.name, environment=service.settings.environment
        )
        audit.record(session, caller, "client_key.created", client.id, name=client.name)
    return bodies.ClientInvited.from_row(client, state="invited", client_key=text)


@router.get("/{federation_id}/clients", operation_id="list_clients")
def list_clients(
    federation_id: str, caller: CallerDep, readers: ReadersDep, wanted: PageDep
) -> lists.ListRead[bodies.FederationClientRead]:
    """List the clients of a federation, the last invited first, revoked ones included."""
    with readers() as session:
        row = federations.get(session, project_id=caller.project_id, federation_id=federation_id)
        page = clients.page(session, row, wanted=wanted)
        newest = rounds.newest(session, row.id)
    number = newest.number if newest else 0
    return lists.ListRead.of(page, lambda client: bodies.FederationClientRead.of(client, number))


@router.delete(
    "/{federation_id}/clients/{client_id}", operation_id="revoke_client", status_code=204
)
def revoke(federation_id: str, client_id: str, caller: EditorDep, sessions: SessionsDep) -> None:
    """Revoke a client's key immediately. Rounds no longer wait for it."""
    with sessions.begin() as session:
        row = federations.get(session, project_id=caller.project_id, federation_id=federation_id)
        clients.revoke(session, row, client_id=client_id)
        audit.record(session, caller, "client_key.revoked", client_id)


@router.get("/{federation_id}/rounds", operation_id="list_rounds")
def list_rounds(
    federation_id: str, caller: CallerDep, readers: ReadersDep
) -> lists.ListRead[bodies.RoundRead]:
    """List all rounds that were opened, in order."""
    with readers() as session:
        row = federations.get(session, project_id=caller.project_id, federation_id=federation_id)
        counted = rounds.counts(session, row.id)
    return lists.ListRead(data=[bodies.RoundRead.of(count) for count in counted])


# -- for clients -----------------------------------------------------------------------------------


def _member(
    federation_id: str, request: Request, service: ServiceDep, credentials: BearerDep
) -> Member:
    if credentials is None:
        raise errors.Unauthenticated("send a client key: Authorization: Bearer ck_...")
    with service.readers() as session:
        member = clients.authenticate(
            session, text=credentials.credentials, federation_id=federation_id
        )
        due = clients.is_due(session, member.client)
    take_token(request, service.rate_limits.take_of_client(member.client.id))
    if due:
        with service.sessions.begin() as session:
            clients.note_seen(session, client_id=member.client.id)
    return member


MemberDep = Annotated[Member, Depends(_member)]


@router.post("/{federation_id}/join", operation_id="join_federation")
def join(body: bodies.Joining, member: MemberDep, sessions: SessionsDep) -> bodies.MembershipRead:
    """Join with a client key, or join again after a break: the client goes on where it was."""
    with sessions.begin() as session:
        clients.join(session, member, samples=body.samples, classes=body.classes)
        return bodies.MembershipRead.of(member, clients.class_names(session, member.federation))


@router.get("/{federation_id}/membership", operation_id="get_membership")
def membership(member: MemberDep, readers: ReadersDep) -> bodies.MembershipRead:
    """Return what the key's client would join: method, rounds and classes."""
    with readers() as session:
        return bodies.MembershipRead.of(member, clients.class_names(session, member.federation))


@router.post("/{federation_id}/leave", operation_id="leave_federation", status_code=204)
def leave(member: MemberDep, sessions: SessionsDep) -> None:
    """Leave: rounds no longer wait for this client. It may join again."""
    with sessions.begin() as session:
        clients.leave(session, member)


@router.get("/{federation_id}/situation", operation_id="get_situation")
async def situation(
    member: MemberDep,
    service: ServiceDep,
    after: Annotated[
        int | None, Query(ge=0, le=2**31 - 1, description="Wait for a later `revision`.")
    ] = None,
    wait_seconds: Wait = 0,
) -> bodies.SituationRead:
    """Return where the federation stands; with `after`, wait until something has changed."""

    def changed(session: Session) -> situations.FederationSituation | None:
        found = situations.of(session, member)
        return found if after is None or found.revision > after or found.is_over else None

    found = await service.federations.until(
        member.federation.id, changed, wait_seconds=wait_seconds
    )
    if found is None:  # nothing has changed: say what is
        with service.readers() as session:
            found = await run_in_threadpool(situations.of, session, member)
    return bodies.SituationRead(**vars(found))


@router.get("/{federation_id}/plan", operation_id="get_plan")
def plan(member: MemberDep) -> bodies.PlanRead:
    """Return what takes a client through all rounds: method, network, classes, training.

    409 before the job has started.
    """
    row = member.federation
    if row.plan is None:
        raise errors.Conflict(
            f"the job of {row.id} has not started: wait until is_planned", code="not_planned"
        )
    return bodies.PlanRead(plan=row.plan, open_set=row.open_set_sha256)


@router.get("/{federation_id}/open-set", operation_id="download_open_set", response_class=Response)
def open_set(request: Request, member: MemberDep, service: ServiceDep) -> Response:
    """Download the open set, safetensors with `images` [N, C, H, W]. Its ETag is its SHA-256."""
    with service.readers() as session:
        file = situations.open_set(session, member)
    return _sent(request, service, member, file)


@router.get("/{federation_id}/rounds/{number}/task", operation_id="get_task")
def task(number: RoundNumber, member: MemberDep, readers: ReadersDep) -> bodies.TaskRead:
    """Return what a round asks of a client."""
    with readers() as session:
        row = rounds.get(session, member.federation.id, number)
    if row is None or number == 0:
        raise errors.NotFound(f"round {number} of {member.federation.id} was not opened")
    return bodies.TaskRead.of(row)


@router.put(
    "/{federation_id}/rounds/{number}/reply",
    operation_id="put_reply",
    openapi_extra=PART_BODY,
    responses={201: {"model": bodies.ReceiptRead, "description": "Accepted for the first time."}},
)
async def put_reply(
    number: RoundNumber,
    request: Request,
    response: Response,
    member: MemberDep,
    service: ServiceDep,
) -> bodies.ReceiptRead:
    """Send a reply: safetensors with exactly what the round's task expects.

    The same bytes again change nothing (200); other bytes are refused (409), as is a reply to a
    round that is not open. NaN, negative probabilities, rows that do not sum to 1, another open
    set and other tensors are refused (422). `Repr-Digest` is checked when it is given.
    """
    request_body.check_encoding(request.headers)
    sha256 = request_body.announced_sha256(request.headers)
    chunks = request_body.Body(request, stall_seconds=service.settings.upload_stall_seconds)
    receipt = await request_body.in_thread(
        lambda: replies.receive(
            service.sessions,
            service.storage,
            member=member,
            number=number,
            chunks=chunks,
            announced_bytes=request_body.announced_bytes(request.headers),
            announced_sha256=sha256,
        )
    )
    if receipt.is_new:
        response.status_code = HTTPStatus.CREATED
    return bodies.ReceiptRead.of(receipt)


@router.get(
    "/{federation_id}/rounds/{number}/consensus",
    operation_id="download_consensus",
    response_class=Response,
    responses={202: {"description": "Not published yet: ask again."}},
)
async def consensus(
    number: RoundNumber,
    request: Request,
    member: MemberDep,
    service: ServiceDep,
    wait_seconds: Wait = 0,
) -> Response:
    """Download what the server has made of a round, the same for all clients; wait for it.

    Number 0 is what clients start from. Its ETag is its SHA-256.
    """
    file = await service.federations.until(
        member.federation.id,
        functools.partial(situations.consensus, member=member, number=number),
        wait_seconds=wait_seconds,
    )
    if file is None:
        headers = {"retry-after": str(problems.RETRY_AFTER_SECONDS)}
        return Response(status_code=HTTPStatus.ACCEPTED, headers=headers)
    return await run_in_threadpool(_sent, request, service, member, file)


def _sent(request: Request, service: ServiceDep, member: Member, file: models.File) -> Response:
    """Return the response with these bytes, and count them for the client."""
    response = ranges.respond(request, service.storage, file)
    size = int(response.headers.get("content-length", 0))
    if response.status_code != HTTPStatus.NOT_MODIFIED and size:
        with service.sessions.begin() as session:
            clients.note_seen(session, client_id=member.client.id, bytes_down=size)
    return response
