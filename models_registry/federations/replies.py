"""Replies of clients: received, checked and stored, at most one for each round and client.

`receive` opens short transactions of its own, since none may be held while bytes are transferred.
"""

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import uploads
from models_registry.federations import federations, rounds
from models_registry.federations.clients import Member
from models_registry.federations.rounds import RoundState
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from workers.distill.config import messages
from workers.distill.config.tensor_header import ByteFile

log = structlog.get_logger()

_IN_MEMORY_BYTES = 8 * 2**20
_CONFLICTS = frozenset({"wrong_round"})


@dataclass(frozen=True)
class Receipt:
    """What became of a reply."""

    reply: tables.FederationReplyRow
    is_new: bool
    """False for bytes that were accepted before."""


def receive(
    sessions: database.Sessions,
    store: Storage,
    *,
    member: Member,
    number: int,
    chunks: Iterable[bytes],
    announced_bytes: int | None,
    announced_sha256: str | None,
) -> Receipt:
    """Store a client's reply to the open round; the same bytes again change nothing.

    Raises: errors.NotFound for a round that was not opened; errors.Conflict for one that is over
    (the reply is late, and counted), and for other bytes than before; errors.TooLarge;
    errors.Refused, with the field at fault.
    """
    try:
        return _receive(sessions, store, member, number, chunks, announced_bytes, announced_sha256)
    except _Late as error:
        _count(sessions, member, tables.FederationClientRow.late)
        raise errors.Conflict(str(error), code="wrong_round") from error
    except errors.Refused:
        _count(sessions, member, tables.FederationClientRow.refused)
        raise


class _Late(Exception):
    """The round is over."""


def _receive(
    sessions: database.Sessions,
    store: Storage,
    member: Member,
    number: int,
    chunks: Iterable[bytes],
    announced_bytes: int | None,
    announced_sha256: str | None,
) -> Receipt:
    with sessions.begin() as session:
        known = _known(session, member, number)
        if known is None:
            _check_open(session, member, number)
        row = rounds.get(session, member.federation.id, number)
    expected = messages.Expected.model_validate(row.task["expected"] if row else None)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        size, sha256 = _spool(spool, chunks, expected, announced_bytes)
        if announced_sha256 is not None and announced_sha256 != sha256:
            raise errors.DigestMismatch(
                f"the body's SHA-256 is {sha256}, announced was {announced_sha256}: send it again"
            )
        if known is not None:
            return _repeated(known, sha256)
        contents = _checked(spool, size, expected, member)
        spool.seek(0)
        stored = store.put(spool, expected=sha256)
    with sessions.begin() as session:
        _check_open(session, member, number)
        if (known := _known(session, member, number)) is not None:
            return _repeated(known, sha256)  # of two requests at the same time
        uploads.adopt(session, sha256=sha256, size_bytes=stored.size_bytes, storage_key=stored.key)
        reply = tables.FederationReplyRow(
            federation_id=member.federation.id,
            round=number,
            client_id=member.client.id,
            sha256=sha256,
            blob_sha256=sha256,
            size_bytes=size,
            samples=contents.samples,
            metrics=contents.metrics,
            received_at=database.now(session),
        )
        session.add(reply)
        session.flush()
        _note(session, member, reply)
    log.info("reply_received", client_id=member.client.id, round=number, size_bytes=size)
    return Receipt(reply, is_new=True)


def _known(session: Session, member: Member, number: int) -> tables.FederationReplyRow | None:
    key = (member.federation.id, number, member.client.id)
    return session.get(tables.FederationReplyRow, key)


def _repeated(known: tables.FederationReplyRow, sha256: str) -> Receipt:
    if known.sha256 != sha256:
        raise errors.Conflict(
            f"round {known.round} has a reply of this client with other bytes (SHA-256 "
            f"{known.sha256}): the first counts",
            code="reply_differs",
        )
    return Receipt(known, is_new=False)


def _check_open(session: Session, member: Member, number: int) -> None:
    """Lock the round, so that it is not closed in this transaction; raise unless it is open."""
    federation = member.federation
    row = session.get(
        tables.FederationRoundRow,
        (federation.id, number),
        with_for_update=True,
        populate_existing=True,
    )
    client = session.get_one(tables.FederationClientRow, member.client.id, populate_existing=True)
    if client.joined_at is None or client.left_at is not None:
        raise errors.Conflict(
            f"client {client.name!r} takes no part: POST /v1/federations/{federation.id}"
            "/join first",
            code="not_joined",
        )
    if row is None or number == 0:
        newest = rounds.newest(session, federation.id)
        at = "no round is open yet" if newest is None else f"the newest round is {newest.number}"
        raise errors.Conflict(f"round {number} is not open: {at}", code="wrong_round")
    if row.state != RoundState.OPEN:
        newest = rounds.newest(session, federation.id)
        raise _Late(
            f"round {number} is over: the reply comes too late and is dropped; the newest round "
            f"is {newest.number if newest else number}"
        )


def _spool(
    spool: "tempfile.SpooledTemporaryFile[bytes]",
    chunks: Iterable[bytes],
    expected: messages.Expected,
    announced_bytes: int | None,
) -> tuple[int, str]:
    """Write the body to a temporary file while it is received; return its size and SHA-256."""
    if announced_bytes is not None and announced_bytes > expected.largest_bytes():
        raise _refusal(messages.too_large(announced_bytes, expected))
    size, digest = 0, hashlib.sha256()
    for chunk in chunks:
        size += len(chunk)
        if size > expected.largest_bytes():
            raise _refusal(messages.too_large(size, expected))
        digest.update(chunk)
        spool.write(chunk)
    spool.seek(0)
    return size, digest.hexdigest()


def _checked(
    stream: ByteFile, size: int, expected: messages.Expected, member: Member
) -> messages.Contents:
    try:
        contents = messages.check(stream, size, expected)
    except messages.MessageRefused as error:
        raise _refusal(error) from error
    if contents.sender != member.client.id:
        refused = messages.MessageRefused(
            "wrong_sender",
            f"sender must be {member.client.id!r}, the client of this key, got "
            f"{contents.sender[:60]!r}",
            field="sender",
        )
        raise _refusal(refused)
    return contents


def _refusal(error: messages.MessageRefused) -> errors.RegistryError:
    fault = errors.Fault(f"/{error.field}", error.code, error.message)
    if error.code == "too_large":
        return errors.TooLarge(error.message, code=error.code, faults=[fault])
    if error.code in _CONFLICTS:
        return errors.Conflict(error.message, code=error.code, faults=[fault])
    return errors.Refused(error.message, code=error.code, faults=[fault])


def _note(session: Session, member: Member, reply: tables.FederationReplyRow) -> None:
    row = tables.FederationClientRow
    session.execute(
        sa.update(row)
        .where(row.id == member.client.id)
        .values(
            last_round=reply.round,
            last_seen_at=reply.received_at,
            samples=reply.samples,
            metrics=reply.metrics,
            bytes_up=row.bytes_up + reply.size_bytes,
        )
        .execution_options(synchronize_session=False)
    )
    federations.changed(session, member.federation.id)


def _count(
    sessions: database.Sessions, member: Member, column: "sa.orm.InstrumentedAttribute[int]"
) -> None:
    row = tables.FederationClientRow
    with sessions.begin() as session:
        session.execute(
            sa.update(row)
            .where(row.id == member.client.id)
            .values({column: column + 1})
            .execution_options(synchronize_session=False)
        )
