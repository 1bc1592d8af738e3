"""Outermost middleware: request ids, limits on bodies, one log line and one measurement each."""

import asyncio
import json
import math
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors, metrics
from models_registry import errors as registry_errors
from models_registry import ids, logs, tracing

log = structlog.get_logger()

MAX_BODY_BYTES = 2**20
MAX_PICTURES_BODY_BYTES = 12 * 2**20
"""Of a body with pictures in base64: 8 MiB of files."""
MAX_JSON_DEPTH = 32
BODY_STALL_SECONDS = 60.0
"""So long nothing of a body may come; parts of uploads have limits of their own."""
MAX_HEADERS = 100
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Parts of uploads are large; their route counts its own bytes.
_PART = re.compile(r"/v1/uploads/[^/]+/parts/[^/]+")
_PREDICT = re.compile(r"/v1/models/[^/]+/versions/[^/]+/predict")
# Possessive, so that nothing is kept to go back to: linear in time, also where a string has no end.
# Such a string goes as well: the parser never gets to what follows its quote.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


@dataclass
class _Volume:
    """Bytes of a request's body and of its response's."""

    received: int = 0
    sent: int = 0


class RequestMiddleware:
    """Adds a request id, limits the body, logs, measures and traces every request."""

    def __init__(
        self, app: ASGIApp, *, measured: metrics.Requests, tracer: tracing.Tracer = tracing.OFF
    ) -> None:
        self._app = app
        self._measured = measured
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else ids.new("req")
        scope["request_id"] = request_id
        tracer = tracing.OFF if scope["path"] in _QUIET else self._tracer
        span = tracer.begin(
            scope["method"],
            parent=tracing.valid(headers.get("traceparent")),
            kind="server",
            http__request__method=scope["method"],
            url__path=scope["path"],
            retort__request__id=request_id,
        )
        trace = span.traceparent
        bound = {"trace_id": tracing.trace_id(trace)} if trace else {}
        with logs.bind(request_id=request_id, **bound), tracing.serving(trace):
            await self._measure(scope, receive, send, request_id, span)

    async def _measure(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, span: tracing.Span
    ) -> None:
        started, status, method = time.perf_counter(), 500, scope["method"]
        receive, send, volume = _counted(receive, send)
        if method == "HEAD":
            # Answered by what answers GET, so that HEAD is wherever GET is.
            # The server's own scope keeps its method: by it, the server sends no body.
            scope = {**scope, "method": "GET", "is_head": True}
            receive, send = _without_body(send)

        is_noted = False

        def note() -> None:
            nonlocal is_noted
            if not is_noted:
                is_noted = True
                self._note(scope, method, status, time.perf_counter() - started, volume)
                _end(span, scope, method, status)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                bucket = scope.get("rate_limit")
                headers.update(bucket.headers if bucket is not None else {})
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                note()  # the work that follows, such as publishing, is nobody's waiting

        try:
            await self._serve(scope, receive, send_with_id)
        finally:
            note()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = _refusal(scope)
        if refused is not None:
            await errors.of(HTTPConnection(scope), refused)(scope, receive, send)
            return
        if not _PART.fullmatch(scope["path"]):
            receive = _LimitedBody(
                receive, is_json=_is_json(scope), most_bytes=_most_bytes(scope)
            ).receive
        await self._app(scope, receive, send)

    def _note(
        self, scope: Scope, method: str, status: int, seconds: float, volume: _Volume
    ) -> None:
        # The template, not the path: one series per route, and no ids in labels.
        route = getattr(scope.get("route"), "path", "unknown")
        self._measured.observe(
            method, route, status, seconds, received=volume.received, sent=volume.sent
        )
        caller = scope.get("caller")
        who = {"project_id": caller.project_id, "key_id": caller.key_id} if caller else {}
        level = "debug" if scope["path"] in _QUIET else "info"
        getattr(log, level)(
            "request_served",
            method=method,
            path=scope["path"],
            route=route,
            status=status,
            seconds=round(seconds, 4),
            **who,
        )


def _counted(receive: Receive, send: Send) -> tuple[Receive, Send, _Volume]:
    """Return what receives and sends for a request, and what has passed through them."""
    volume = _Volume()

    async def receive_counted() -> Message:
        message = await receive()
        volume.received += len(message.get("body", b""))
        return message

    async def send_counted(message: Message) -> None:
        volume.sent += len(message.get("body", b""))
        await send(message)

    return receive_counted, send_counted, volume


def _end(span: tracing.Span, scope: Scope, method: str, status: int) -> None:
    route = getattr(scope.get("route"), "path", None)
    caller = scope.get("caller")
    span.update(
        name=f"{method} {route}" if route else method,
        http__route=route,
        http__response__status_code=status,
        retort__project__id=caller.project_id if caller else None,
    )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(f"answered {status}")
    span.end()


def _refusal(scope: Scope) -> registry_errors.RegistryError | None:
    """Return why a request is refused whatever its route, or None."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        # PostgreSQL rejects such text in any query.
        return registry_errors.Malformed("the URL contains a NUL character")
    if len(scope["headers"]) > MAX_HEADERS:
        return errors.TooManyHeaders(
            f"the request has {len(scope['headers'])} header fields, more than {MAX_HEADERS}"
        )
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        # Proxies that believe the other of the two take the body for the next request (RFC 9112).
        return registry_errors.Malformed(
            "the request has both Content-Length and Transfer-Encoding: send one of them"
        )
    return None


def _without_body(send: Send) -> tuple[Receive, Send]:
    """Return what receives and sends for a response of which only the headers are wanted.

    Once they are sent, the application is told that the caller has left, which ends a stream.
    """
    asked, started = asyncio.Event(), asyncio.Event()

    async def receive_nothing() -> Message:
        if not asked.is_set():
            asked.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        await started.wait()
        return {"type": "http.disconnect"}

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            started.set()

    return receive_nothing, send_headers


class _LimitedBody:
    """Counts a request's body while it is received; JSON is checked as a whole."""

    def __init__(self, receive: Receive, *, is_json: bool, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._is_json = is_json
        self._size_bytes = 0
        self._chunks: list[bytes] = []
        self._is_whole = False

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()  # the end of the connection, whenever that is
        try:
            async with asyncio.timeout(BODY_STALL_SECONDS):
                message = await self._receive()
        except TimeoutError as error:
            raise errors.BodyRejected(
                408,
                code="body_stalled",
                detail=f"nothing of the body came for {BODY_STALL_SECONDS:g} s: send it again",
            ) from error
        if message["type"] != "http.request":
            return message
        self._is_whole = not message.get("more_body", False)
        chunk = message.get("body", b"")
        self._size_bytes += len(chunk)
        if self._size_bytes > self._most_bytes:
            raise errors.BodyRejected(
                413,
                code="too_large",
                detail=f"a body may have {self._most_bytes} bytes; send files through /v1/uploads",
            )
        if self._is_json:
            self._chunks.append(chunk)
            if not message.get("more_body", False):
                check_json(b"".join(self._chunks))
        return message


_UTF8 = ("utf-8", "utf-8-sig")  # the parser takes a byte order mark as well


def check_json(body: bytes) -> None:
    """Refuse JSON that the parser accepts, but that the database or clients do not.

    That is: another encoding than UTF-8, in which brackets cannot be counted, nesting deeper than
    `MAX_JSON_DEPTH`, NaN and infinities, NUL characters and unpaired surrogates. The parser itself
    reports what is not JSON at all.

    Raises: errors.BodyRejected.
    """
    encoding = json.detect_encoding(body)
    if encoding not in _UTF8:
        _refuse(f"the body is {encoding.upper()}: send JSON as UTF-8 (RFC 8259)", "malformed")
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            _refuse(f"the body is nested deeper than {MAX_JSON_DEPTH} levels", "too_deep")
    try:
        document = json.loads(body, parse_constant=_not_a_number, parse_float=_finite)
    except ValueError:
        return
    _check_text(document)


def _check_text(document: Any) -> None:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not _is_plain(value):
            _refuse("a text contains a NUL character or half of a surrogate pair", "bad_text")


def _is_plain(text: str) -> bool:
    if text.isascii():
        return "\0" not in text
    return not re.search("[\0\ud800-\udfff]", text)


def _not_a_number(text: str) -> NoReturn:
    _refuse(f"{text} is not a JSON number", "malformed")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(f"the number {text[:40]} is out of range", "malformed")
    return number


def _refuse(detail: str, code: str) -> NoReturn:
    raise errors.BodyRejected(400, code=code, detail=detail)


def _most_bytes(scope: Scope) -> int:
    return MAX_PICTURES_BODY_BYTES if _PREDICT.fullmatch(scope["path"]) else MAX_BODY_BYTES


def _is_json(scope: Scope) -> bool:
    kind = Headers(scope=scope).get("content-type", "").split(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")
