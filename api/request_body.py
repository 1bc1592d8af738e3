"""Large request bodies, passed from the event loop to a thread chunk by chunk.

The thread asks for the next chunk and the loop fetches it, so a slow disk slows the sender down
instead of filling memory.
"""

import asyncio
import base64
import binascii
import collections
import functools
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from api import errors as problems
from models_registry import errors

T = TypeVar("T")

GATHERED_BYTES = 2**20
# A slower average counts as stalled: slow senders must not occupy threads.
MIN_BYTES_PER_SECOND = 1024
# Separate threads, so that slow senders do not occupy those of other routes.
_THREADS = anyio.CapacityLimiter(64)
_DIGEST = re.compile(r"\s*([a-z][a-z0-9-]*)\s*=\s*:([A-Za-z0-9+/=]*):\s*")


class Body(Iterator[bytes]):
    """A request's body, to be iterated in a thread started by `in_thread`."""

    def __init__(self, request: Request, *, stall_seconds: float) -> None:
        self._stream = request.stream()
        self._stall_seconds = stall_seconds
        self._pieces: collections.deque[bytes] = collections.deque()
        self._received = 0
        self._started_at: float | None = None
        self._ended = False

    def __next__(self) -> bytes:
        """Return the next chunk, as it came from the network.

        Raises: BodyRejected (408) when the sender stalls; errors.Malformed when it disconnects.
        """
        if not self._pieces and not self._ended:
            anyio.from_thread.run(self._gather)
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    async def _gather(self) -> None:
        # Many at a time, since a switch between threads costs as much as they do. They are not
        # joined: to copy them costs more than to hash them.
        loop = asyncio.get_running_loop()
        gathered = 0
        if self._started_at is None:
            self._started_at = time.monotonic()
        try:
            async with asyncio.timeout(self._stall_seconds) as limit:
                while gathered < GATHERED_BYTES:
                    piece = await anext(self._stream)
                    if piece:  # the last may be empty
                        self._pieces.append(piece)
                    gathered += len(piece)
                    limit.reschedule(loop.time() + self._stall_seconds)
                    self._check_rate(self._received + gathered, self._started_at)
        except StopAsyncIteration:
            self._ended = True
        except TimeoutError as error:
            raise self._stalled() from error
        except ClientDisconnect as error:
            raise errors.Malformed("the client has disconnected", code="body_cut_off") from error
        self._received += gathered

    def _check_rate(self, received: int, started_at: float) -> None:
        seconds = time.monotonic() - started_at
        if seconds > self._stall_seconds and received < seconds * MIN_BYTES_PER_SECOND:
            raise self._stalled()

    def _stalled(self) -> problems.BodyRejected:
        return problems.BodyRejected(
            408,
            code="upload_stalled",
            detail=f"too little arrived within {self._stall_seconds:g} s: send the part again",
        )


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work`, which may iterate a `Body`, in a thread, and return its result."""
    return await anyio.to_thread.run_sync(functools.partial(work), limiter=_THREADS)


def announced_sha256(headers: Headers) -> str | None:
    """Return the SHA-256, in hexadecimal, of the sender's digest headers (RFC 9530).

    Raises: errors.Malformed for a header that cannot be read, or two that contradict each other.
    """
    digests = {
        digest for name in ("content-digest", "repr-digest") for digest in _digests(headers, name)
    }
    if len(digests) > 1:
        raise _bad_digest("repr-digest", "Content-Digest and Repr-Digest contradict each other")
    return digests.pop() if digests else None


def announced_bytes(headers: Headers) -> int | None:
    """Return the body's length as announced, None where it is not."""
    value = headers.get("content-length", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


def check_encoding(headers: Headers) -> None:
    """Raise Refused for a compressed body: sizes and digests are those of the bytes as sent."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        detail = f"Content-Encoding {encoding[:40]!r} is not supported: send the bytes as they are"
        fault = errors.Fault("/header/content-encoding", "unsupported_encoding", detail)
        raise errors.Refused(detail, code="unsupported_encoding", faults=[fault])


def _digests(headers: Headers, name: str) -> Iterator[str]:
    for value in headers.getlist(name):
        for member in value.split(","):
            read = _DIGEST.fullmatch(member)
            if read is None:
                raise _bad_digest(name, f"cannot read {member.strip()[:100]!r}")
            if read[1] == "sha-256":
                yield _hexadecimal(name, read[2])


def _hexadecimal(name: str, encoded: str) -> str:
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise _bad_digest(name, f"{encoded[:100]!r} is not base64") from error
    if len(raw) != 32:
        raise _bad_digest(name, f"a SHA-256 has 32 bytes, got {len(raw)}")
    return raw.hex()


def _bad_digest(header: str, detail: str) -> errors.Malformed:
    message = f"{header}: {detail}; write sha-256=:<base64 of the 32 bytes>:"
    fault = errors.Fault(f"/header/{header}", "bad_digest", message)
    return errors.Malformed(message, code="bad_digest", faults=[fault])
