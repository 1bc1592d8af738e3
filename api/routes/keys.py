"""API keys of the caller's project; for administrators."""

from datetime import timedelta

from fastapi import APIRouter

from api.dependencies import AdminDep, PageDep, ReadersDep, ServiceDep, SessionsDep
from api.schemas import keys as bodies
from api.schemas import lists
from models_registry.access import audit, keys

router = APIRouter(prefix="/v1/api-keys", tags=["keys"])


@router.post("", operation_id="create_api_key", status_code=201)
def create(
    wanted: bodies.KeyCreate, caller: AdminDep, sessions: SessionsDep, service: ServiceDep
) -> bodies.KeyCreated:
    """Create a key. Only this response contains its text.

    A key with scopes creates only keys with scopes that it has itself.
    """
    caller.require_no_more(wanted.scopes, what=f"the key {wanted.name!r}")
    with sessions.begin() as session:
        row, text = keys.create_key(
            session,
            project_id=caller.project_id,
            name=wanted.name,
            role=wanted.role,
            environment=service.settings.environment,
            expires_at=wanted.expires_at,
            scopes=wanted.scopes,
        )
        facts = wanted.model_dump(mode="json", exclude_none=True)
        audit.record(session, caller, "key.created", row.id, **facts)
    return bodies.KeyCreated.from_row(row, api_key=text)


@router.get("", operation_id="list_api_keys")
def index(caller: AdminDep, readers: ReadersDep, wanted: PageDep) -> lists.ListRead[bodies.KeyRead]:
    """List the project's keys, newest first, without their secrets."""
    with readers() as session:
        page = keys.page(session, project_id=caller.project_id, wanted=wanted)
    return lists.ListRead.of(page, bodies.KeyRead.from_row)


@router.post("/{key_id}/rotate", operation_id="rotate_api_key")
def rotate(
    key_id: str,
    wanted: bodies.KeyRotate,
    caller: AdminDep,
    sessions: SessionsDep,
    service: ServiceDep,
) -> bodies.KeyCreated:
    """Give a key a new secret. Only this response contains its text.

    The old secret opens the same for `overlap_seconds`, so that whoever uses it can be given the
    new one; `former_last_used_at` tells whether somebody still uses it. A secret before that ends
    at once.
    """
    with sessions.begin() as session:
        known = keys.get(session, project_id=caller.project_id, key_id=key_id)
        caller.require_no_more(known.scopes, what=f"the new secret of {key_id}")
        row, text = keys.rotate(
            session,
            project_id=caller.project_id,
            key_id=key_id,
            environment=service.settings.environment,
            overlap=timedelta(seconds=wanted.overlap_seconds),
        )
        facts = wanted.model_dump(mode="json")
        audit.record(session, caller, "key.rotated", row.id, **facts)
    service.key_cache.forget(key_id)
    return bodies.KeyCreated.from_row(row, api_key=text)


@router.delete("/{key_id}", operation_id="revoke_api_key", status_code=204)
def revoke(key_id: str, caller: AdminDep, sessions: SessionsDep, service: ServiceDep) -> None:
    """Revoke a key immediately, with the secret that it had before a rotation."""
    with sessions.begin() as session:
        if keys.revoke(session, project_id=caller.project_id, key_id=key_id):
            audit.record(session, caller, "key.revoked", key_id)
    service.key_cache.forget(key_id)
