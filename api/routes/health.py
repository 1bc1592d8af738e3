"""Probes and measurements for operators; they need no API key and contain no secrets."""

import hmac
from collections.abc import Callable

import prometheus_client
import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy.exc import SQLAlchemyError

from api import metrics
from api.dependencies import Service, ServiceDep
from api.schemas import health as bodies
from models_registry import errors
from models_registry.persistence import schema

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def alive() -> bodies.HealthRead:
    """Return that the process is alive; no dependency is checked."""
    return bodies.HealthRead()


@router.get("/readyz", operation_id="get_readiness")
def ready(service: ServiceDep) -> bodies.ReadyRead:
    """Return whether requests can be served. Without a broker they can, but jobs wait longer."""
    needed = {
        "process": _shutdown_fault(service),
        "database": _fault_of(lambda: _ping(service.engine), "cannot be reached"),
        "migrations": _fault_of(lambda: _migrated(service.engine), "not at the newest revision"),
        "storage": _fault_of(service.storage.check, "cannot be used"),
    }
    broker = _fault_of(service.queue.check, "cannot be reached")
    faults = [
        errors.Fault(f"/checks/{name}", "down", f"{name} {fault}")
        for name, fault in needed.items()
        if fault
    ]
    if faults:
        message = "; ".join(fault.detail for fault in faults)
        raise errors.Unavailable(message, code="not_ready", faults=faults)
    checks = {name: fault or "ok" for name, fault in {**needed, "broker": broker}.items()}
    return bodies.ReadyRead(status="degraded" if broker else "ready", checks=checks)


@router.get("/metrics", operation_id="get_prometheus_metrics", response_class=PlainTextResponse)
def measurements(request: Request, service: ServiceDep) -> Response:
    """Return measurements in Prometheus' text format, with the operator's token if there is one."""
    token = service.settings.metrics_token
    if token is not None:
        expected = f"Bearer {token.get_secret_value()}".encode()
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            raise errors.Unauthenticated(
                "/metrics asks for the bearer token that the operator set as "
                "RETORT_METRICS_TOKEN: send `Authorization: Bearer TOKEN`"
            )
    content = metrics.render(request.app.state.collected)
    return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)


def _shutdown_fault(service: Service) -> str | None:
    return "is shutting down" if service.hub.draining else None


def _fault_of(check: Callable[[], object], fault: str) -> str | None:
    try:
        check()
    except (errors.Unavailable, SQLAlchemyError):
        return fault
    return None


def _ping(engine: sa.Engine) -> None:
    with engine.execution_options(read_only=True).connect() as connection:
        connection.execute(sa.select(1))


def _migrated(engine: sa.Engine) -> None:
    with engine.execution_options(read_only=True).connect() as connection:
        if not schema.is_current(connection):
            raise errors.Unavailable("the schema is not at the newest revision")
