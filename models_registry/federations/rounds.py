"""Rounds, as the worker that holds the job's lease opens, closes and publishes them.

Every write proves the lease first, which also locks the job's row: of two workers, only one can
move a round. What was opened or published once is not changed by a later attempt at the same job,
so clients never see a round twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import uploads
from models_registry.federations import federations
from models_registry.jobs import leases
from models_registry.persistence import database, tables


class RoundState(StrEnum):
    """The state of a round, in this order."""

    OPEN = "open"  # replies are accepted
    CLOSED = "closed"  # the engine aggregates
    PUBLISHED = "published"  # its consensus can be fetched


class TooFewClientsError(errors.RegistryError):
    """A round, or the wait before the first, has ended without enough clients."""

    code = "too_few_clients"


@dataclass(frozen=True)
class Gathering:
    """Who takes part."""

    clients: tuple[str, ...]
    """Ids, sorted."""
    is_complete: bool
    """Whether there are as many as a round needs."""


@dataclass(frozen=True)
class RoundCount:
    """A round, with the number and size of its replies."""

    round: tables.FederationRoundRow
    replies: int
    bytes_up: int


def publish_plan(
    session: Session,
    lease: leases.Lease,
    *,
    plan: dict[str, Any],  # JSON
    open_set: leases.OutputFile | None,
) -> None:
    """Store what clients need to know, once; the bytes of the open set are in storage."""
    federation = _held(session, lease)
    if federation.plan is not None:
        return
    if open_set is not None:
        federation.open_set_sha256 = _adopt(session, open_set)
    federation.plan = plan
    session.flush()
    federations.changed(session, federation.id)


def gather(session: Session, lease: leases.Lease) -> Gathering:
    """Return who has joined; the wait for enough clients starts with the first call.

    Raises: TooFewClientsError when they did not come in time.
    """
    federation = _held(session, lease)
    clients = tuple(sorted(_active(session, federation.id)))
    if len(clients) >= federation.min_clients:
        return Gathering(clients, is_complete=True)
    now = database.now(session)
    if federation.gathering_since is None:
        federation.gathering_since = now
        session.flush()
    waited = (now - federation.gathering_since).total_seconds()
    if waited > federation.join_seconds and not _any_round(session, federation.id):
        raise TooFewClientsError(
            f"{len(clients)} of at least {federation.min_clients} clients joined {federation.id} "
            f"within {federation.join_seconds:g} s ({_shown(session, federation.id, clients)}): "
            "invite more, lower method.federation.min_clients, or raise join_seconds"
        )
    return Gathering(clients, is_complete=False)


def get(session: Session, federation_id: str, number: int) -> tables.FederationRoundRow | None:
    """Return a round, None if it was not opened."""
    return session.get(tables.FederationRoundRow, (federation_id, number))


def all_of(session: Session, federation_id: str) -> list[tables.FederationRoundRow]:
    """Return the rounds that were opened, in order, without number 0."""
    row = tables.FederationRoundRow
    query = sa.select(row).where(row.federation_id == federation_id, row.number > 0)
    return list(session.scalars(query.order_by(row.number)))


def newest(session: Session, federation_id: str) -> tables.FederationRoundRow | None:
    """Return the newest round, number 0 included."""
    row = tables.FederationRoundRow
    query = sa.select(row).where(row.federation_id == federation_id)
    return session.scalars(query.order_by(row.number.desc()).limit(1)).one_or_none()


def open_round(
    session: Session,
    lease: leases.Lease,
    *,
    number: int,
    task: dict[str, Any],  # JSON
) -> tables.FederationRoundRow:
    """Open a round, or return it as an earlier attempt has opened it.

    A deadline that passed while no worker held the job begins anew.
    """
    federation = _held(session, lease)
    now = database.now(session)
    deadline = now + timedelta(seconds=federation.deadline_seconds)
    row = _locked(session, federation.id, number)
    if row is None:
        row = tables.FederationRoundRow(
            federation_id=federation.id,
            number=number,
            state=RoundState.OPEN,
            task=task,
            opened_at=now,
            deadline_at=deadline,
        )
        session.add(row)
        session.flush()
        federations.changed(session, federation.id)
    elif row.state == RoundState.OPEN and row.deadline_at is not None and row.deadline_at < now:
        row.deadline_at = deadline
        session.flush()
    return row


def close_if_due(session: Session, lease: leases.Lease, *, number: int) -> bool:
    """Close a round if all who take part have answered, or its deadline has passed.

    Returns whether it is closed. It needs `min_clients` replies in either case.
    Raises: TooFewClientsError at the deadline.
    """
    federation = _held(session, lease)
    row = _locked(session, federation.id, number)
    if row is None:
        raise errors.NotFound(f"{federation.id} has no round {number}")
    if row.state != RoundState.OPEN:
        return True
    answered = {reply.client_id for reply in replies(session, federation.id, number)}
    now = database.now(session)
    is_over = row.deadline_at is not None and row.deadline_at <= now
    if len(answered) < federation.min_clients:
        if not is_over:
            return False
        raise TooFewClientsError(
            f"round {number}: {len(answered)} of at least {federation.min_clients} clients "
            f"answered within {federation.deadline_seconds:g} s "
            f"({_shown(session, federation.id, answered)}): raise "
            "method.federation.deadline_seconds or lower min_clients"
        )
    if not is_over and _awaited(session, federation.id, row) - answered:
        return False
    row.state, row.closed_at = RoundState.CLOSED, now
    session.flush()
    federations.changed(session, federation.id)
    return True


def publish(session: Session, lease: leases.Lease, *, number: int, file: leases.OutputFile) -> bool:
    """Store what the server has made of a round (0: what clients start from).

    Returns False where an earlier attempt has published other bytes, which stay.
    """
    federation = _held(session, lease)
    now = database.now(session)
    row = _locked(session, federation.id, number)
    if row is None:  # only number 0 has no round before it
        row = tables.FederationRoundRow(
            federation_id=federation.id, number=number, task={}, opened_at=now, state="open"
        )
        session.add(row)
    if row.state == RoundState.PUBLISHED:
        return row.consensus_sha256 == file.sha256
    row.consensus_sha256 = _adopt(session, file)
    row.consensus_bytes = file.size_bytes
    row.state, row.published_at = RoundState.PUBLISHED, now
    row.closed_at = row.closed_at or now
    session.flush()
    federations.changed(session, federation.id)
    return True


def replies(session: Session, federation_id: str, number: int) -> list[tables.FederationReplyRow]:
    """Return the accepted replies of a round, sorted by client."""
    row = tables.FederationReplyRow
    query = sa.select(row).where(row.federation_id == federation_id, row.round == number)
    return list(session.scalars(query.order_by(row.client_id)))


def counts(session: Session, federation_id: str) -> list[RoundCount]:
    """Return the rounds that were opened, in order, with what was received in each."""
    reply = tables.FederationReplyRow
    query = (
        sa.select(reply.round, sa.func.count(), sa.func.sum(reply.size_bytes))
        .where(reply.federation_id == federation_id)
        .group_by(reply.round)
    )
    received = {number: (count, int(size)) for number, count, size in session.execute(query)}
    return [
        RoundCount(row, *received.get(row.number, (0, 0))) for row in all_of(session, federation_id)
    ]


# -- details ---------------------------------------------------------------------------------------


def _held(session: Session, lease: leases.Lease) -> tables.FederationRow:
    leases.prove(session, lease)
    return session.get_one(
        tables.FederationRow, federations.id_of(lease.job_id), populate_existing=True
    )


def _locked(session: Session, federation_id: str, number: int) -> tables.FederationRoundRow | None:
    return session.get(
        tables.FederationRoundRow,
        (federation_id, number),
        with_for_update=True,
        populate_existing=True,
    )


def _active(session: Session, federation_id: str) -> dict[str, tables.FederationClientRow]:
    row = tables.FederationClientRow
    joined = sa.select(row).where(
        row.federation_id == federation_id,
        row.joined_at.is_not(None),
        row.left_at.is_(None),
        row.revoked_at.is_(None),
    )
    return {client.id: client for client in session.scalars(joined)}


def _awaited(session: Session, federation_id: str, row: tables.FederationRoundRow) -> set[str]:
    """Return who may answer a round: all who have joined, but for those that are away.

    A client is away when it missed the round before and was not seen since this one is open.
    """
    active = _active(session, federation_id)
    before = {reply.client_id for reply in replies(session, federation_id, row.number - 1)}
    return {
        name
        for name in active
        if row.number == 1 or name in before or _was_seen(active[name], row.opened_at)
    }


def _was_seen(client: tables.FederationClientRow, since: datetime) -> bool:
    return client.last_seen_at is not None and client.last_seen_at >= since


def _any_round(session: Session, federation_id: str) -> bool:
    return bool(all_of(session, federation_id))


def _shown(session: Session, federation_id: str, clients: Sequence[str] | set[str]) -> str:
    row = tables.FederationClientRow
    query = sa.select(row.name).where(row.federation_id == federation_id, row.id.in_(clients))
    names = sorted(session.scalars(query))
    if not names:
        return "nobody"
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _adopt(session: Session, file: leases.OutputFile) -> str:
    uploads.adopt(
        session, sha256=file.sha256, size_bytes=file.size_bytes, storage_key=file.storage_key
    )
    return file.sha256
