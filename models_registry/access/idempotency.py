"""Idempotent requests: the first response is stored, and returned again for the same key.

The key's row is written in the transaction that does the work, so either both exist or neither.
A second request with the same key waits at that row until the first has ended.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.persistence import database, tables

KEPT_FOR = timedelta(hours=24)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class KeyedRequest:
    """The identity of a request: project, route, key and body."""

    project_id: str
    route: str  # method and path
    key: str
    body_sha256: str


@dataclass(frozen=True)
class StoredResponse:
    """A successful response, as it was first sent."""

    status: int
    body: dict[str, Any]
    location: str | None = None


def keyed_request(*, project_id: str, route: str, key: str, body: Any) -> KeyedRequest:
    """Return the identity of a request with a parsed JSON body.

    Raises: Malformed, for a key that is empty, too long or not plain text.
    """
    if not _KEY.fullmatch(key):
        message = "an Idempotency-Key has 1 to 255 visible ASCII characters"
        fault = errors.Fault("/header/idempotency-key", "bad_idempotency_key", message)
        raise errors.Malformed(message, code="bad_idempotency_key", faults=[fault])
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return KeyedRequest(project_id, route, key, hashlib.sha256(canonical).hexdigest())


def begin(session: Session, request: KeyedRequest) -> StoredResponse | None:
    """Claim the key in the caller's transaction, or return the response stored under it.

    Raises: Refused when the key was used with another body; Conflict when the first request with
    this key has not ended.
    """
    row = tables.IdempotencyRow
    now = database.now(session)
    mine = sa.and_(
        row.project_id == request.project_id, row.route == request.route, row.key == request.key
    )
    session.execute(sa.delete(row).where(mine, row.created_at < now - KEPT_FOR))
    claimed = session.scalars(
        database.insert(session, row)
        .values(
            project_id=request.project_id,
            route=request.route,
            key=request.key,
            body_sha256=request.body_sha256,
            created_at=now,
        )
        .on_conflict_do_nothing()
        .returning(row.key)
    ).one_or_none()
    if claimed is not None:
        return None
    return _first_answer(session.scalars(sa.select(row).where(mine)).one_or_none(), request)


def finish(session: Session, request: KeyedRequest, answer: StoredResponse) -> None:
    """Store the response, in the transaction that did the work."""
    row = tables.IdempotencyRow
    session.execute(
        sa.update(row)
        .where(
            row.project_id == request.project_id, row.route == request.route, row.key == request.key
        )
        .values(status=answer.status, response=answer.body, location=answer.location)
    )


def _first_answer(first: tables.IdempotencyRow | None, request: KeyedRequest) -> StoredResponse:
    if first is None or first.status is None or first.response is None:
        raise errors.Conflict(
            "the first request with this Idempotency-Key has not ended; try again",
            code="request_in_progress",
        )
    if first.body_sha256 != request.body_sha256:
        message = "this Idempotency-Key was used with another body before: use a new key"
        fault = errors.Fault("/header/idempotency-key", "idempotency_key_reused", message)
        raise errors.Refused(message, code="idempotency_key_reused", faults=[fault])
    return StoredResponse(first.status, first.response, first.location)


def forget(session: Session) -> int:
    """Delete expired responses, and return how many."""
    row = tables.IdempotencyRow
    old = row.created_at < database.now(session) - KEPT_FOR
    return len(session.scalars(sa.delete(row).where(old).returning(row.key)).all())
