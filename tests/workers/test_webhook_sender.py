"""What is sent to receivers of every kind: kind, slow, endless, moved, and where none may go."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from models_registry.webhooks.addresses import Rules
from models_registry.webhooks.deliveries import Outcome
from tests import services, waiting
from tests.retort import wire as wires
from tests.retort.wire import Reply, Wire
from workers.webhook_sender import EXCERPT_CHARACTERS, Sender

HERE = Rules(allow_private=True, allow_http=True)
HEADERS = {"webhook-id": "msg_1"}
BODY = b'{"type":"job.succeeded"}'
PUBLIC = "93.184.216.34"


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wires.running() as server:
        yield server


def sender(rules: Rules = HERE, seconds: float = 5.0) -> Sender:
    return Sender(rules, seconds)


class TestPost:
    def test_sends_body_and_headers_and_keeps_an_excerpt_of_the_answer(self, wire: Wire) -> None:
        wire.on("POST", "/hook", Reply(202, b"thank\x00 \x1b[31myou"))
        outcome = sender().post(f"{wire.url}/hook?key=1", HEADERS, BODY)
        assert (outcome.status, outcome.error) == (202, None)
        assert outcome.excerpt == "thank? ?[31myou"
        (request,) = wire.requests
        assert (request.path, request.body) == ("/hook?key=1", BODY)
        assert request.headers["webhook-id"] == "msg_1"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["host"] == wire.url.removeprefix("http://")

    def test_takes_a_redirect_for_a_failure_and_does_not_follow_it(self, wire: Wire) -> None:
        wire.on("POST", "/hook", Reply(307, headers={"location": f"{wire.url}/moved"}))
        outcome = sender().post(f"{wire.url}/hook", HEADERS, BODY)
        assert outcome.status == 307
        assert f"a redirect to {wire.url}/moved" in (outcome.error or "")
        assert len(wire.requests) == 1

    @pytest.mark.parametrize("status", [400, 404, 410, 429, 500])
    def test_takes_every_other_status_for_a_failure(self, wire: Wire, status: int) -> None:
        wire.on("POST", "/hook", Reply(status, b"no"))
        outcome = sender().post(f"{wire.url}/hook", HEADERS, BODY)
        assert (outcome.status, outcome.excerpt) == (status, "no")
        assert str(status) in (outcome.error or "")

    def test_reads_retry_after_as_a_number_and_as_a_date(self, wire: Wire) -> None:
        later = datetime.now(UTC) + timedelta(seconds=600)
        for value, low, high in (
            ("120", 120, 120),
            (format_datetime(later, usegmt=True), 300, 600),
            ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0),
        ):
            wire.on("POST", "/hook", Reply(503, headers={"retry-after": value}))
            outcome = sender().post(f"{wire.url}/hook", HEADERS, BODY)
            assert outcome.retry_after_seconds is not None
            assert low <= outcome.retry_after_seconds <= high
        for value in ("soon", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"):
            wire.on("POST", "/hook", Reply(503, headers={"retry-after": value}))
            outcome = sender().post(f"{wire.url}/hook", HEADERS, BODY)
            assert (outcome.status, outcome.retry_after_seconds) == (503, None)

    def test_reads_only_the_beginning_of_a_large_answer(self, wire: Wire) -> None:
        wire.on("POST", "/hook", Reply(200, b"a" * 5_000_000))
        outcome = sender().post(f"{wire.url}/hook", HEADERS, BODY)
        assert (outcome.error, outcome.excerpt) == (None, "a" * EXCERPT_CHARACTERS)

    def test_takes_a_broken_line_for_a_failure(self, wire: Wire) -> None:
        wire.on("POST", "/hook", Reply(cut_after=-1))
        outcome = sender().post(f"{wire.url}/hook", HEADERS, BODY)
        assert outcome.status is None
        assert (outcome.error or "").startswith("the connection failed: ")

    def test_says_that_nobody_listens(self) -> None:
        outcome = sender().post(f"http://127.0.0.1:{services.free_port()}/", HEADERS, BODY)
        assert (outcome.error or "").startswith("the connection failed: ")

    def test_gives_up_on_an_answer_that_comes_byte_by_byte(self) -> None:
        def post() -> Outcome:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                threading.Thread(target=drip, args=(listener,), daemon=True).start()
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
                return sender(seconds=0.2).post(url, HEADERS, BODY)

        outcome = waiting.once_within(1, post)
        assert outcome.error == "no complete answer within 0.2 s"


def drip(listener: socket.socket) -> None:
    """Answer one byte every twentieth of a second, each of which comes in time."""
    connection, _ = listener.accept()
    with connection:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            while True:
                connection.sendall(b"a")
                time.sleep(0.05)
        except OSError:
            return  # the sender has hung up


class TestWhereNoneMayGo:
    def test_is_not_even_connected_to(self, wire: Wire) -> None:
        outcome = sender(Rules(allow_http=True)).post(f"{wire.url}/hook", HEADERS, BODY)
        assert "loopback" in (outcome.error or "")
        outcome = sender(Rules(allow_private=True)).post(f"{wire.url}/hook", HEADERS, BODY)
        assert "https://" in (outcome.error or "")
        assert wire.requests == []

    def test_is_not_reached_by_a_name_that_has_changed_its_mind(self, wire: Wire) -> None:
        # Public when the endpoint was created, this machine when it is connected to.
        port = int(wire.url.rpartition(":")[2])
        rebound = Sender(Rules(allow_http=True), 5, resolve=lambda _host, _port: ["127.0.0.1"])
        outcome = rebound.post(f"http://rebound.example:{port}/hook", HEADERS, BODY)
        assert "'rebound.example' has the address 127.0.0.1" in (outcome.error or "")
        assert wire.requests == []

    def test_is_asked_for_once_so_that_the_checked_address_is_the_one_used(
        self, wire: Wire
    ) -> None:
        answers = iter([["127.0.0.1"]])  # a second look-up would find none and raise
        port = int(wire.url.rpartition(":")[2])
        wire.on("POST", "/hook", Reply(204))
        once = Sender(HERE, 5, resolve=lambda _host, _port: next(answers))
        outcome = once.post(f"http://named.example:{port}/hook", HEADERS, BODY)
        assert outcome.status == 204
        assert wire.requests[0].headers["host"] == f"named.example:{port}"
