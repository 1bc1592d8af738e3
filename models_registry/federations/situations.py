"""What a client of a federation is told: where it stands, and the bytes that it may fetch."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import models
from models_registry.federations import federations, rounds
from models_registry.federations.clients import Member
from models_registry.federations.federations import FederationState
from models_registry.federations.rounds import RoundState
from models_registry.jobs.lifecycle import State
from models_registry.persistence import tables

_ENDED = (FederationState.SUCCEEDED, FederationState.FAILED, FederationState.CANCELLED)


@dataclass(frozen=True)
class FederationSituation:
    """Where a federation stands, for one of its clients."""

    revision: int
    state: FederationState
    message: str | None
    is_planned: bool
    round: int
    round_state: str | None
    deadline_at: datetime | None
    has_answered: bool
    published: int | None

    @property
    def is_over(self) -> bool:
        """Return whether nothing will change any more."""
        return self.state in _ENDED


def of(session: Session, member: Member) -> FederationSituation:
    """Return where the client's federation stands now."""
    row = session.get_one(tables.FederationRow, member.federation.id, populate_existing=True)
    job = session.get_one(tables.JobRow, row.job_id, populate_existing=True)
    newest = rounds.newest(session, row.id)
    number = newest.number if newest else 0
    current = newest if number else None
    reply = session.get(tables.FederationReplyRow, (row.id, number, member.client.id))
    return FederationSituation(
        revision=row.revision,
        state=federations.state_of(State(job.state), number),
        message=(job.failure or {}).get("message") or job.state_message,
        is_planned=row.plan is not None,
        round=number,
        round_state=current.state if current else None,
        deadline_at=current.deadline_at if current else None,
        has_answered=reply is not None,
        published=_published(session, row.id),
    )


def open_set(session: Session, member: Member) -> models.File:
    """Return the file of the open set.

    Raises: errors.NotFound where the method has none, or before the job has started.
    """
    row = member.federation
    if row.open_set_sha256 is None:
        why = "has no open set" if row.plan is not None else "has not started"
        raise errors.NotFound(f"the job of {row.id} {why}")
    return _file(session, row.open_set_sha256, f"{row.id}-open-set.safetensors")


def consensus(session: Session, member: Member, number: int) -> models.File | None:
    """Return the file of a round's consensus; None if it is not published yet.

    Raises: errors.NotFound when it never will be: beyond the last round, or the job has ended.
    """
    row = member.federation
    found = rounds.get(session, row.id, number)
    if found is not None and found.consensus_sha256 is not None:
        name = f"{row.id}-round-{number:04d}.safetensors"
        return _file(session, found.consensus_sha256, name)
    if number > row.rounds:
        raise errors.NotFound(f"{row.id} has rounds 1 to {row.rounds}, not {number}")
    situation = of(session, member)
    if situation.is_over:
        raise errors.NotFound(
            f"the job of {row.id} has {situation.state}: round {number} was not published"
        )
    return None


def _published(session: Session, federation_id: str) -> int | None:
    row = tables.FederationRoundRow
    query = sa.select(sa.func.max(row.number)).where(
        row.federation_id == federation_id, row.state == RoundState.PUBLISHED
    )
    return session.scalars(query).one()


def _file(session: Session, sha256: str, name: str) -> models.File:
    blob = session.get_one(tables.BlobRow, sha256)
    return models.File(name, name, sha256, blob.size_bytes, blob.storage_key)
