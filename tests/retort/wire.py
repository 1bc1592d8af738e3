"""A real HTTP server that says what a test tells it to, and breaks off where it is told to.

It stands in for the far side only where the real service cannot be made to misbehave: lost
connections, outages, damaged bytes, foreign answers.
"""

import contextlib
import json
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any


@dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What is answered.

    `cut_after` sends only so many bytes of the body and resets the line; -1 does so before anything
    was answered.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    has_length: bool = True


def told(body: object, status: int = 200, **headers: str) -> Reply:
    """Return a JSON answer."""
    return Reply(status, json.dumps(body).encode(), {"content-type": "application/json", **headers})


def problem(status: int, code: str, detail: str = "", **more: Any) -> Reply:
    """Return a problem."""
    body = {"title": "Refused", "status": status, "code": code, "detail": detail, **more}
    return told(body, status)


def stream(text: str, *, cut: bool = False) -> Reply:
    """Return a piece of an event stream, after which the line ends, or breaks."""
    body = text.encode()
    headers = {"content-type": "text/event-stream"}
    return Reply(200, body, headers, cut_after=len(body) if cut else None, has_length=False)


class Wire:
    """The server: replies by method and path, the last one of each again and again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self._replies: dict[tuple[str, str], list[Reply]] = {}
        self._lock = threading.Lock()

    def on(self, method: str, path: str, *replies: Reply) -> None:
        """Set what is answered to a request, in order."""
        self._replies[method, path] = list(replies)

    def sent(self, method: str, path: str) -> list[Request]:
        """Return the requests of one kind that arrived."""
        return [r for r in self.requests if r.method == method and _bare(r.path) == path]

    def reply_to(self, request: Request) -> Reply:
        """Note a request and return the next reply to it."""
        with self._lock:
            self.requests.append(request)
            replies = self._replies.get((request.method, _bare(request.path)))
            if not replies:
                return problem(404, "not_found", f"nothing at {request.path}")
            return replies.pop(0) if len(replies) > 1 else replies[0]


@contextlib.contextmanager
def running() -> Iterator[Wire]:
    """Run the server on a free port of this machine."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.wire = Wire(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.wire
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bare(path: str) -> str:
    return path.partition("?")[0]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    wire: Wire

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a client hang up, which is its right; show anything else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(60)

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        # One request for each connection: a keep-alive would hide what a lost line does.
        self.close_connection = True
        self._answer()
        return False

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        reply = self.server.wire.reply_to(request)
        if reply.cut_after == -1:
            self._reset()
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.has_length:
            self.send_header("content-length", str(len(reply.body)))
        self.send_header("connection", "close")
        self.end_headers()
        sent = reply.body if reply.cut_after is None else reply.body[: reply.cut_after]
        self.wfile.write(sent)
        self.wfile.flush()
        if reply.cut_after is not None:
            self._reset()

    def _reset(self) -> None:
        # Zero linger: a reset, as when a machine vanishes, instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
