"""The audit log of the caller's project; for administrators."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import AdminDep, PageDep, ReadersDep
from api.schemas import audit as bodies
from api.schemas import lists
from api.schemas.times import UtcTime
from models_registry.access import audit

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("", operation_id="list_audit_entries")
def index(
    caller: AdminDep,
    readers: ReadersDep,
    wanted: PageDep,
    action: Annotated[
        str | None,
        Query(max_length=64, description="Such as `key.created`, or `key` for all of that kind."),
    ] = None,
    subject: Annotated[
        str | None, Query(max_length=300, description="Id or reference of the thing.")
    ] = None,
    key_id: Annotated[str | None, Query(max_length=40, description="Key that was used.")] = None,
    actor: Annotated[
        str | None, Query(max_length=300, description="Name of the key, or subject of the token.")
    ] = None,
    since: UtcTime | None = None,
    until: UtcTime | None = None,
) -> lists.ListRead[bodies.AuditRead]:
    """List who did what to keys, aliases, deletions and rules of the project, newest first.

    Entries are never changed or deleted.
    """
    filters = audit.AuditFilters(
        action=action, subject=subject, key_id=key_id, actor=actor, since=since, until=until
    )
    with readers() as session:
        page = audit.page(session, project_id=caller.project_id, filters=filters, wanted=wanted)
    return lists.ListRead.of(page, bodies.AuditRead.from_row)
