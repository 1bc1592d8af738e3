"""Federations: the remote clients' side of federated jobs, one for each such job.

A job whose spec has `method.federation.clients: "remote"` opens one when it is submitted, so that
parties can be invited before a worker takes the job. A federation has no state of its own: it
follows from that of its job and from its rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, paging, tables
from workers.distill.config.federation import REMOTE, fewest_replies


class FederationState(StrEnum):
    """The state of a federation."""

    WAITING = "waiting"  # no round was opened
    RUNNING = "running"  # rounds are going on, or their worker is being replaced
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Overview:
    """A federation with what is shown beside its own columns."""

    federation: tables.FederationRow
    job: tables.JobRow
    state: FederationState
    round: int
    """The newest round that was opened; 0 before the first."""
    joined: int
    invited: int
    """Clients with a key that is not revoked, joined or not."""


def is_remote(method: Mapping[str, Any]) -> bool:  # Any: JSON
    """Return whether a job with this method has remote clients."""
    federation = method.get("federation")
    return isinstance(federation, Mapping) and federation.get("clients") == REMOTE


def id_of(job_id: str) -> str:
    """Return the id of a job's federation."""
    return f"fed_{job_id.removeprefix('job_')}"


def open_for(session: Session, job: tables.JobRow) -> tables.FederationRow:
    """Open the federation of a job that was just stored; a round is an epoch of its training."""
    settings = job.spec["method"]["federation"]
    row = tables.FederationRow(
        id=id_of(job.id),
        project_id=job.project_id,
        job_id=job.id,
        method=job.method,
        rounds=job.spec["training"]["epochs"],
        min_clients=fewest_replies(settings),
        deadline_seconds=settings["deadline_seconds"],
        join_seconds=settings["join_seconds"],
        created_at=database.now(session),
    )
    session.add(row)
    session.flush()
    return row


def get(session: Session, *, project_id: str, federation_id: str) -> tables.FederationRow:
    """Return a federation of the project.

    Raises: errors.NotFound; errors.Gone when its job was deleted.
    """
    row = session.get(tables.FederationRow, federation_id)
    if row is None or row.project_id != project_id:
        raise errors.NotFound(
            f"no federation {federation_id[:60]!r} in this project: a job opens one when its "
            "method has federation.clients 'remote'"
        )
    if session.get_one(tables.JobRow, row.job_id).deleted_at is not None:
        raise errors.Gone(f"the job of federation {federation_id} was deleted")
    return row


def page(
    session: Session, *, project_id: str, job_id: str | None, wanted: paging.PageRequest
) -> paging.Page[tables.FederationRow]:
    """Return a page of a project's federations, newest first, or that of one job."""
    row, job = tables.FederationRow, tables.JobRow
    statement = (
        sa.select(row)
        .join(job, row.job_id == job.id)
        .where(row.project_id == project_id, job.deleted_at.is_(None))
    )
    if job_id is not None:
        statement = statement.where(row.job_id == job_id)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def overviews(session: Session, rows: Sequence[tables.FederationRow]) -> list[Overview]:
    """Return federations with their states and counts, in the same order."""
    return [_overview(session, row) for row in rows]


def _overview(session: Session, row: tables.FederationRow) -> Overview:
    job = session.get_one(tables.JobRow, row.job_id)
    client, number = tables.FederationClientRow, tables.FederationRoundRow.number
    joined, invited = session.execute(
        sa.select(sa.func.count(client.joined_at), sa.func.count()).where(
            client.federation_id == row.id, client.revoked_at.is_(None)
        )
    ).one()
    newest = sa.select(sa.func.max(number)).where(tables.FederationRoundRow.federation_id == row.id)
    opened = session.scalars(newest).one() or 0
    return Overview(row, job, state_of(State(job.state), opened), opened, joined, invited)


def state_of(job: State, opened: int) -> FederationState:
    """Return the state of a federation whose job is in this state; `opened` is its newest round."""
    if job in lifecycle.FINAL:
        return FederationState(job.value)
    return FederationState.RUNNING if opened else FederationState.WAITING


def changed(session: Session, federation_id: str) -> None:
    """Wake those who wait for something new in a federation."""
    row = tables.FederationRow
    session.execute(
        sa.update(row)
        .where(row.id == federation_id)
        .values(revision=row.revision + 1)
        .execution_options(synchronize_session=False)
    )


def release(session: Session, *, limit: int = 1000) -> int:
    """Let go of the replies of jobs that have ended: nothing resumes them. Return how many.

    What was published stays, for clients that come back late.
    """
    reply, row, job = tables.FederationReplyRow, tables.FederationRow, tables.JobRow
    ended = sa.select(row.id).join(job, row.job_id == job.id).where(job.state.in_(lifecycle.FINAL))
    kept = (
        sa.select(reply)
        .where(reply.federation_id.in_(ended), reply.blob_sha256.is_not(None))
        .limit(limit)
    )
    rows = session.scalars(kept).all()
    for found in rows:
        found.blob_sha256 = None
    session.flush()
    return len(rows)
