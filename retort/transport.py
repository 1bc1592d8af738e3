"""Sends requests to the server: retries, problems and typed response bodies.

Every request may be repeated: reads and PUTs by their nature, POSTs that create because they have
an `Idempotency-Key`, other POSTs because a second one has no effect. So a lost response costs time,
but never makes a second job.
"""

import contextlib
import ipaddress
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx
import pydantic

from retort import errors, types

RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
LONGEST_WAIT_SECONDS = 30.0
ResponseBody = TypeVar("ResponseBody", bound=pydantic.BaseModel)
State = TypeVar("State", bound="HasState")
Version = TypeVar("Version", types.ModelVersion, types.DatasetVersion)
# JSON values and query parameters as httpx takes them.
Query = Mapping[str, Any]


class HasState(Protocol):
    """A resource that passes through states."""

    @property
    def state(self) -> str:
        """Its present state."""


def fresh_key() -> str:
    """Return a new `Idempotency-Key`."""
    return str(uuid.uuid4())


def backoff_seconds(attempt: int, first: float = 0.2, longest: float = 5.0) -> float:
    """Return how long to wait before a retry, randomised so that clients do not retry together."""
    return min(longest, first * 2.0**attempt) * random.uniform(0.5, 1.0)


class Transport:
    """One connection pool to one server, with one key."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        attempts: int = 6,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = _checked(url)
        self.timeout = timeout
        self.attempts = attempts
        self.sleep = sleep
        self._reached = False
        self._authorization = {"authorization": f"Bearer {api_key}"}
        self._pool = httpx.Client(
            timeout=timeout,
            headers={"user-agent": "retort-client"},
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not _is_loopback(self.url),
        )

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    def absolute(self, path: str) -> str:
        """Return the address of a path of the API; an absolute address stays as it is."""
        return path if "://" in path else self.url + path

    def _server_of(self, address: str) -> str:
        """Return whose address it is: our own server's, or that of the store of its files."""
        if _origin(address) == _origin(self.url):
            return self.url
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.netloc}"

    def headers_for(self, address: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Add the key, but only to requests to our own server (not to a presigned address)."""
        own = _origin(address) == _origin(self.url)
        return {**(self._authorization if own else {}), **headers}

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> httpx.Response:
        """Send a request, again if that may help, and return its successful response."""
        address = self.absolute(path)
        outgoing = self.headers_for(address, headers or {})
        encoded = _encoded(body)
        if encoded is not None:
            outgoing["content-type"] = "application/json"
        attempt = 0
        while True:
            last = attempt >= self.attempts - 1
            # A generator can be read once, so each attempt gets its own.
            sent = content() if content else encoded
            delay = backoff_seconds(attempt)
            try:
                response = self._pool.request(
                    method, address, content=sent, params=_clean(query), headers=outgoing
                )
            except httpx.TransportError as error:
                # No connection so far: the address is wrong or the server is not started.
                absent = isinstance(error, httpx.ConnectError) and not self._reached
                if last or (absent and attempt >= 1) or not may_help(error):
                    raise failed(self._server_of(address), error) from error
            else:
                self._reached = True
                if response.is_success:
                    return response
                problem = refusal(response)
                if last or not _may_pass(problem):
                    raise problem
                delay = max(delay, problem.retry_after_seconds or 0.0)
            (sleep or self.sleep)(delay)
            attempt += 1

    def fetch(
        self, kind: type[ResponseBody], method: str, path: str, **options: Any
    ) -> ResponseBody:
        """Send a request and return its body as `kind`."""
        return parsed(kind, self.request(method, path, **options))

    def create(
        self, kind: type[ResponseBody], path: str, body: object, *, key: str | None = None
    ) -> ResponseBody:
        """POST `body` with an `Idempotency-Key`, by default a new one; return what it made."""
        headers = {"idempotency-key": key or fresh_key()}
        return self.fetch(kind, "POST", path, body=body, headers=headers)

    def pages(
        self, kind: type[types.Item], path: str, *, query: Query | None = None, size: int = 100
    ) -> Iterator[types.Item]:
        """Walk through a list, page after page."""
        cursor: str | None = None
        while True:
            params = {**(query or {}), "limit": size, "cursor": cursor}
            # mypy cannot see that a generic class can be indexed by a type variable at run time.
            page = self.fetch(types.Page[kind], "GET", path, query=params)  # type: ignore[valid-type]
            yield from page.data
            cursor = page.next_cursor
            if not page.has_more or not cursor:
                return

    def poll(
        self,
        read: Callable[[], State],
        is_done: Callable[[State], bool],
        *,
        name: str,
        timeout: float | None,
        poll_seconds: float,
    ) -> State:
        """Read a resource repeatedly until `is_done`, and return it; None waits without limit.

        Raises: errors.TimedOut, with `name` and the last state.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not is_done(current := read()):
            if deadline is not None and time.monotonic() + poll_seconds > deadline:
                raise errors.TimedOut(f"{name} is still {current.state} after {timeout:g} s")
            self.sleep(poll_seconds)
        return current

    def wait_until_ready(
        self,
        read: Callable[[], Version],
        *,
        name: str,
        timeout: float | None,
        poll_seconds: float,
    ) -> Version:
        """Return a version when its inspection has ended and it is ready.

        Raises: errors.Rejected if its upload was rejected; errors.TimedOut.
        """
        version = self.poll(
            read,
            lambda current: current.is_settled,
            name=name,
            timeout=timeout,
            poll_seconds=poll_seconds,
        )
        if (why := version.rejection) is not None:
            raise errors.Rejected(version.reference, why.code, why.message)
        return version

    @contextlib.contextmanager
    def open(
        self, path: str, headers: Mapping[str, str], *, read_timeout: float | None = None
    ) -> Iterator[httpx.Response]:
        """Open a GET whose body the caller reads bit by bit; nothing is retried here."""
        address = self.absolute(path)
        limits = httpx.Timeout(self.timeout, read=read_timeout or self.timeout)
        with self._pool.stream(
            "GET",
            address,
            headers=self.headers_for(address, headers),
            follow_redirects=True,  # large files may live in an object store; httpx drops the key
            timeout=limits,
        ) as response:
            if not response.is_success:
                response.read()
                raise refusal(response)
            yield response


class Resource:
    """The requests about one kind of thing, sent through the client's transport."""

    def __init__(self, http: Transport) -> None:
        self._http = http


def may_help(error: httpx.TransportError) -> bool:
    """Return whether the same request can succeed a moment later."""
    return not isinstance(error, (httpx.UnsupportedProtocol, httpx.ProxyError))


def failed(url: str, error: Exception) -> errors.ConnectionFailed:
    """Return a network error as one line that says what to do."""
    if isinstance(error, httpx.ConnectTimeout):
        return errors.ConnectionFailed(url, "no connection in time; check the address")
    if isinstance(error, httpx.TimeoutException):
        return errors.ConnectionFailed(url, "the server did not answer in time")
    if isinstance(error, httpx.ConnectError):
        return errors.ConnectionFailed(url, f"{error}; is it running? (`retort up` starts one)")
    return errors.ConnectionFailed(url, f"the connection was lost ({error})")


def parsed(kind: type[ResponseBody], response: httpx.Response) -> ResponseBody:
    """Return the body of a response as `kind`.

    Raises: errors.UnexpectedAnswer for a body that is not one of a Retort server.
    """
    try:
        return kind.model_validate_json(response.content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "body"
        raise errors.UnexpectedAnswer(
            f"{response.request.method} {response.request.url} did not answer like a Retort "
            f"server ({where}: {first['msg']})"
        ) from error


def refusal(response: httpx.Response) -> errors.ProblemError:
    """Return an error response as the problem it describes."""
    if response.is_redirect:
        raise errors.UnexpectedAnswer(
            f"{response.request.url} redirects to {response.headers.get('location')}: use that URL"
        )
    body = _json_object(response)
    return errors.ProblemError(
        response.status_code,
        str(body.get("code") or "http_error"),
        str(body.get("title") or response.reason_phrase or "refused"),
        str(body.get("detail") or ""),
        errors=[
            errors.FieldProblem(
                str(e.get("pointer", "")), str(e.get("detail", "")), str(e.get("code", ""))
            )
            for e in body.get("errors") or []
            if isinstance(e, dict)
        ],
        retryable=bool(body.get("retryable", response.status_code in RETRIED_STATUSES)),
        retry_after_seconds=_seconds(response.headers.get("retry-after")),
        uses=[use for use in body.get("uses") or [] if isinstance(use, dict)],
    )


def _encoded(body: object) -> bytes | None:
    if body is None:
        return None
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise errors.BadOption(f"the request cannot be sent as JSON: {error}") from error


def _may_pass(problem: errors.ProblemError) -> bool:
    waits = problem.retry_after_seconds
    if waits is not None and waits > LONGEST_WAIT_SECONDS:
        return False
    # 409 with a time to wait: the first request under the same key has not finished yet.
    busy = problem.status == 409 and waits is not None
    return busy or (problem.status in RETRIED_STATUSES and problem.retryable)


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None  # an HTTP date: rare, and the back-off serves as well


def _clean(query: Query | None) -> dict[str, Any] | None:
    return {k: v for k, v in query.items() if v is not None} if query else None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise errors.NotConfigured(
            f"{url!r} is not the address of a server: expected http://HOST:PORT"
        )
    return url.rstrip("/")


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address)
    standard = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or standard


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
