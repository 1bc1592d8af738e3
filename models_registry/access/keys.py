"""Projects and API keys. A key is `ak_<environment>_<id>_<secret>`; only a hash is stored.

`python -m models_registry.access.keys create --project default --role admin` makes the first one.
"""

import argparse
import hashlib
import hmac
import math
import re
import secrets
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids, settings
from models_registry.access import audit
from models_registry.access import scopes as scope_rules
from models_registry.access.callers import TOKEN_PREFIX
from models_registry.access.callers import Caller as Caller
from models_registry.access.callers import Role as Role
from models_registry.artifacts import datasets
from models_registry.persistence import database, paging, tables

CLIENT_PREFIX = "ck_"  # of a federation's client keys, which are no API keys
LAST_USED_EVERY = timedelta(minutes=1)  # a row is not written at every request
DEFAULT_OVERLAP, LONGEST_OVERLAP = timedelta(hours=24), timedelta(days=30)
_TEXT = re.compile(
    r"ak_(?P<environment>[a-z0-9]{1,12})_(?P<id>[0-9a-z]{26})_(?P<secret>[0-9a-f]{64})"
)


def create_project(session: Session, *, name: str) -> tables.ProjectRow:
    """Create a project with the built-in data sets.

    Raises: AlreadyExists.
    """
    if find_project(session, name=name) is not None:
        raise errors.AlreadyExists(f"a project named {name!r} exists")
    row = tables.ProjectRow(id=ids.new("prj"), name=name, created_at=database.now(session))
    session.add(row)
    session.flush()
    datasets.add_builtins(session, project_id=row.id)
    return row


def find_project(session: Session, *, name: str) -> tables.ProjectRow | None:
    """Return the project called `name`, if there is one."""
    return session.scalars(
        sa.select(tables.ProjectRow).where(tables.ProjectRow.name == name)
    ).one_or_none()


def create_key(
    session: Session,
    *,
    project_id: str,
    name: str,
    role: Role | str,
    environment: str,
    expires_at: datetime | None = None,
    scopes: Sequence[str] | None = None,
) -> tuple[tables.ApiKeyRow, str]:
    """Create a key; return its row and its text, which is not stored.

    Without `scopes` it may do all that its role allows.

    Raises: Refused for an unknown scope, or a time that has passed.
    """
    now = database.now(session)
    if scopes is not None:
        scope_rules.check(scopes)
    if expires_at is not None and expires_at <= now:
        detail = (
            f"expires_at is {expires_at.isoformat()}, which has passed: name a later time, or "
            "leave it out for a key that does not expire"
        )
        fault = errors.Fault("/expires_at", "in_the_past", detail)
        raise errors.Refused(detail, code="in_the_past", faults=[fault])
    secret = secrets.token_hex(32)
    row = tables.ApiKeyRow(
        id=ids.new("key"),
        project_id=project_id,
        name=name,
        role=Role(role).value,
        scopes=None if scopes is None else sorted(set(scopes)),
        secret_sha256=digest(secret),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row, _text(row, secret, environment)


def rotate(
    session: Session,
    *,
    project_id: str,
    key_id: str,
    environment: str,
    overlap: timedelta = DEFAULT_OVERLAP,
) -> tuple[tables.ApiKeyRow, str]:
    """Give a key a new secret, and let the old one open the same during `overlap`.

    Return the row and the new text. A secret before the old one ends at once: two are valid at
    most. Role, scopes and expiry stay.

    Raises: NotFound; Conflict for a key that is revoked or has expired.
    """
    row = get(session, project_id=project_id, key_id=key_id, lock=True)
    now = database.now(session)
    ended = "is revoked" if row.revoked_at is not None else None
    if row.expires_at is not None and row.expires_at <= now:
        ended = "has expired"
    if ended:
        raise errors.Conflict(
            f"the API key {key_id} {ended} and cannot be rotated: create another one",
            code="key_ended",
        )
    secret = secrets.token_hex(32)
    row.former_sha256, row.former_expires_at = row.secret_sha256, now + overlap
    row.former_last_used_at = None
    row.secret_sha256, row.rotated_at = digest(secret), now
    session.flush()
    return row, _text(row, secret, environment)


def _text(row: tables.ApiKeyRow, secret: str, environment: str) -> str:
    return f"ak_{environment}_{row.id.removeprefix('key_')}_{secret}"


@dataclass(frozen=True)
class Authentication:
    """Who presents a key, and what should be recorded of it."""

    caller: Caller
    due: bool
    """Whether this use should be written down."""
    is_former: bool = False
    """Whether the secret is the one before the last rotation."""
    valid_seconds: float = math.inf
    """How long it stays valid unless somebody changes it."""


def authenticate(session: Session, *, text: str) -> Authentication:
    """Return who presents the key `text`.

    Raises: Unauthenticated; Forbidden for a federation's client key.
    """
    if text.startswith(CLIENT_PREFIX):
        raise errors.Forbidden(
            "this is a client key: it opens the rounds of its own federation and nothing else; "
            "use an API key (ak_...)"
        )
    match = _TEXT.fullmatch(text)
    row = session.get(tables.ApiKeyRow, f"key_{match['id']}") if match else None
    # An unknown id, and a key that was never rotated, cost the same comparisons as others.
    presented = digest(match["secret"] if match else text)
    nothing = digest("")
    is_current = hmac.compare_digest(row.secret_sha256 if row else nothing, presented)
    is_former = hmac.compare_digest((row.former_sha256 if row else None) or nothing, presented)
    if row is None or not (is_current or is_former):
        raise errors.Unauthenticated("the API key is unknown")
    now = database.now(session)
    if row.revoked_at is not None:
        raise errors.Unauthenticated(f"the API key {row.id} is revoked", code="key_revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise errors.Unauthenticated(f"the API key {row.id} has expired", code="key_expired")
    if is_former and not (row.former_expires_at and now < row.former_expires_at):
        raise errors.Unauthenticated(
            f"the API key {row.id} was rotated, and this secret has ended: use the new one",
            code="key_rotated",
        )
    used_at = row.former_last_used_at if is_former else row.last_used_at
    caller = Caller(
        row.project_id,
        row.id,
        Role(row.role),
        name=row.name,
        scopes=None if row.scopes is None else frozenset(row.scopes),
        credential_id=_credential(row, presented),
    )
    due = used_at is None or now - used_at >= LAST_USED_EVERY
    ends = [row.expires_at, row.former_expires_at if is_former else None]
    left = [(end - now).total_seconds() for end in ends if end is not None]
    return Authentication(caller, due, is_former, min(left, default=math.inf))


def token_credential(subject: str, expires_at: datetime) -> str:
    """Return what identifies a token, for `valid`."""
    return f"{TOKEN_PREFIX}{math.ceil(expires_at.timestamp())}:{subject}"


def valid(session: Session, *, credential_ids: Collection[str]) -> set[str]:
    """Return those of these callers' `credential_id` that still open anything."""
    now = database.now(session)
    held = {one.partition(".")[0] for one in credential_ids if not one.startswith(TOKEN_PREFIX)}
    row = tables.ApiKeyRow
    unexpired = sa.or_(row.expires_at.is_(None), row.expires_at > now)
    found = sa.select(row).where(row.id.in_(held), row.revoked_at.is_(None), unexpired)
    still = {credential for key in session.scalars(found) for credential in _credentials(key, now)}
    tokens = {
        one
        for one in credential_ids
        if one.startswith(TOKEN_PREFIX)
        and float(one.removeprefix(TOKEN_PREFIX).partition(":")[0]) > now.timestamp()
    }
    return tokens | (still & set(credential_ids))


def _credentials(row: tables.ApiKeyRow, now: datetime) -> Iterator[str]:
    yield _credential(row, row.secret_sha256)
    if row.former_sha256 and row.former_expires_at and now < row.former_expires_at:
        yield _credential(row, row.former_sha256)


def _credential(row: tables.ApiKeyRow, secret_sha256: str) -> str:
    # Tells the secrets of a key apart, and shows nothing of them.
    return f"{row.id}.{digest(secret_sha256)[:16]}"


def note_use(session: Session, *, key_id: str, is_former: bool = False) -> None:
    """Record that a key, or its former secret, was used, at most once a minute."""
    now = database.now(session)
    row = tables.ApiKeyRow
    columns = (row.last_used_at, row.former_last_used_at) if is_former else (row.last_used_at,)
    stale = [sa.or_(column.is_(None), column <= now - LAST_USED_EVERY) for column in columns]
    session.execute(
        sa.update(row).where(row.id == key_id, sa.or_(*stale)).values(dict.fromkeys(columns, now))
    )


def page(
    session: Session, *, project_id: str, wanted: paging.PageRequest
) -> paging.Page[tables.ApiKeyRow]:
    """Return a page of a project's keys, newest first, revoked ones included."""
    row = tables.ApiKeyRow
    statement = sa.select(row).where(row.project_id == project_id)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def get(session: Session, *, project_id: str, key_id: str, lock: bool = False) -> tables.ApiKeyRow:
    """Return a key of the project; `lock` keeps others from changing it.

    Raises: NotFound.
    """
    row = session.get(tables.ApiKeyRow, key_id, populate_existing=True, with_for_update=lock)
    if row is None or row.project_id != project_id:
        raise errors.NotFound(f"no API key {key_id} in this project")
    return row


def revoke(session: Session, *, project_id: str, key_id: str) -> bool:
    """Revoke a key with both of its secrets, and return whether it was not revoked before.

    Raises: NotFound.
    """
    row = get(session, project_id=project_id, key_id=key_id, lock=True)
    if row.revoked_at is not None:
        return False
    row.revoked_at = database.now(session)
    session.flush()
    return True


def digest(secret: str) -> str:
    """Return what is stored of a secret: its SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Create a key from the command line, and its project if that is new."""
    parser = argparse.ArgumentParser(prog="python -m models_registry.access.keys")
    create = parser.add_subparsers(required=True).add_parser("create", help="make an API key")
    create.add_argument("--project", default="default", help="name of the project")
    create.add_argument("--role", choices=[role.value for role in Role], default=Role.EDITOR.value)
    create.add_argument("--name", default="command line", help="what the key is for")
    wanted = parser.parse_args(arguments)
    config = settings.Settings()
    engine = database.connect(config.database_url, pool_size=1)
    with database.sessions(engine).begin() as session:
        project = find_project(session, name=wanted.project)
        if project is None:
            project = create_project(session, name=wanted.project)
        row, text = create_key(
            session,
            project_id=project.id,
            name=wanted.name,
            role=wanted.role,
            environment=config.environment,
        )
        audit.record_own(
            session,
            project_id=project.id,
            actor=audit.COMMAND_LINE,
            action="key.created",
            subject=row.id,
            name=row.name,
            role=row.role,
        )
    engine.dispose()
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
