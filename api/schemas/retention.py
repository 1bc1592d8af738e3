"""Bodies of retention and erasure."""

from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from models_registry.retention.erasures import Erasure
from models_registry.retention.policies import RetentionPolicy
from models_registry.retention.sweep import KindSummary

ABOUT_BYTES = (
    "Bytes of files go when no row of any project needs them; they belong to the service, and its "
    "operator sees them with: python -m models_registry.retention --dry-run"
)
MOST_SHOWN = 200
Days = Annotated[int | None, Field(ge=1, le=36_500)]


class RetentionFields(BaseModel):
    """Days count from the end of a job; null keeps for good."""

    checkpoints_last: Annotated[int, Field(ge=1, le=100)] = Field(
        default=RetentionPolicy.checkpoints_last,
        description="Checkpoints of a job that goes on: the newest ones are kept.",
    )
    failed_attempts_days: Days = Field(
        default=RetentionPolicy.failed_attempts_days,
        description="Checkpoints of jobs that failed or were cancelled.",
    )
    logs_days: Days = Field(default=RetentionPolicy.logs_days)
    metrics_days: Days = Field(
        default=RetentionPolicy.metrics_days, description="Points; scores stay in the result."
    )
    events_days: Days = Field(default=RetentionPolicy.events_days)


class RetentionChange(RetentionFields):
    """Fields of the policy to change; those that are left out stay."""

    model_config = ConfigDict(extra="forbid")


class RetentionRead(RetentionFields):
    """A project's policy, and what holds for all projects."""

    grace_seconds: float = Field(
        description="Between the moment that something is found deletable and its deletion."
    )

    @classmethod
    def of(cls, policy: RetentionPolicy, *, grace: timedelta) -> Self:
        """Return the body of a policy."""
        return cls(**asdict(policy), grace_seconds=grace.total_seconds())


class RetentionKindRead(BaseModel):
    """What could be deleted of one kind, and what of it the next sweep deletes."""

    kind: str
    jobs: int
    entries: int
    size_bytes: int
    ready_jobs: int
    ready_entries: int
    ready_bytes: int


class RetentionPreview(BaseModel):
    """A dry run: nothing was deleted for it."""

    policy: RetentionRead
    kinds: list[RetentionKindRead]
    notes: list[str]

    @classmethod
    def of(cls, kinds: Iterable[KindSummary], policy: RetentionRead) -> Self:
        """Return the body of a dry run."""
        shown = [RetentionKindRead(**asdict(kind)) for kind in kinds]
        return cls(policy=policy, kinds=shown, notes=[ABOUT_BYTES])


class ErasureRequest(BaseModel):
    """How a data set is erased."""

    model_config = ConfigDict(extra="forbid")

    cancel_jobs: bool = Field(
        default=False, description="Cancel jobs that need it; otherwise they prevent the erasure."
    )


class RemainderRead(BaseModel):
    """Something that an erasure leaves, and why."""

    kind: str
    name: str
    reason: str


class ErasureRead(BaseModel):
    """What was erased, and what remains."""

    reference: str
    versions: list[str]
    blobs: int
    size_bytes: int
    pictures: list[str] = Field(description="Of reports, as `name@version/path`.")
    cancelled_jobs: list[str]
    remains: list[RemainderRead]
    waiting_blobs: int = Field(description="Whose bytes are still stored; `notes` say why.")
    notes: list[str]

    @classmethod
    def of(cls, erasure: Erasure, *, waiting_blobs: int, notes: list[str]) -> Self:
        """Return the body of an erasure."""
        shown = asdict(erasure)
        del shown["numbers"]
        for name in ("versions", "pictures", "cancelled_jobs", "remains"):
            more = len(shown[name]) - MOST_SHOWN
            if more > 0:
                notes = [*notes, f"{name} are the first {MOST_SHOWN}; there are {more} more."]
            shown[name] = shown[name][:MOST_SHOWN]
        return cls(**{**shown, "waiting_blobs": waiting_blobs, "notes": notes})
