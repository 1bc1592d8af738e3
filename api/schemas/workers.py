"""Bodies of workers."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from api.schemas import rows
from models_registry.persistence import tables


class WorkerFaultRead(BaseModel):
    """What is wrong with a worker's machine."""

    code: str = Field(
        description="`no_disk`, `disk_failed`, `no_memory`, `no_process` or `no_device`."
    )
    message: str
    since: datetime
    retry_at: datetime = Field(description="When the worker will try its machine again.")


class IsolationMeasureRead(BaseModel):
    """One thing that keeps an engine from what is not its own."""

    is_active: bool
    detail: str = Field(description="By what means, or why it could not be had.")


class WorkerRead(rows.RowRead):
    """One worker process."""

    id: str
    name: str = Field(description="As its operator named it; no host name unless that is one.")
    state: str = Field(
        description="`online`, `suspended` (its machine cannot run jobs: see `fault`), `lost` (no "
        "heartbeat) or `stopped` (on purpose)."
    )
    fault: WorkerFaultRead | None = Field(description="Why it takes no jobs for now.")
    queues: list[str]
    devices: list[Any] = Field(
        description="As the worker announced them; one that takes no jobs announces none."
    )
    device: str | None = Field(description="The first of them, by name.")
    offered_devices: int = Field(
        description="How many devices one job may use here at most; jobs that need more wait for "
        "another worker."
    )
    slots: int = Field(
        description="How many engines run here side by side at most, each on devices of its own."
    )
    total_devices: int = Field(description="How many devices the slots share.")
    memory_bytes: int
    versions: dict[str, Any]
    isolation: dict[str, IsolationMeasureRead] | None = Field(
        description="How the processes that read uploads and train are kept from the rest of its "
        "machine: `uid`, `inputs`, `network`, `sockets`, `files`, `processes`, `privileges`, "
        "`memory`, `limits`. Null while that is not known."
    )
    job_id: str | None = Field(
        description="The first of `job_ids`; null where it holds no job of the caller's."
    )
    job_ids: list[str] = Field(
        description="The caller's jobs that it holds, the first to be submitted first: several "
        "where slots run side by side, or jobs of one study share an engine."
    )
    started_at: datetime
    last_seen_at: datetime

    @classmethod
    def of(cls, worker: tables.WorkerRow, *, state: str, job_ids: list[str]) -> Self:
        """Return the body of a row."""
        first = worker.devices[0] if worker.devices else None
        return cls.from_row(
            worker,
            state=state,
            device=str(first.get("name")) if isinstance(first, dict) else first,
            job_id=job_ids[0] if job_ids else None,
            job_ids=job_ids,
        )
