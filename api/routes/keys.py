"""API keys of the caller's project; for administrators."""

from fastapi import APIRouter

from api.dependencies import AdminDep, PageDep, ReadersDep, ServiceDep, SessionsDep
from api.schemas import keys as bodies
from api.schemas import lists
from models_registry.access import keys

router = APIRouter(prefix="/v1/api-keys", tags=["keys"])


@router.post("", operation_id="create_api_key", status_code=201)
def create(
    wanted: bodies.KeyCreate, caller: AdminDep, sessions: SessionsDep, service: ServiceDep
) -> bodies.KeyCreated:
    """Create a key. Only this response contains its text."""
    with sessions.begin() as session:
        row, text = keys.create_key(
            session,
            project_id=caller.project_id,
            name=wanted.name,
            role=wanted.role,
            environment=service.settings.environment,
            expires_at=wanted.expires_at,
        )
    return bodies.KeyCreated.from_row(row, api_key=text)


@router.get("", operation_id="list_api_keys")
def index(caller: AdminDep, readers: ReadersDep, wanted: PageDep) -> lists.ListRead[bodies.KeyRead]:
    """List the project's keys, newest first, without their secrets."""
    with readers() as session:
        page = keys.page(session, project_id=caller.project_id, wanted=wanted)
    return lists.ListRead.of(page, bodies.KeyRead.from_row)


@router.delete("/{key_id}", operation_id="revoke_api_key", status_code=204)
def revoke(key_id: str, caller: AdminDep, sessions: SessionsDep) -> None:
    """Revoke a key immediately."""
    with sessions.begin() as session:
        keys.revoke(session, project_id=caller.project_id, key_id=key_id)
