"""Pages of a list: keyset cursors that are opaque, signed, and bound to the list they came from."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from models_registry import errors

T = TypeVar("T")

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_SIGNATURE_BYTES = 16


@dataclass(frozen=True)
class PageRequest:
    """The page that a caller requests.

    `binding` names the list (project, path, filters): a cursor of one list is refused by another.
    """

    secret: bytes
    binding: str
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows, and the cursor of the next page, None on the last."""

    rows: Sequence[T]
    next_cursor: str | None

    @property
    def has_more(self) -> bool:
        """Return whether another page follows."""
        return self.next_cursor is not None


def take(
    session: Session,
    statement: sa.Select[T],
    *,
    by: tuple[
        InstrumentedAttribute[datetime], InstrumentedAttribute[str] | InstrumentedAttribute[int]
    ],
    wanted: PageRequest,
) -> Page[T]:
    """Return one page of `statement`, newest first.

    `by` is a time column and a column that is unique in the list, such as
    `(tables.JobRow.created_at, tables.JobRow.id)`.

    Raises: Malformed, for a cursor that is not ours or belongs to another list.
    """
    at, key = by
    if wanted.cursor is not None:
        last_at, last_key = _read(wanted.cursor, wanted)
        last_at = datetime.fromisoformat(last_at)
        last = sa.tuple_(sa.literal(last_at, at.type), sa.literal(last_key, key.type))
        statement = statement.where(sa.tuple_(at, key) < last)
    statement = statement.order_by(at.desc(), key.desc()).limit(wanted.limit + 1)
    rows = session.scalars(statement).all()
    if len(rows) <= wanted.limit:
        return Page(rows, None)
    rows = rows[: wanted.limit]
    position = [getattr(rows[-1], at.key).isoformat(), getattr(rows[-1], key.key)]
    return Page(rows, _write(position, wanted))


def cut(entries: Sequence[T], *, wanted: PageRequest) -> Page[T]:
    """Return one page of a list that does not change while the process runs.

    Raises: Malformed, as `take`.
    """
    start = 0 if wanted.cursor is None else int(_read(wanted.cursor, wanted)[0])
    end = start + wanted.limit
    following = _write([end], wanted) if end < len(entries) else None
    return Page(entries[start:end], following)


def _write(position: list[Any], wanted: PageRequest) -> str:
    payload = [_digest(wanted.binding), *position]
    text = json.dumps(payload, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_sign(text, wanted.secret) + text).decode().rstrip("=")


def _read(cursor: str, wanted: PageRequest) -> list[Any]:
    signature, text = _split(cursor)
    if not hmac.compare_digest(signature, _sign(text, wanted.secret)):
        raise _malformed("the cursor is not one of ours: start again without it", "bad_cursor")
    # Signed by us, so it is what `_write` wrote.
    payload: list[Any] = json.loads(text)
    binding, *position = payload
    if binding != _digest(wanted.binding):
        raise _malformed(
            "the cursor belongs to a list with other filters: start again without it",
            "cursor_mismatch",
        )
    return position


def _split(cursor: str) -> tuple[bytes, bytes]:
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        packed = b""
    return packed[:_SIGNATURE_BYTES], packed[_SIGNATURE_BYTES:]


def _sign(text: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, text, hashlib.sha256).digest()[:_SIGNATURE_BYTES]


def _digest(binding: str) -> str:
    return hashlib.sha256(binding.encode()).hexdigest()[:32]


def _malformed(message: str, code: str) -> errors.Malformed:
    fault = errors.Fault(pointer="/query/cursor", code=code, detail=message)
    return errors.Malformed(message, code=code, faults=[fault])
