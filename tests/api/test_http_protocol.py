"""What is refused before the application sees a request, tried over real connections."""

import asyncio
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from api import http_protocol
from tests import serving, waiting

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


class Application:
    """Answers with what it was asked, and keeps count.

    `/wait` waits until `release` is set, `/early` does not wait for a body.
    """

    def __init__(self) -> None:
        self.release = threading.Event()
        self.ended: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        path = scope["path"]
        if path == "/wait":
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        if path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        body = b""
        message: dict[str, Any] = {"type": "none"}
        while path != "/early" and (message := await receive())["type"] == "http.request":
            body += message["body"]
            if path == "/stream":
                continue
            if not message["more_body"]:
                break
        self.ended.append(path)
        if message["type"] == "http.disconnect":
            return
        seen = {
            "path": path,
            "method": scope["method"],
            "body": body.decode("latin-1"),
            "headers": [[name.decode("latin-1") for name in each] for each in scope["headers"]],
        }
        content = json.dumps(seen).encode()
        length = str(len(content)).encode()
        headers = [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


class QuickProtocol(http_protocol.LimitedProtocol):
    head_seconds = 0.3


@pytest.fixture(scope="module")
def application() -> Application:
    return Application()


@pytest.fixture(scope="module")
def server(application: Application) -> Iterator[serving.Served]:
    running = serving.Served(application, lifespan="off")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def quick(application: Application) -> Iterator[serving.Served]:
    """A server that waits shortly for a head."""
    running = serving.Served(application, lifespan="off", protocol=QuickProtocol)
    yield running
    running.stop()


def connected(server: serving.Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=waiting.PATIENCE_SECONDS)


class Answers:
    """The responses that come over a connection, one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")

    def next(self, method: str = "GET") -> tuple[int, Any, http.client.HTTPMessage]:
        """Return status, document and headers of the next response."""
        response = http.client.HTTPResponse(Shared(self._file), method=method)  # type: ignore[arg-type]  # what it uses of a socket
        response.begin()
        content = response.read()
        return response.status, json.loads(content) if content else None, response.headers

    def is_over(self) -> bool:
        """Return whether the server has closed the connection, and sent nothing more."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


class Shared:
    """A socket whose file is not closed with the first response."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def makefile(self, _mode: str) -> Any:
        """Return the same file, which survives `close`."""
        return io.BufferedReader(Unclosed(self._file), 1)


class Unclosed(io.RawIOBase):
    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def readable(self) -> bool:
        """Say that it is."""
        return True

    def readinto(self, target: Any) -> int:
        """Read what is there, no more than is wanted."""
        content = self._file.read1(len(target))
        target[: len(content)] = content
        return len(content)


def answered(server: serving.Served, *pieces: bytes) -> tuple[int, Any, bool]:
    """Return status and document of the only response, and whether the connection was closed."""
    with connected(server) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answers = Answers(connection)
        status, document, headers = answers.next()
        is_closed = headers["connection"] == "close"
        if is_closed:
            assert answers.is_over()
        return status, document, is_closed


POST = b"POST /x HTTP/1.1\r\nHost: x\r\n"
REFUSED = {
    "both lengths": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, turned": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two equal lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "list of lengths": POST + b"Content-Length: 3, 4\r\n\r\nabcd",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "length with a space inside": POST + b"Content-Length: 1 1\r\n\r\nabc",
    "chunk size of no digits": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "signed chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": POST
    + b"Transfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
    "chunk longer than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "chunk ended by a bare LF": POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "chunk ended by a bare CR": POST + b"Transfer-Encoding: chunked\r\n\r\n3\rabc\r\n0\r\n\r\n",
    "other coding": POST + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "two codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "hidden coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding after a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /x HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n",
    "field ended by a bare CR": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n",
    "field ended by a bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "continued line": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "continued first line": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n",
    "control character in a value": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x01c\r\n\r\n",
    "space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "space in a name": b"GET / HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n",
    "field without a name": b"GET / HTTP/1.1\r\nHost: x\r\n: c\r\n\r\n",
    "field without a colon": b"GET / HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the target": b"GET /a\0b HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes beyond ASCII in the target": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "another version": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tunnel": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


class TestAmbiguousRequests:
    @pytest.mark.parametrize("name", REFUSED)
    def test_are_refused_and_end_the_connection(self, server: serving.Served, name: str) -> None:
        status, problem, is_closed = answered(server, REFUSED[name])
        assert status in {400, 501, 505}, problem
        assert is_closed
        assert problem["status"] == status
        assert problem["type"] == f"urn:retort:problem:{problem['code']}"

    @pytest.mark.parametrize("name", REFUSED)
    def test_are_refused_byte_by_byte_too(self, server: serving.Served, name: str) -> None:
        with connected(server) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in REFUSED[name]:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    break  # refused before its end
            try:
                status, _, headers = Answers(connection).next()
            except ConnectionError:
                return  # what was still on its way made the kernel drop the response
        assert status in {400, 501, 505}
        assert headers["connection"] == "close"

    def test_never_reach_the_application_with_what_follows(
        self, server: serving.Served, application: Application
    ) -> None:
        hidden = GET % b"smuggled"
        both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        status, _, _ = answered(server, POST + both + hidden)
        assert status == 400
        assert answered(server, GET % b"after")[0] == 200
        assert "/smuggled" not in application.ended


class TestHeads:
    def test_of_too_many_bytes_are_refused_in_one_piece(self, server: serving.Served) -> None:
        field = b"X: " + b"x" * http_protocol.MAX_HEAD_BYTES
        status, problem, _ = answered(
            server, b"GET / HTTP/1.1\r\nHost: x\r\n" + field + b"\r\n\r\n"
        )
        assert (status, problem["code"]) == (431, "header_too_large")

    @pytest.mark.parametrize("piece", [b"X: y\r\n", b"x"], ids=["fields", "one name"])
    def test_that_do_not_end_are_refused_where_they_pass_the_limit(
        self, server: serving.Served, piece: bytes
    ) -> None:
        pieces = [piece * 100] * (http_protocol.MAX_HEAD_BYTES // len(piece) // 100 + 1)
        status, problem, _ = answered(server, b"GET / HTTP/1.1\r\nHost: x\r\n", *pieces)
        assert (status, problem["code"]) == (431, "header_too_large")

    def test_with_a_long_target_are_refused(self, server: serving.Served) -> None:
        status, problem, _ = answered(server, b"GET /" + b"x" * http_protocol.MAX_HEAD_BYTES)
        assert (status, problem["code"]) == (431, "header_too_large")

    def test_just_below_the_limit_are_served(self, server: serving.Served) -> None:
        head = b"GET / HTTP/1.1\r\nHost: x\r\nX: "
        value = b"x" * (http_protocol.MAX_HEAD_BYTES - 100)
        status, seen, is_closed = answered(server, head + value + b"\r\n\r\n")
        assert (status, is_closed) == (200, False)
        assert seen["headers"][1] == ["x", value.decode()]

    def test_that_do_not_arrive_in_time_are_refused(self, quick: serving.Served) -> None:
        status, problem, _ = answered(quick, b"GET / HTTP/1.1\r\n")
        assert (status, problem["code"], problem["retryable"]) == (408, "header_stalled", True)

    def test_of_a_later_request_have_the_same_time(self, quick: serving.Served) -> None:
        with connected(quick) as connection:
            answers = Answers(connection)
            connection.sendall(GET % b"first")
            assert answers.next()[0] == 200
            connection.sendall(b"GET / HTTP/1.1\r\n")
            assert answers.next()[1]["code"] == "header_stalled"
            assert answers.is_over()

    def test_of_which_only_blank_lines_come_end_the_connection(self, quick: serving.Served) -> None:
        with connected(quick) as connection:
            answers = Answers(connection)
            connection.sendall(GET % b"first")
            assert answers.next()[0] == 200
            connection.sendall(b"\r\n")
            assert answers.is_over()

    def test_never_come_behind_a_body_that_was_answered_early(self, quick: serving.Served) -> None:
        with connected(quick) as connection:
            answers = Answers(connection)
            connection.sendall(
                b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx"
            )
            assert answers.next()[0] == 200
            connection.sendall(b"x")
            assert answers.is_over()

    def test_that_never_begin_end_the_connection(self, quick: serving.Served) -> None:
        with connected(quick) as connection:
            assert Answers(connection).is_over()

    def test_in_pieces_are_put_together(self, server: serving.Served) -> None:
        with connected(server) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in POST + b"Content-Length: 3\r\n\r\nabc":
                connection.sendall(bytes([byte]))
            status, seen, _ = Answers(connection).next()
        assert status == 200
        assert (seen["path"], seen["body"]) == ("/x", "abc")


class TestBodies:
    def test_in_chunks_are_joined_and_their_trailers_dropped(self, server: serving.Served) -> None:
        body = b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nX-Late: 1\r\n\r\n"
        status, seen, _ = answered(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", body)
        assert (status, seen["body"]) == (200, "abcde")
        assert "x-late" not in dict(seen["headers"])

    @pytest.mark.parametrize(
        "endless", [b"0\r\nX: " + b"x" * 500, b"3;" + b"x" * 500], ids=["trailer", "extension"]
    )
    def test_with_endless_trailers_or_extensions_are_refused(
        self, server: serving.Served, endless: bytes
    ) -> None:
        more = [b"x" * 1000] * (http_protocol.MAX_HEAD_BYTES // 1000 + 1)
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        status, problem, _ = answered(server, head, endless, *more)
        assert (status, problem["code"]) == (431, "header_too_large")

    def test_larger_than_any_buffer_arrive_whole(self, server: serving.Served) -> None:
        content = bytes(range(1, 128)) * 2**13
        head = POST + b"Content-Length: %d\r\n\r\n" % len(content)
        status, seen, _ = answered(server, head, content)
        assert (status, seen["body"].encode()) == (200, content)

    def test_are_asked_for_where_the_client_waits(self, server: serving.Served) -> None:
        with connected(server) as connection:
            connection.sendall(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"abc")
            assert Answers(connection).next()[1]["body"] == "abc"

    def test_that_break_off_in_a_bad_chunk_end_the_connection_of_a_response_that_has_begun(
        self, server: serving.Served
    ) -> None:
        with connected(server) as connection:
            head = b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"3\r\nabc\r\n")
            received = b""
            while b"begun" not in received:
                received += connection.recv(1000)
            connection.sendall(b"zz\r\n")
            rest = Answers(connection)
            assert rest.is_over(), "nothing else in the middle of the response"


class TestRequestsAhead:
    def test_are_answered_in_order(self, server: serving.Served) -> None:
        with connected(server) as connection:
            connection.sendall(b"".join(GET % str(number).encode() for number in range(10)))
            answers = Answers(connection)
            paths = [answers.next()[1]["path"] for _ in range(10)]
        assert paths == [f"/{number}" for number in range(10)]

    def test_beyond_the_limit_end_the_connection_after_those_within(
        self, server: serving.Served, application: Application
    ) -> None:
        application.release.clear()
        count = http_protocol.MAX_PIPELINED + 1  # one runs, the others wait
        with connected(server) as connection:
            connection.sendall(GET % b"wait" + GET % b"within" * (count - 1) + GET % b"beyond" * 9)
            application.release.set()
            answers = Answers(connection)
            paths = [answers.next()[1]["path"] for _ in range(count)]
            assert answers.is_over()
        assert paths == ["/wait", *["/within"] * (count - 1)]
        assert "/beyond" not in application.ended

    def test_that_are_malformed_do_not_take_the_response_before(
        self, server: serving.Served, application: Application
    ) -> None:
        application.release.clear()
        with connected(server) as connection:
            connection.sendall(GET % b"wait" + b"GE T nonsense\r\n\r\n")
            application.release.set()
            answers = Answers(connection)
            assert answers.next()[1]["path"] == "/wait"
            assert answers.is_over()

    def test_after_a_request_to_close_are_not_served(
        self, server: serving.Served, application: Application
    ) -> None:
        last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        status, seen, is_closed = answered(server, last + GET % b"later")
        assert (status, seen["path"], is_closed) == (200, "/last", True)
        assert "/later" not in application.ended

    def test_leave_no_request_behind_when_the_client_goes(
        self, server: serving.Served, application: Application
    ) -> None:
        """The running one hears of it too, not only the newest."""
        before = application.ended.count("/stream")
        with connected(server) as connection:
            connection.sendall(GET % b"stream" + GET % b"never")
            received = b""
            while b"begun" not in received:
                received += connection.recv(1000)
        waiting.until(
            lambda: application.ended.count("/stream") == before + 1, "the stream has ended"
        )
        assert "/never" not in application.ended


class TestOtherProtocols:
    @pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
    def test_are_not_spoken_and_the_request_is_answered_as_it_is(
        self, server: serving.Served, application: Application, protocol: bytes
    ) -> None:
        upgrade = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
        head = b"GET /plain HTTP/1.1\r\nHost: x\r\n" + upgrade
        status, seen, is_closed = answered(server, head + GET % b"hidden")
        assert (status, seen["path"], is_closed) == (200, "/plain", True)
        assert "/hidden" not in application.ended


class TestResponses:
    def test_to_a_head_request_have_no_body(self, server: serving.Served) -> None:
        with connected(server) as connection:
            connection.sendall(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n" + GET % b"b")
            answers = Answers(connection)
            status, seen, headers = answers.next("HEAD")
            assert (status, seen) == (200, None)
            assert int(headers["content-length"]) > 0
            assert answers.next()[1]["path"] == "/b"

    def test_to_old_clients_end_the_connection(self, server: serving.Served) -> None:
        status, seen, is_closed = answered(server, b"GET /old HTTP/1.0\r\n\r\n")
        assert (status, seen["path"], is_closed) == (200, "/old", True)
