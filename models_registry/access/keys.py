"""Projects and API keys. A key is `ak_<environment>_<id>_<secret>`; only a hash is stored.

`python -m models_registry.access.keys create --project default --role admin` makes the first one.
"""

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids, settings
from models_registry.artifacts import datasets
from models_registry.persistence import database, paging, tables

CLIENT_PREFIX = "ck_"  # of a federation's client keys, which are no API keys
LAST_USED_EVERY = timedelta(minutes=1)  # a row is not written at every request
_TEXT = re.compile(
    r"ak_(?P<environment>[a-z0-9]{1,12})_(?P<id>[0-9a-z]{26})_(?P<secret>[0-9a-f]{64})"
)


class Role(StrEnum):
    """What a key may do; each role includes those before it."""

    VIEWER = "viewer"
    EDITOR = "editor"
    ADMIN = "admin"


_RANK = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True)
class Caller:
    """The caller of a request: its project, which limits every query, and its role."""

    project_id: str
    key_id: str
    role: Role

    def require(self, role: Role) -> None:
        """Refuse unless the key has at least `role`.

        Raises: Forbidden.
        """
        if _RANK[self.role] < _RANK[role]:
            raise errors.Forbidden(
                f"this needs a key with role {role.value}, yours is {self.role.value}"
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
) -> tuple[tables.ApiKeyRow, str]:
    """Create a key; return its row and its text, which is not stored."""
    secret = secrets.token_hex(32)
    row = tables.ApiKeyRow(
        id=ids.new("key"),
        project_id=project_id,
        name=name,
        role=Role(role).value,
        secret_sha256=digest(secret),
        created_at=database.now(session),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row, f"ak_{environment}_{row.id.removeprefix('key_')}_{secret}"


def authenticate(session: Session, *, text: str) -> tuple[Caller, bool]:
    """Return the caller of the key `text`, and whether its last use should be recorded.

    Raises: Unauthenticated; Forbidden for a federation's client key.
    """
    if text.startswith(CLIENT_PREFIX):
        raise errors.Forbidden(
            "this is a client key: it opens the rounds of its own federation and nothing else; "
            "use an API key (ak_...)"
        )
    match = _TEXT.fullmatch(text)
    row = session.get(tables.ApiKeyRow, f"key_{match['id']}") if match else None
    # An unknown id costs the same comparison as a known one.
    expected = row.secret_sha256 if row else digest("")
    presented = digest(match["secret"] if match else text)
    if not hmac.compare_digest(expected, presented) or row is None:
        raise errors.Unauthenticated("the API key is unknown")
    now = database.now(session)
    if row.revoked_at is not None:
        raise errors.Unauthenticated(f"the API key {row.id} is revoked", code="key_revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise errors.Unauthenticated(f"the API key {row.id} has expired", code="key_expired")
    due = row.last_used_at is None or now - row.last_used_at >= LAST_USED_EVERY
    return Caller(row.project_id, row.id, Role(row.role)), due


def valid(session: Session, *, key_ids: Collection[str]) -> set[str]:
    """Return those of these keys that still open anything."""
    row = tables.ApiKeyRow
    unexpired = sa.or_(row.expires_at.is_(None), row.expires_at > database.now(session))
    found = sa.select(row.id).where(row.id.in_(key_ids), row.revoked_at.is_(None), unexpired)
    return set(session.scalars(found))


def note_use(session: Session, *, key_id: str) -> None:
    """Record that a key was used, at most once a minute."""
    now = database.now(session)
    row = tables.ApiKeyRow
    session.execute(
        sa.update(row)
        .where(row.id == key_id)
        .where(sa.or_(row.last_used_at.is_(None), row.last_used_at <= now - LAST_USED_EVERY))
        .values(last_used_at=now)
    )


def page(
    session: Session, *, project_id: str, wanted: paging.PageRequest
) -> paging.Page[tables.ApiKeyRow]:
    """Return a page of a project's keys, newest first, revoked ones included."""
    row = tables.ApiKeyRow
    statement = sa.select(row).where(row.project_id == project_id)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def revoke(session: Session, *, project_id: str, key_id: str) -> None:
    """Revoke a key; revoking it again changes nothing.

    Raises: NotFound.
    """
    row = session.get(tables.ApiKeyRow, key_id)
    if row is None or row.project_id != project_id:
        raise errors.NotFound(f"no API key {key_id} in this project")
    if row.revoked_at is None:
        row.revoked_at = database.now(session)
        session.flush()


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
        _, text = create_key(
            session,
            project_id=project.id,
            name=wanted.name,
            role=wanted.role,
            environment=config.environment,
        )
    engine.dispose()
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
