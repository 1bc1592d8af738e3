"""Builds the HTTP application. Importing this never imports torch."""

import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import prometheus_client
from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline

from api import (
    dependencies,
    errors,
    federation_waits,
    key_cache,
    metrics,
    middleware,
    openapi,
    page,
    query_parameters,
    queue,
    rate_limits,
    streams,
)
from api.routes import (
    audit,
    datasets,
    exports,
    federations,
    health,
    jobs,
    keys,
    methods,
    models,
    networks,
    predictions,
    retention,
    studies,
    uploads,
    usage,
    webhook_endpoints,
    workers,
)
from models_registry import logs, tracing
from models_registry.access import oidc, quotas
from models_registry.persistence import database, storage
from models_registry.settings import Settings

POOL_SIZE = 20  # with its overflow: one connection for each of the framework's 40 threads
STATEMENT_SECONDS = 10
# The framework asks one after the other for each request: those that programs call come first.
ROUTERS = (
    *(jobs.router, uploads.router, models.router, datasets.router, studies.router),
    *(federations.router, exports.router, predictions.router),
    *(webhook_endpoints.router, usage.router),
    *(methods.router, networks.router, workers.router, keys.router, health.router),
    *(audit.router, retention.router),
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; its dependencies are in `app.state.service`.

    Raises: ValueError for settings that cannot work.
    """
    settings = settings or Settings()
    logs.set_up(level=settings.log_level, as_json=settings.log_json)
    app = _application(has_docs=settings.docs)
    collected = prometheus_client.CollectorRegistry()
    app.state.service = _service(settings, collected)
    app.state.collected = collected
    collected.register(metrics.ServiceState(app.state.service.readers))
    for router in ROUTERS:
        app.include_router(router)
    page.install(app)
    errors.install(app)
    app.add_middleware(errors.LastHandler)
    app.add_middleware(
        middleware.RequestMiddleware,
        measured=metrics.Requests(collected),
        tracer=app.state.service.tracer,
    )
    openapi.install(app)
    return app


def _application(*, has_docs: bool) -> FastAPI:
    """Return an application without routes, and its pages of documentation if it `has_docs`."""
    keywords: dict[str, Any] = {  # of one signature
        "title": "Retort",
        "version": "1",
        "summary": "Knowledge distillation as a service.",
        "lifespan": _lifespan,
        "dependencies": [Depends(query_parameters.check)],
        "redirect_slashes": False,
    }
    if not has_docs:
        return FastAPI(openapi_url=None, docs_url=None, redoc_url=None, **keywords)
    # Its pages take their scripts from this server: they work where there is no internet.
    return FastAPIOffline(
        openapi_url="/v1/openapi.json",
        docs_url="/docs",
        redoc_url="/redoc",
        static_url="/docs-assets",
        **keywords,
    )


def _service(
    settings: Settings, collected: prometheus_client.CollectorRegistry
) -> dependencies.Service:
    if settings.cursor_secret is None:
        raise ValueError(
            "RETORT_CURSOR_SECRET is not set: give every api process the same random text of "
            "32 characters or more (`retort up` makes one by itself)"
        )
    engine = database.connect(
        settings.database_url, pool_size=POOL_SIZE, statement_timeout_seconds=STATEMENT_SECONDS
    )
    tracer = tracing.start(settings, service="retort-api")
    tracing.trace_statements(engine, tracer)
    sessions = database.sessions(engine)
    readers = database.readers(engine)
    messages = queue.CeleryQueue(settings.broker_url)
    hub = streams.Hub(readers)
    limits = quotas.QuotaLimits.of_service(settings)
    return dependencies.Service(
        settings=settings,
        engine=engine,
        sessions=sessions,
        readers=readers,
        storage=storage.from_settings(settings),
        queue=messages,
        publisher=dependencies.Publisher(sessions, messages, tracer),
        hub=hub,
        federations=federation_waits.FederationWaits(readers, lambda: hub.draining),
        key_cache=key_cache.KeyCache(settings.key_cache_seconds),
        rate_limits=rate_limits.RateLimits(
            readers,
            settings.broker_url,
            limits,
            collected,
            client_limit=settings.quota_client_requests_per_minute,
        ),
        limits=limits,
        cursor_secret=settings.cursor_secret.get_secret_value().encode(),
        tracer=tracer,
        tokens=oidc.from_settings(settings),
    )


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: dependencies.Service = app.state.service
    try:
        async with service.hub.running():
            with _draining_on_signal(service.hub):
                yield
    finally:
        service.queue.close()
        await run_in_threadpool(service.tracer.close)
        service.rate_limits.close()
        await run_in_threadpool(service.engine.dispose)


@contextlib.contextmanager
def _draining_on_signal(hub: streams.Hub) -> Iterator[None]:
    """End streams as soon as the process is told to stop.

    The server ends the lifespan only after all open responses, so to drain there would deadlock.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals, so nothing is installed here
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def drain(number: int, frame: FrameType | None) -> None:
        hub.drain_soon()
        server = former[signal.Signals(number)]
        if callable(server):
            server(number, frame)

    for number in former:
        signal.signal(number, drain)
    try:
        yield
    finally:
        for number, server in former.items():
            signal.signal(number, server)
