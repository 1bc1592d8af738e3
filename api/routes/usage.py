"""Quotas of the caller's project, and what it uses of each."""

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.dependencies import AdminDep, CallerDep, LimitsDep, ReadersDep, ServiceDep, SessionsDep
from api.schemas import usage as bodies
from models_registry.access import audit, quotas
from models_registry.access.quotas import QuotaLimits
from models_registry.persistence import tables

router = APIRouter(prefix="/v1", tags=["usage"])


def _read(session: Session, project_id: str, limits: QuotaLimits) -> bodies.UsageRead:
    project = session.get_one(tables.ProjectRow, project_id)
    found = quotas.usage(session, project_id=project_id, service=limits)
    return bodies.UsageRead(
        project=project.id,
        name=project.name,
        share_weight=project.share_weight,
        quotas=[bodies.QuotaRead.from_row(one) for one in found],
    )


@router.get("/usage", operation_id="get_usage")
def show(caller: CallerDep, readers: ReadersDep, limits: LimitsDep) -> bodies.UsageRead:
    """Return the project's quotas, and what it uses of each."""
    with readers() as session:
        return _read(session, caller.project_id, limits)


@router.patch("/quotas", operation_id="update_quotas")
def update(
    body: bodies.QuotaChange,
    caller: AdminDep,
    sessions: SessionsDep,
    limits: LimitsDep,
    service: ServiceDep,
) -> bodies.UsageRead:
    """Set limits of the project's own. They refuse what comes next, and end nothing."""
    given = {name: getattr(body, name) for name in quotas.NAMES if name in body.model_fields_set}
    with sessions.begin() as session:
        quotas.change(
            session,
            project_id=caller.project_id,
            limits=given,
            share_weight=body.share_weight,
            service=limits,
        )
        told = body.model_dump(mode="json", exclude_unset=True)
        if told:
            audit.record(session, caller, "quota.changed", caller.project_id, **told)
        shown = _read(session, caller.project_id, limits)
    service.rate_limits.forget(caller.project_id)
    return shown
