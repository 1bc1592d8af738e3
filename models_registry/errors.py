"""Every error that the registry raises; `api/errors.py` alone turns them into HTTP problems.

RegistryError
├── NotFound          an id or name that does not exist in this project
│   └── Gone          it existed, and was deleted or has expired
├── Refused           well-formed, but cannot be accepted: names the fields and the reasons
│   ├── TooLarge      over a size limit
│   └── DigestMismatch  bytes differ from the announced digest
├── Malformed         a cursor, range or name that cannot be read
├── Conflict          a valid request that the present state does not allow
│   ├── IllegalMove   the job's state does not allow this event
│   ├── AlreadyExists a name that is taken
│   └── InUse         something still refers to it
├── PreconditionFailed  `If-Match` no longer holds
├── PreconditionRequired  `If-Match` is needed here
├── Unauthenticated   no key, or one that is unknown, expired or revoked
├── Forbidden         the key's role does not allow this
├── QuotaExceeded     the project would use more than it may
├── RateLimited       the project sends more requests than it may
├── Unavailable       a dependency cannot be reached
│   ├── StorageDown   the byte store
│   │   └── StorageFull  it, or the database, has no room left
│   └── QueueDown     the broker
└── StaleFence        a worker that no longer holds the lease tried to write
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault of one field: a JSON Pointer, a stable code, and a sentence."""

    pointer: str
    code: str
    detail: str


class RegistryError(Exception):
    """Base class: a sentence for people, a stable `code`, and faults by field."""

    code = "error"

    def __init__(
        self, message: str, *, code: str | None = None, faults: Sequence[Fault] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.faults = tuple(faults)
        if code is not None:
            self.code = code


class NotFound(RegistryError):
    """No such thing in this project."""

    code = "not_found"


class Gone(NotFound):
    """It existed, and was deleted or has expired."""

    code = "gone"


class Refused(RegistryError):
    """Understood, but not acceptable."""

    code = "refused"


class TooLarge(Refused):
    """Over a size limit."""

    code = "too_large"


class DigestMismatch(Refused):
    """The bytes differ from the announced digest."""

    code = "digest_mismatch"


class Malformed(RegistryError):
    """Cannot be read at all."""

    code = "malformed"


class Conflict(RegistryError):
    """A valid request that the present state does not allow."""

    code = "conflict"


class IllegalMove(Conflict):
    """The job's state does not allow this event; `allowed` lists those it does."""

    code = "illegal_transition"

    def __init__(self, message: str, *, state: str, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.state = state
        self.allowed = tuple(allowed)


class AlreadyExists(Conflict):
    """The name is taken."""

    code = "already_exists"


@dataclass(frozen=True)
class Uses:
    """What of one kind refers to a thing: how many there are, and the newest of them."""

    kind: str
    count: int
    names: tuple[str, ...]


class InUse(Conflict):
    """Something still refers to it; `uses` says what."""

    code = "in_use"

    def __init__(self, message: str, *, code: str | None = None, uses: Sequence[Uses] = ()) -> None:
        super().__init__(message, code=code)
        self.uses = tuple(uses)


class PreconditionFailed(RegistryError):
    """`If-Match` no longer holds."""

    code = "precondition_failed"


class PreconditionRequired(RegistryError):
    """`If-Match` is needed for this request."""

    code = "precondition_required"


class Unauthenticated(RegistryError):
    """No key, or one that is unknown, expired or revoked."""

    code = "unauthenticated"


class Forbidden(RegistryError):
    """The key's role does not allow this."""

    code = "forbidden"


@dataclass(frozen=True)
class Quota:
    """A quota by its name: the limit, what is used, and what was asked for beside that."""

    name: str
    limit: int
    used: int
    requested: int


class QuotaExceeded(RegistryError):
    """The project would use more than it may; `quota` says of what, and how much."""

    code = "quota_exceeded"

    def __init__(self, message: str, *, quota: Quota, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message, faults=faults)
        self.quota = quota


class RateLimited(RegistryError):
    """The project sends more requests than it may; `retry_after_seconds` says when it may again."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class StaleFence(RegistryError):
    """A worker that no longer holds the lease tried to write: it must stop."""

    code = "stale_fence"


class Unavailable(RegistryError):
    """A dependency cannot be reached just now."""

    code = "unavailable"


class StorageDown(Unavailable):
    """The byte store cannot be reached."""

    code = "storage_down"


class StorageFull(StorageDown):
    """There is no room left: the same request fails until somebody makes some.

    Whoever copes with a store that is down copes with a full one.
    """

    code = "storage_full"


class QueueDown(Unavailable):
    """The broker cannot be reached."""

    code = "queue_down"
