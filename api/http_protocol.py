"""HTTP/1.1 as the service reads it: a parser in C, with the limits that it does not have itself.

Uvicorn's own class for that parser lets a head, trailers and chunk extensions grow without end,
waits for them for ever, and queues every request that a client sends ahead. Proxies and servers
that disagree about where a request ends can be abused to smuggle one in, so what is ambiguous in
RFC 9112 is refused here, and a connection on which something was refused is closed.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from types import NoneType
from typing import Any

import httptools
import structlog
from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from api import errors
from api.schemas import problems
from models_registry import ids

log = structlog.get_logger()

MAX_HEAD_BYTES = 2**14
"""Of request line and header fields; also of trailers and chunk extensions in a row."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for the response to the one before."""
_VERSIONS = frozenset({"1.0", "1.1"})


@dataclass(frozen=True)
class HttpFault:
    """Why a request is refused before the application sees it."""

    status: HTTPStatus
    code: str
    detail: str


class RefusedError(Exception):
    """Ends the parser, from one of its callbacks."""

    def __init__(self, fault: HttpFault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


MALFORMED = HttpFault(HTTPStatus.BAD_REQUEST, "malformed", "the bytes are no HTTP/1.1 request")
HEAD_TOO_LARGE = HttpFault(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "header_too_large",
    f"request line and header fields together, or trailers and chunk extensions, may have "
    f"{MAX_HEAD_BYTES} bytes",
)
TOO_SLOW = HttpFault(
    HTTPStatus.REQUEST_TIMEOUT,
    "header_stalled",
    "request line and header fields did not arrive in time",
)
_NO_HOST = HttpFault(
    HTTPStatus.BAD_REQUEST, "malformed", "an HTTP/1.1 request has exactly one Host field"
)
_BAD_CODING = HttpFault(
    HTTPStatus.NOT_IMPLEMENTED,
    "unsupported_transfer_encoding",
    "Transfer-Encoding may only be `chunked`, once, and not with HTTP/1.0",
)
_BAD_VERSION = HttpFault(
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "unsupported_version", "use HTTP/1.1 or HTTP/1.0"
)
_TOO_FAR_AHEAD = HttpFault(
    HTTPStatus.BAD_REQUEST,
    "too_many_pipelined",
    f"at most {MAX_PIPELINED} requests may be sent ahead",
)


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    A request that is refused gets a problem (RFC 9457) where nothing is being answered before it.
    Behind another one the connection ends: after that one's response where the head was refused, at
    once where the body was.
    """

    head_seconds = 30.0
    """For the first request since the connection, for later ones since their first byte."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = False
        # Since the parser last had something to say: parts of a head, of trailers, of extensions.
        self._unseen_bytes = 0
        self._is_deaf = False
        self._running: RequestResponseCycle | None = None

    # -- connection --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first head."""
        super().connection_made(transport)
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request of this connection; uvicorn tells only the newest."""
        self._unlimit_head()
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                _disconnect(cycle)
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, content: bytes) -> None:
        """Parse what has arrived."""
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        self._unseen_bytes += len(content)
        try:
            self.parser.feed_data(content)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here: the request is answered as if it had not asked.
            # What follows it may be in that protocol, and is not read.
            self._is_deaf = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            cause = error.__context__
            if not isinstance(cause, RefusedError | UnicodeDecodeError | NoneType):
                log.error("parsing_failed", exc_info=cause)  # ours, not the client's
            self._refuse(cause.fault if isinstance(cause, RefusedError) else MALFORMED)
        else:
            if self._unseen_bytes > MAX_HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)
            elif self.cycle is not None and not self.cycle.response_complete:
                return  # what is behind a request waits for its response
            elif self._in_head and self._head_timer is None:
                self._limit_head()
            elif not self._in_head and self._head_timer is None:
                # Blank lines, or the rest of a body that was answered already.
                self._limit_silence()

    # -- called by the parser ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; trailers are read and dropped, as the application has its head."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application, or refuse it."""
        fault = self._fault_of_head()
        if fault is not None:
            raise RefusedError(fault)
        self._unlimit_head()
        super().on_headers_complete()
        self._in_head, self._in_body = False, True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body until the application asks for it."""
        self._unseen_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._unseen_bytes = 0
        self._in_body = False
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # -- limits ------------------------------------------------------------------------------

    def _fault_of_head(self) -> HttpFault | None:
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            return _BAD_VERSION
        size, hosts, codings = len(self.url), 0, []
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.lower())
        if size > MAX_HEAD_BYTES:
            return HEAD_TOO_LARGE
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            return _NO_HOST
        if codings and (codings != [b"chunked"] or version == "1.0"):
            return _BAD_CODING
        return _TOO_FAR_AHEAD if len(self.pipeline) >= MAX_PIPELINED else None

    def _limit_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._end_slow_head)

    def _limit_silence(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _unlimit_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(TOO_SLOW)
        else:
            self.transport.close()  # nothing was asked

    def _refuse(self, fault: HttpFault) -> None:
        """Read no more, and close after what can still be answered."""
        self._is_deaf = True
        self._unlimit_head()
        log.warning("request_refused", code=fault.code, client=self.client and self.client[0])
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._send(fault)
        elif not self._in_body:
            cycle.keep_alive = False  # the last that is answered
        elif self.pipeline or cycle.response_started:
            self.transport.close()
        else:
            _disconnect(cycle)
            self._send(fault)

    def _send(self, fault: HttpFault) -> None:
        body = problems.Problem(
            type=f"urn:retort:problem:{fault.code}",
            title=fault.status.phrase,
            status=fault.status,
            detail=fault.detail,
            instance=ids.new("req"),
            code=fault.code,
            errors=[],
            retryable=fault is TOO_SLOW,
        )
        content = body.model_dump_json(exclude_none=True).encode()
        headers = {
            **dict(self.server_state.default_headers),
            b"content-type": errors.MEDIA_TYPE.encode(),
            b"content-length": str(len(content)).encode(),
            b"connection": b"close",
        }
        lines = [b": ".join(field) + b"\r\n" for field in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[fault.status], *lines, b"\r\n", content]))
        self.transport.close()


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that nobody waits for its response."""
    cycle.disconnected = True
    cycle.message_event.set()
