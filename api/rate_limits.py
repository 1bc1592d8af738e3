"""Limits the requests of each project: a token bucket in Redis, shared by all api processes.

A bucket holds as many tokens as a project may send requests in a minute and is refilled evenly;
each request takes one. A
client of a federation has a bucket of its own, so that a party that floods the service slows down
neither the project that invited it nor the other parties.

Redis being away refuses nobody: submissions work without it, and so do requests. The requests that
were served unchecked are counted in a metric.

Own script: the released versions of the `limits` library (5.8) know windows, but no buckets.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import prometheus_client
import redis
import structlog
from prometheus_client import registry

from models_registry import errors
from models_registry.access import quotas
from models_registry.access.quotas import QuotaLimits
from models_registry.persistence import broker, database

log = structlog.get_logger()

WINDOW_SECONDS = 60.0
# A changed limit is in force everywhere after this long.
KNOWN_FOR_SECONDS = 10.0
SOCKET_SECONDS = 0.5
# After a failure no request asks Redis for a while, so that not each one waits for it.
PAUSE_SECONDS = 5.0
_MOST_KNOWN = 10_000
# Redis' own clock, so that the api's machines need not agree. Returns whether a token was taken,
# how many are left, and after how many seconds there is one.
_TAKE = """
local parts = redis.call('TIME')
local now = tonumber(parts[1]) + tonumber(parts[2]) / 1e6
local size, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(known[1]) or size
local passed = math.max(0, now - (tonumber(known[2]) or now))
tokens = math.min(size, tokens + passed * size / window)
local taken = 0
if tokens >= 1 then
  tokens = tokens - 1
  taken = 1
end
local kept = {'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', now)}
redis.call('HSET', KEYS[1], unpack(kept))
redis.call('PEXPIRE', KEYS[1], math.ceil(window * 1000))
local next_token = math.max(0, (1 - tokens) * window / size)
return {taken, math.floor(tokens), string.format('%.6f', next_token)}
"""


@dataclass(frozen=True)
class Bucket:
    """The bucket of a project, or of a client, after a request took its token."""

    owner: Literal["project", "client"]
    limit: int
    left: int
    next_seconds: float  # until there is a token again; 0 while some are left
    was_taken: bool

    @property
    def headers(self) -> dict[str, str]:
        """Return the fields of draft-ietf-httpapi-ratelimit-headers-10."""
        refill = math.ceil(self.next_seconds) or 1
        return {
            "ratelimit-policy": f'"{self.owner}";q={self.limit};w={WINDOW_SECONDS:.0f}',
            "ratelimit": f'"{self.owner}";r={self.left};t={refill}',
        }

    def refusal(self) -> errors.RateLimited:
        """Return the error of a request for which no token was left."""
        name, way_out = {
            "project": (
                "the project's quota requests_per_minute",
                "have an administrator raise it (`retort quota`)",
            ),
            "client": (
                "the limit of one client's requests per minute",
                "have the operator raise RETORT_QUOTA_CLIENT_REQUESTS_PER_MINUTE",
            ),
        }[self.owner]
        return errors.RateLimited(
            f"{name} is {self.limit}, and all are used: wait {self.next_seconds:.1f} s, or "
            f"{way_out}",
            retry_after_seconds=self.next_seconds,
        )


class RateLimits:
    """The buckets of all projects, and of clients of federations, as this process sees them."""

    def __init__(
        self,
        readers: database.Sessions,
        broker_url: str,
        service: QuotaLimits,
        collected: registry.CollectorRegistry,
        *,
        client_limit: int | None = None,
    ) -> None:
        self._readers = readers
        self._client_limit = client_limit
        self._service = service
        self._redis = _connection(broker_url)
        self._take = self._redis.register_script(_TAKE) if self._redis else None
        self._down_until = 0.0
        self._limits: dict[str, tuple[float, int | None]] = {}
        self._lock = threading.Lock()
        self._counted = prometheus_client.Counter(
            "retort_rate_limited_requests",
            "Requests by what their bucket said, of project or client; unchecked: Redis was away",
            ["outcome"],
            registry=collected,
        )
        for outcome in ("taken", "refused", "unchecked"):
            self._counted.labels(outcome)

    def take(self, project_id: str) -> Bucket | None:
        """Take a token of a project, and return its bucket; None without a limit, or Redis."""
        limit = self._limit(project_id)
        return None if limit is None else self._counted_of("project", project_id, limit)

    def take_of_client(self, client_id: str) -> Bucket | None:
        """Take a token of a federation's client, as `take` does."""
        limit = self._client_limit
        return None if limit is None else self._counted_of("client", client_id, limit)

    def _counted_of(
        self, owner: Literal["project", "client"], owner_id: str, limit: int
    ) -> Bucket | None:
        bucket = self._ask(owner, owner_id, limit)
        if bucket is None:
            self._counted.labels("unchecked").inc()
        else:
            self._counted.labels("taken" if bucket.was_taken else "refused").inc()
        return bucket

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()

    def forget(self, project_id: str) -> None:
        """Look the project's limit up again, since it was changed here."""
        with self._lock:
            self._limits.pop(project_id, None)

    def _limit(self, project_id: str) -> int | None:
        now = time.monotonic()
        with self._lock:
            known_until, limit = self._limits.get(project_id, (0.0, None))
        if now < known_until:
            return limit
        with self._readers() as session:
            limit = quotas.request_limit(session, project_id=project_id, service=self._service)
        with self._lock:
            if len(self._limits) >= _MOST_KNOWN:
                self._limits.clear()
            self._limits[project_id] = (now + KNOWN_FOR_SECONDS, limit)
        return limit

    def _ask(self, owner: Literal["project", "client"], owner_id: str, limit: int) -> Bucket | None:
        if self._take is None or time.monotonic() < self._down_until:
            return None
        # One bucket whatever its size: who changes a limit does not get a full one by that.
        key = f"{broker.TRANSPORT_OPTIONS['global_keyprefix']}requests:{owner_id}"
        run = cast("Callable[..., list[bytes]]", self._take)
        try:
            taken, left, next_seconds = run(keys=[key], args=[limit, WINDOW_SECONDS])
        except redis.RedisError as error:
            self._down_until = time.monotonic() + PAUSE_SECONDS
            log.warning("rate_limits_unchecked", reason=str(error), seconds=PAUSE_SECONDS)
            return None
        return Bucket(owner, limit, int(left), float(next_seconds), bool(taken))


def _connection(broker_url: str) -> redis.Redis | None:
    """Return a connection to the broker's Redis, None for a broker that is none."""
    # Kombu's spelling of a socket, and redis-py's.
    address = broker_url.replace("redis+socket://", "unix://", 1)
    if not address.startswith(("redis://", "rediss://", "unix://")):
        log.warning("rate_limits_off", reason="RETORT_BROKER_URL names no single Redis server")
        return None
    return redis.Redis.from_url(
        address, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS
    )
