"""Sends one webhook: to an address that was checked, within a time, without redirects.

What is answered is not trusted either: at most 4 KiB of it are read, and an excerpt is kept with
control characters replaced.
"""

import email.utils
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import httpcore

from models_registry import errors
from models_registry.artifacts import input_checks
from models_registry.webhooks import addresses
from models_registry.webhooks.addresses import Resolve, Rules
from models_registry.webhooks.deliveries import Outcome

MAX_ANSWER_BYTES = 4096
EXCERPT_CHARACTERS = 500
_USER_AGENT = "retort-webhooks/1"
# What the far side, or the way to it, can do wrong.
_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


@dataclass(frozen=True)
class Sender:
    """Sends webhooks by the operator's rules; `timeout_seconds` is for one request as a whole."""

    rules: Rules
    timeout_seconds: float
    resolve: Resolve | None = None

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Send one request, and return how it ended; whatever the far side does, nothing raises."""
        deadline = time.monotonic() + self.timeout_seconds
        backend = _CheckedBackend(self, deadline)
        fixed = {"content-type": "application/json", "user-agent": _USER_AGENT}
        sent = [*fixed.items(), *headers.items()]
        try:
            addresses.check_form(url, self.rules)  # the rules may have changed since
            with (
                httpcore.ConnectionPool(network_backend=backend) as pool,
                pool.stream("POST", url, headers=sent, content=body) as answer,
            ):
                content = _beginning(answer.iter_stream())
                return _outcome(answer, content)
        except errors.Refused as error:
            return Outcome(None, error.message)
        except _FAILURES as error:
            return Outcome(None, self._sentence(error, is_late=time.monotonic() >= deadline))

    def _sentence(self, error: Exception, *, is_late: bool) -> str:
        if is_late or isinstance(error, httpcore.TimeoutException):
            return f"no complete answer within {self.timeout_seconds:g} s"
        said = input_checks.printable(str(error))[:EXCERPT_CHARACTERS]
        return f"the connection failed: {said or type(error).__name__}"


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to an address that was resolved and checked here, never to a name."""

    def __init__(self, sender: Sender, deadline: float) -> None:
        self._sender = sender
        self._deadline = deadline
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that takes the connection."""
        del timeout  # that of the whole request counts
        found = addresses.resolved(host, port, self._sender.rules, resolve=self._sender.resolve)
        failure: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in found:
            try:
                stream = self._inner.connect_tcp(
                    address, port, _left(self._deadline), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure or httpcore.ConnectError("no address")


class _TimedStream(httpcore.NetworkStream):
    """A stream all of whose waits together end at one time."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes."""
        del timeout
        return self._inner.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes."""
        del timeout
        self._inner.write(buffer, _left(self._deadline))

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Begin TLS; the certificate must be that of the name, not of the address."""
        del timeout
        inner = self._inner.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _TimedStream(inner, self._deadline)

    def get_extra_info(self, key: str) -> object:
        """Return what the connection knows of itself."""
        return self._inner.get_extra_info(key)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time is up")
    return left


def _beginning(chunks: Iterable[bytes]) -> bytes:
    content = b""
    for chunk in chunks:
        content += chunk
        if len(content) >= MAX_ANSWER_BYTES:
            break
    return content[:MAX_ANSWER_BYTES]


def _outcome(answer: httpcore.Response, content: bytes) -> Outcome:
    text = input_checks.printable(content.decode("utf-8", "replace"))
    return Outcome(
        status=answer.status,
        error=_why_failed(answer),
        excerpt=text[:EXCERPT_CHARACTERS] or None,
        retry_after_seconds=_retry_after(_header(answer, b"retry-after")),
    )


def _why_failed(answer: httpcore.Response) -> str | None:
    if 200 <= answer.status < 300:
        return None
    if 300 <= answer.status < 400:
        target = input_checks.printable(_header(answer, b"location") or "nowhere")[:200]
        return f"it answered {answer.status}, a redirect to {target}; set url to where it leads"
    return f"it answered {answer.status}; a delivery is taken with a status of 200 to 299"


def _header(answer: httpcore.Response, name: bytes) -> str | None:
    found = [value for known, value in answer.headers if known.lower() == name]
    return found[0].decode("latin-1") if found else None


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After`, which has a number or a date; None for neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
