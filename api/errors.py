"""Turn errors into RFC 9457 problems. No other file knows which status an error has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import sqlalchemy.exc
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.schemas import problems
from models_registry import errors
from models_registry.persistence import database

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2


class TooManyStreams(errors.RegistryError):
    """The project has as many open streams as it may."""

    code = "too_many_streams"


class TooManyHeaders(errors.RegistryError):
    """A request has more headers than any client sends."""

    code = "too_many_headers"


class BodyRejected(HTTPException):
    """The request's body was refused while it was being read.

    An `HTTPException`, because the framework passes only those through while it reads a body.
    """

    def __init__(self, status: int, *, code: str, detail: str) -> None:
        super().__init__(status, detail)
        self.code = code


@dataclass(frozen=True)
class ProblemKind:
    """Status and title of the problems that a class of errors becomes."""

    status: HTTPStatus
    title: str
    retryable: bool = False


# The one table; the nearest class in an error's ancestry wins.
TABLE: dict[type[Exception], ProblemKind] = {
    errors.Malformed: ProblemKind(HTTPStatus.BAD_REQUEST, "Malformed request"),
    errors.Unauthenticated: ProblemKind(HTTPStatus.UNAUTHORIZED, "Not authenticated"),
    errors.Forbidden: ProblemKind(HTTPStatus.FORBIDDEN, "Not allowed for this key"),
    errors.QuotaExceeded: ProblemKind(HTTPStatus.FORBIDDEN, "Quota exceeded"),
    errors.RateLimited: ProblemKind(
        HTTPStatus.TOO_MANY_REQUESTS, "Too many requests", retryable=True
    ),
    errors.NotFound: ProblemKind(HTTPStatus.NOT_FOUND, "Not found"),
    errors.Conflict: ProblemKind(HTTPStatus.CONFLICT, "Conflict"),
    errors.IllegalMove: ProblemKind(HTTPStatus.CONFLICT, "Illegal transition"),
    errors.AlreadyExists: ProblemKind(HTTPStatus.CONFLICT, "Already exists"),
    errors.InUse: ProblemKind(HTTPStatus.CONFLICT, "In use"),
    errors.StaleFence: ProblemKind(HTTPStatus.CONFLICT, "Lease lost"),
    errors.Gone: ProblemKind(HTTPStatus.GONE, "Gone"),
    errors.PreconditionFailed: ProblemKind(HTTPStatus.PRECONDITION_FAILED, "Precondition failed"),
    errors.PreconditionRequired: ProblemKind(
        HTTPStatus.PRECONDITION_REQUIRED, "Precondition required"
    ),
    errors.TooLarge: ProblemKind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too large"),
    errors.Refused: ProblemKind(HTTPStatus.UNPROCESSABLE_ENTITY, "Refused"),
    errors.DigestMismatch: ProblemKind(HTTPStatus.UNPROCESSABLE_ENTITY, "Digest mismatch"),
    TooManyHeaders: ProblemKind(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Too many header fields"
    ),
    TooManyStreams: ProblemKind(HTTPStatus.TOO_MANY_REQUESTS, "Too many streams", retryable=True),
    errors.StorageFull: ProblemKind(HTTPStatus.INSUFFICIENT_STORAGE, "No room left"),
    errors.Unavailable: ProblemKind(HTTPStatus.SERVICE_UNAVAILABLE, "Unavailable", retryable=True),
    errors.RegistryError: ProblemKind(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error"),
}

# Codes of what the framework refuses before a route is reached.
_FRAMEWORK_CODES = {
    HTTPStatus.BAD_REQUEST: "malformed",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "range_not_satisfiable",
}
# Statuses for which the same request may succeed later.
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


def install(app: FastAPI) -> None:
    """ProblemKind every error of `app` with a problem."""
    app.add_exception_handler(errors.RegistryError, _registry_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(sqlalchemy.exc.OperationalError, _database_error)
    app.add_exception_handler(sqlalchemy.exc.TimeoutError, _database_error)


def internal(connection: HTTPConnection) -> Response:
    """Return the response to an unexpected error; it shows no internals."""
    return _problem(
        connection,
        ProblemKind(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error", retryable=True),
        code="internal_error",
        detail="an unexpected error occurred; the logs have it under the request id",
    )


def of(connection: HTTPConnection, error: errors.RegistryError) -> Response:
    """Return the problem that `error` becomes."""
    answer = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    return _problem(
        connection,
        answer,
        code=error.code,
        detail=error.message,
        faults=error.faults,
        allowed=list(error.allowed) if isinstance(error, errors.IllegalMove) else None,
        uses=error.uses if isinstance(error, errors.InUse) else (),
        quota=error.quota if isinstance(error, errors.QuotaExceeded) else None,
        headers=_headers_of(error),
    )


def _headers_of(error: errors.RegistryError) -> Mapping[str, str]:
    if isinstance(error, errors.RateLimited):
        return {"retry-after": str(math.ceil(error.retry_after_seconds))}
    return {}


def _registry_error(request: Request, error: Exception) -> Response:
    # The framework's type for handlers takes any exception.
    if not isinstance(error, errors.RegistryError):
        raise error
    return of(request, error)


def _database_error(request: Request, error: Exception) -> Response:
    log.error("database_failed", exc_info=error)
    if database.has_no_room(error):
        full = errors.StorageFull(
            "the disk of the database is full: nothing was changed; have it enlarged, or delete "
            "jobs that nobody needs",
            code="database_full",
        )
        return of(request, full)
    down = errors.Unavailable("the database cannot be reached", code="database_unavailable")
    return of(request, down)


def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    code = _FRAMEWORK_CODES.get(status, status.name.lower())
    detail, headers = error.detail, error.headers
    if status is HTTPStatus.NOT_FOUND and detail == status.phrase:
        detail = f"there is nothing at {request.url.path}"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible at {request.url.path}"
        headers = {"allow": _allowed(request)} if "route" in request.scope else headers
    return _problem(
        request,
        ProblemKind(status, status.phrase, retryable=status in _TEMPORARY),
        code=error.code if isinstance(error, BodyRejected) else code,
        detail=detail,
        headers=headers,
    )


def _allowed(request: Request) -> str:
    # The framework names only the methods of the first route with this path.
    verbs = request.app.openapi()["paths"].get(request.scope["route"].path, {})
    return ", ".join(sorted(verb.upper() for verb in verbs))


def _validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    details = error.errors()
    if any(detail["type"] == "json_invalid" for detail in details):
        return of(request, errors.Malformed(f"the body is not JSON: {details[0]['ctx']['error']}"))
    if _body_was_not_json(request, details):
        return _problem(
            request,
            ProblemKind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"),
            code="unsupported_media_type",
            detail="the body must be JSON, with content-type: application/json",
        )
    faults = [
        errors.Fault(_pointer(detail["loc"]), detail["type"], _sentence(detail))
        for detail in details
    ]
    count = "one field is" if len(faults) == 1 else f"{len(faults)} fields are"
    message = f"{count} not acceptable: {faults[0].pointer or '/'}: {faults[0].detail}"
    return of(request, errors.Refused(message, code="invalid_request", faults=faults))


def _body_was_not_json(request: Request, details: Any) -> bool:
    # A body of another content type reaches validation as bytes, and fails there as a whole.
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    whole_body = any(tuple(detail["loc"]) == ("body",) for detail in details)
    has_body = request.headers.get("content-length", "0") != "0" or (
        "transfer-encoding" in request.headers
    )
    return whole_body and has_body and not is_json


def _pointer(location: tuple[int | str, ...]) -> str:
    first, *rest = location
    parts = rest if first == "body" else [str(first), *rest]
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _sentence(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"])
    return message.removeprefix("Value error, ")


def _problem(
    connection: HTTPConnection,
    answer: ProblemKind,
    *,
    code: str,
    detail: str,
    faults: tuple[errors.Fault, ...] = (),
    allowed: list[str] | None = None,
    uses: tuple[errors.Uses, ...] = (),
    quota: errors.Quota | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = problems.Problem(
        type=f"urn:retort:problem:{code}",
        title=answer.title,
        status=answer.status,
        detail=detail,
        instance=connection.scope.get("request_id", ""),
        code=code,
        errors=[
            problems.ProblemFault(pointer=fault.pointer, code=fault.code, detail=fault.detail)
            for fault in faults
        ],
        retryable=answer.retryable,
        allowed=allowed,
        uses=[
            problems.ProblemUses(kind=use.kind, count=use.count, names=list(use.names))
            for use in uses
        ]
        or None,
        quota=problems.ProblemQuota(**vars(quota)) if quota else None,
    )
    extra = dict(headers or {})
    if answer.status is HTTPStatus.UNAUTHORIZED:
        extra["www-authenticate"] = "Bearer"
    if answer.retryable:
        extra.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
    return JSONResponse(
        body.model_dump(mode="json", exclude_none=True),
        status_code=answer.status.value,
        headers=extra,
        media_type=MEDIA_TYPE,
    )


class LastHandler:
    """Answers unexpected exceptions, and logs them with their traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a response that has started is aborted, so that the client notices."""
        has_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("request_failed", path=scope["path"])
            if has_begun:
                raise
            await internal(HTTPConnection(scope))(scope, receive, send)
