"""Probes and measurements for operators; they need no API key and contain no secrets."""

import hmac

import prometheus_client
import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.datastructures import State

from api import metrics, readiness
from api.dependencies import Service
from api.readiness import Check
from api.schemas import health as bodies
from models_registry import errors
from models_registry.persistence import schema

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def alive() -> bodies.HealthRead:
    """Return that the process is alive; no dependency is checked."""
    return bodies.HealthRead()


@router.get("/readyz", operation_id="get_readiness")
async def ready(request: Request) -> bodies.ReadyRead:
    """Return whether requests can be served. Without a broker they can, but jobs wait longer.

    It answers within two seconds, also where a dependency does not answer at all.
    """
    # Not a dependency of the route: that would need a thread, and all may be waiting.
    service: Service = request.app.state.service
    found = await readiness.faults(_checks(request.app.state, service))
    broker = found.pop("broker")
    needed = {"process": _shutdown_fault(service), **found}
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
def measurements(request: Request) -> Response:
    """Return measurements in Prometheus' text format, with the operator's token if there is one."""
    service: Service = request.app.state.service
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


def _checks(state: State, service: Service) -> dict[str, Check]:
    """Return this app's checks; they are kept, since one of them may still be running."""
    if not hasattr(state, "checks"):
        state.checks = {
            "database": Check(lambda: _ping(service.engine), "cannot be reached"),
            "migrations": Check(lambda: _migrated(service.engine), "not at the newest revision"),
            "storage": Check(service.storage.check, "cannot be used"),
            "broker": Check(service.queue.check, "cannot be reached"),
        }
    checks: dict[str, Check] = state.checks
    return checks


def _ping(engine: sa.Engine) -> None:
    with engine.execution_options(read_only=True).connect() as connection:
        connection.execute(sa.select(1))


def _migrated(engine: sa.Engine) -> None:
    with engine.execution_options(read_only=True).connect() as connection:
        if not schema.is_current(connection):
            raise errors.Unavailable("the schema is not at the newest revision")
