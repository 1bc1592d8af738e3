"""Clients of a federation, each with a key of its own: `ck_<environment>_<id>_<secret>`.

A key opens the rounds of one federation and nothing else. It is shown once, only a hash is stored,
and whoever holds it is the client: a party that vanishes and returns with its key goes on.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.access import keys
from models_registry.artifacts import input_checks
from models_registry.federations import federations
from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, paging, tables

SEEN_EVERY = timedelta(seconds=5)  # a row is not written at every request
MAX_CLIENTS = 10_000
_TEXT = re.compile(
    r"ck_(?P<environment>[a-z0-9]{1,12})_(?P<id>[0-9a-z]{26})_(?P<secret>[0-9a-f]{64})"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,95}")


@dataclass(frozen=True)
class Member:
    """The client of a request, and its federation."""

    federation: tables.FederationRow
    client: tables.FederationClientRow


def invite(
    session: Session, federation: tables.FederationRow, *, name: str, environment: str
) -> tuple[tables.FederationClientRow, str]:
    """Add a client; return its row and the text of its key, which is not stored.

    Raises: errors.Refused for a bad name; errors.AlreadyExists; errors.Conflict when the job has
    ended or the federation is full.
    """
    if not _NAME.fullmatch(name):
        detail = (
            f"{input_checks.printable(name[:96])!r} cannot be a client's name: use 1 to 96 "
            "letters, digits, '.', '_', '-' and spaces, starting with a letter or digit"
        )
        fault = errors.Fault("/name", "bad_name", detail)
        raise errors.Refused(detail, code="bad_name", faults=[fault])
    _refuse_ended(session, federation)
    row = tables.FederationClientRow
    there = session.scalars(sa.select(row.name).where(row.federation_id == federation.id)).all()
    if name in there:
        raise errors.AlreadyExists(
            f"{federation.id} has a client {name!r}: choose another name (a key is shown once; "
            "revoke the old client if its key is lost)"
        )
    if len(there) >= MAX_CLIENTS:
        raise errors.Conflict(f"{federation.id} has {MAX_CLIENTS} clients", code="too_many_clients")
    secret = secrets.token_hex(32)
    client = row(
        id=ids.new("fcl"),
        federation_id=federation.id,
        name=name,
        secret_sha256=keys.digest(secret),
        created_at=database.now(session),
    )
    session.add(client)
    session.flush()
    return client, f"ck_{environment}_{client.id.removeprefix('fcl_')}_{secret}"


def revoke(session: Session, federation: tables.FederationRow, *, client_id: str) -> None:
    """Revoke a client's key: it takes no further part. Revoking it again changes nothing.

    What it has sent in rounds that are closed stays in what was made of them.
    Raises: errors.NotFound.
    """
    client = session.get(tables.FederationClientRow, client_id)
    if client is None or client.federation_id != federation.id:
        raise errors.NotFound(f"{federation.id} has no client {client_id[:60]!r}")
    if client.revoked_at is None:
        client.revoked_at = database.now(session)
        session.flush()
        federations.changed(session, federation.id)


def page(
    session: Session, federation: tables.FederationRow, *, wanted: paging.PageRequest
) -> paging.Page[tables.FederationClientRow]:
    """Return a page of a federation's clients, the last invited first."""
    row = tables.FederationClientRow
    statement = sa.select(row).where(row.federation_id == federation.id)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def authenticate(session: Session, *, text: str, federation_id: str) -> Member:
    """Return the client of the key `text`.

    Raises: errors.Unauthenticated; errors.Forbidden for a key of another federation or an API key.
    """
    if text.startswith("ak_"):
        raise errors.Forbidden(
            "this is an API key: clients take part with a client key (ck_...), which "
            f"POST /v1/federations/{federation_id[:60]}/clients makes"
        )
    match = _TEXT.fullmatch(text)
    client = session.get(tables.FederationClientRow, f"fcl_{match['id']}") if match else None
    # An unknown id costs the same comparison as a known one.
    expected = client.secret_sha256 if client else keys.digest("")
    presented = keys.digest(match["secret"] if match else text)
    if not hmac.compare_digest(expected, presented) or client is None:
        raise errors.Unauthenticated("the client key is unknown")
    if client.revoked_at is not None:
        raise errors.Unauthenticated(
            f"the key of client {client.name!r} is revoked: ask for a new one", code="key_revoked"
        )
    if client.federation_id != federation_id:
        raise errors.Forbidden(
            f"this key belongs to {client.federation_id}, not to {federation_id[:60]}"
        )
    return Member(session.get_one(tables.FederationRow, federation_id), client)


def is_due(session: Session, client: tables.FederationClientRow) -> bool:
    """Return whether `note_seen` has something to write."""
    last = client.last_seen_at
    return last is None or database.now(session) - last >= SEEN_EVERY


def note_seen(session: Session, *, client_id: str, bytes_down: int = 0) -> None:
    """Record that a client was here, and how many bytes it was sent."""
    row = tables.FederationClientRow
    session.execute(
        sa.update(row)
        .where(row.id == client_id)
        .values(last_seen_at=database.now(session), bytes_down=row.bytes_down + bytes_down)
        .execution_options(synchronize_session=False)
    )


def join(session: Session, member: Member, *, samples: int, classes: int) -> None:
    """Take part from now on; joining again only updates the number of samples.

    Raises: errors.Refused for another number of classes; errors.Conflict when the job has ended.
    """
    _refuse_ended(session, member.federation)
    expected = class_names(session, member.federation)
    if expected and classes != len(expected):
        detail = (
            f"this federation has {len(expected)} classes ({_shown(expected)}), the client's "
            f"data has {classes}: give every client the same classes in the same order"
        )
        fault = errors.Fault("/classes", "wrong_classes", detail)
        raise errors.Refused(detail, code="wrong_classes", faults=[fault])
    client = session.get_one(
        tables.FederationClientRow, member.client.id, with_for_update=True, populate_existing=True
    )
    now = database.now(session)
    client.joined_at = client.joined_at or now
    client.left_at, client.last_seen_at, client.samples = None, now, samples
    session.flush()
    federations.changed(session, member.federation.id)


def leave(session: Session, member: Member) -> None:
    """Take no further part: rounds do not wait for this client. It may join again."""
    client = session.get_one(tables.FederationClientRow, member.client.id)
    client.left_at = database.now(session)
    session.flush()
    federations.changed(session, member.federation.id)


def class_names(session: Session, federation: tables.FederationRow) -> list[str]:
    """Return the names of the classes; empty while the job's data set is being inspected."""
    job = session.get_one(tables.JobRow, federation.job_id)
    if job.dataset_version_id is None:
        return []
    return list(session.get_one(tables.DatasetVersionRow, job.dataset_version_id).classes)


def _refuse_ended(session: Session, federation: tables.FederationRow) -> None:
    job = session.get_one(tables.JobRow, federation.job_id, populate_existing=True)
    if lifecycle.is_final(State(job.state)):
        raise errors.Conflict(
            f"the job of {federation.id} has {job.state}: nobody can join any more",
            code="federation_ended",
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
