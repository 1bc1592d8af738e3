"""Dependencies of the routes: parts of the service, the caller, and the requested page."""

import dataclasses
import functools
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import sqlalchemy as sa
import structlog
from fastapi import BackgroundTasks, Depends, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError

from api import federation_waits, key_cache, ranges, rate_limits, streams
from models_registry import errors, settings, tracing
from models_registry.access import keys, oidc, quotas, scopes
from models_registry.artifacts import models
from models_registry.persistence import database, outbox, paging
from models_registry.persistence.storage import Storage

log = structlog.get_logger()


class Queue(Protocol):
    """Publishes messages; `api.queue.CeleryQueue` implements it."""

    def send(self, task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
        """Publish one message, or raise QueueDown."""

    def check(self) -> None:
        """Raise QueueDown unless the broker answers."""

    def close(self) -> None:
        """Close the connections."""


@dataclass
class Publisher:
    """Publishes the outbox after a commit; one relay at a time in each process."""

    sessions: database.Sessions
    queue: Queue
    tracer: tracing.Tracer = tracing.OFF
    _wanted: threading.Event = field(default_factory=threading.Event)
    _relaying: threading.Lock = field(default_factory=threading.Lock)

    def publish(self) -> None:
        """Publish the outbox. If the broker is down, maintenance publishes it later."""
        self._wanted.set()
        while self._wanted.is_set() and self._relaying.acquire(blocking=False):
            try:
                self._wanted.clear()
                outbox.relay(self.sessions, self.queue.send, tracer=self.tracer)
            except (errors.QueueDown, SQLAlchemyError) as error:
                log.warning("outbox_left", reason=str(error))
            finally:
                self._relaying.release()


@dataclass(frozen=True)
class Service:
    """Everything a route needs; stored in `app.state.service`."""

    settings: settings.Settings
    engine: sa.Engine
    sessions: database.Sessions
    readers: database.Sessions
    storage: Storage
    queue: Queue
    publisher: Publisher
    hub: streams.Hub
    federations: federation_waits.FederationWaits
    rate_limits: rate_limits.RateLimits
    key_cache: key_cache.KeyCache
    limits: quotas.QuotaLimits
    cursor_secret: bytes
    tracer: tracing.Tracer
    tokens: oidc.TokenVerifier | None


def _parts(request: Request) -> Service:
    parts: Service = request.app.state.service
    return parts


# These are asynchronous, though they wait for nothing: FastAPI gives a plain function a thread.
# They ask for the request and not for one another: each that is asked for costs 0.1 ms.
async def service(request: Request) -> Service:
    """Return the parts of this app."""
    return _parts(request)


ServiceDep = Annotated[Service, Depends(service)]


async def _sessions(request: Request) -> database.Sessions:
    return _parts(request).sessions


async def _readers(request: Request) -> database.Sessions:
    return _parts(request).readers


async def _storage(request: Request) -> Storage:
    return _parts(request).storage


SessionsDep = Annotated[database.Sessions, Depends(_sessions)]
ReadersDep = Annotated[database.Sessions, Depends(_readers)]
StorageDep = Annotated[Storage, Depends(_storage)]


async def _send_file(request: Request, storage: StorageDep) -> Callable[[models.File], Response]:
    return functools.partial(ranges.respond, request, storage)


# Responds with a stored file: the whole of it, or the range that was asked for.
SendFileDep = Annotated[Callable[[models.File], Response], Depends(_send_file)]

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="`Authorization: Bearer ak_<environment>_<id>_<secret>`, or a token of the OIDC "
    "issuer that the operator trusts. A key may be limited to scopes: `<tag of the operation>:read`"
    " or `<tag>:write`.",
)
BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def caller(
    request: Request,
    credentials: BearerDep,
) -> keys.Caller:
    """Return who calls, if its key has the scope of the route.

    Raises: Unauthenticated; Forbidden.
    """
    parts = _parts(request)
    if credentials is None:
        raise errors.Unauthenticated("send an API key: Authorization: Bearer ak_...")
    text = credentials.credentials
    if parts.tokens is not None and oidc.is_token(text):
        known = parts.tokens.caller(parts.readers, text)
    else:
        known = _key_holder(parts, text)
    known = dataclasses.replace(known, request_id=request.scope["request_id"])
    # For the log line of the request, which is written outside of the route.
    request.scope["caller"] = known
    route = request.scope["route"]
    known.require_scope(
        scopes.of(area=route.tags[0], method=request.method, operation_id=route.operation_id)
    )
    take_token(request, parts.rate_limits.take(known.project_id))
    return known


def _key_holder(parts: Service, text: str) -> keys.Caller:
    caller = parts.key_cache.find(text)
    if caller is not None:
        return caller
    generation = parts.key_cache.generation
    with parts.readers() as session:
        known = keys.authenticate(session, text=text)
    if known.due:
        with parts.sessions.begin() as session:
            keys.note_use(session, key_id=known.caller.key_id, is_former=known.is_former)
    parts.key_cache.keep(text, known, generation=generation)
    return known.caller


def take_token(request: Request, bucket: rate_limits.Bucket | None) -> None:
    """Show a request's bucket in its response, and refuse it where no token was left.

    Raises: errors.RateLimited.
    """
    # For the headers of the response, whichever it is.
    request.scope["rate_limit"] = bucket
    if bucket is not None and not bucket.was_taken:
        raise bucket.refusal()


CallerDep = Annotated[keys.Caller, Depends(caller)]


async def _editor(caller: CallerDep) -> keys.Caller:
    caller.require(keys.Role.EDITOR)
    return caller


async def _admin(caller: CallerDep) -> keys.Caller:
    caller.require(keys.Role.ADMIN)
    return caller


async def _limits(request: Request) -> quotas.QuotaLimits:
    return _parts(request).limits


# The limits that the service sets to every project.
LimitsDep = Annotated[quotas.QuotaLimits, Depends(_limits)]

EditorDep = Annotated[keys.Caller, Depends(_editor)]
AdminDep = Annotated[keys.Caller, Depends(_admin)]


async def _publish(request: Request, background: BackgroundTasks) -> Callable[[], None]:
    return lambda: background.add_task(_parts(request).publisher.publish)


# Call it after the commit; the messages are published after the response was sent.
PublishDep = Annotated[Callable[[], None], Depends(_publish)]


async def _page(
    request: Request,
    caller: CallerDep,
    limit: Annotated[
        int, Query(ge=1, le=paging.MAX_LIMIT, description="Most entries to return.")
    ] = paging.DEFAULT_LIMIT,
    cursor: Annotated[
        str | None, Query(max_length=1000, description="`next_cursor` of the page before.")
    ] = None,
) -> paging.PageRequest:
    filters = sorted(
        (name, value)
        for name, value in request.query_params.multi_items()
        if name not in {"limit", "cursor"}
    )
    binding = f"{caller.project_id} {request.url.path} {filters}"
    return paging.PageRequest(_parts(request).cursor_secret, binding, limit, cursor)


# Bound to the project, the path and every other query parameter of the request.
PageDep = Annotated[paging.PageRequest, Depends(_page)]


def _parameters_with(prefix: str) -> Callable[[Request], Awaitable[Mapping[str, str]]]:
    async def parameters(request: Request) -> Mapping[str, str]:
        return {
            name.removeprefix(prefix): value
            for name, value in request.query_params.items()
            if name.startswith(prefix)
        }

    return parameters


LabelsDep = Annotated[Mapping[str, str], Depends(_parameters_with("label."))]
TagsDep = Annotated[Mapping[str, str], Depends(_parameters_with("tag."))]
