"""Bodies of workers."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from models_registry.persistence import tables


class WorkerRead(BaseModel):
    """One worker process."""

    id: str
    name: str
    state: str = Field(description="`online`, `lost` (no heartbeat) or `stopped` (on purpose).")
    queues: list[str]
    devices: list[Any] = Field(description="As the worker announced them.")
    device: str | None = Field(description="The first of them, by name.")
    memory_bytes: int
    versions: dict[str, Any]
    job_id: str | None = Field(description="The job that it holds, if it is the caller's.")
    started_at: datetime
    last_seen_at: datetime

    @classmethod
    def of(cls, worker: tables.WorkerRow, *, state: str, job_id: str | None) -> Self:
        """Return the body of a row."""
        first = worker.devices[0] if worker.devices else None
        return cls(
            id=worker.id,
            name=worker.name,
            state=state,
            queues=worker.queues,
            devices=worker.devices,
            device=str(first.get("name")) if isinstance(first, dict) else first,
            memory_bytes=worker.memory_bytes,
            versions=worker.versions,
            job_id=job_id,
            started_at=worker.started_at,
            last_seen_at=worker.last_seen_at,
        )
