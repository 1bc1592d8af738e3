"""The dependencies of a worker process: settings, database, storage, engines, and its own id."""

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
import sqlalchemy.exc
import structlog
from sqlalchemy.orm import Session

from models_registry import errors, ids, tracing
from models_registry.persistence import broker, database, storage
from models_registry.settings import Settings
from workers.device_pool import DevicePool
from workers.engine_launcher import EngineLauncher
from workers.isolation import Isolation
from workers.machine_health import MachineHealth

log = structlog.get_logger()
T = TypeVar("T")

_RETRY_SECONDS = 1.0
# What driver and pool raise while a database restarts or cannot be reached.
_UNREACHABLE = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)


@dataclass(frozen=True)
class Context:
    """One per process: connections must not be shared across a fork."""

    settings: Settings
    engine: sa.Engine
    sessions: database.Sessions
    storage: storage.Storage
    worker_id: str
    launcher: EngineLauncher
    shutting_down: threading.Event = field(default_factory=threading.Event)
    health: MachineHealth = field(default_factory=MachineHealth)
    device_pool: DevicePool = field(default_factory=DevicePool)
    tracer: tracing.Tracer = tracing.OFF
    job_queues: tuple[str, ...] = broker.JOB_QUEUES
    """The queues whose jobs this worker takes."""

    @functools.cached_property
    def readers(self) -> database.Sessions:
        """Sessions that only read, and on SQLite do not queue behind its one writer."""
        return database.readers(self.engine)

    def persist(self, work: Callable[[Session], T], *, hopeless: Callable[[], bool]) -> T:
        """Run `work` in a transaction, repeatedly while the database is unreachable.

        Raises: errors.Unavailable when `hopeless` returns true.
        """
        while True:
            try:
                with self.sessions.begin() as session:
                    return work(session)
            except _UNREACHABLE as error:
                if hopeless():
                    raise errors.Unavailable("the database was unreachable for too long") from error
                log.warning("transaction_repeated", error=str(error))
                time.sleep(_RETRY_SECONDS)


def build(
    settings: Settings,
    *,
    worker_id: str | None = None,
    launcher: EngineLauncher | None = None,
    health: MachineHealth | None = None,
    device_pool: DevicePool | None = None,
    job_queues: tuple[str, ...] = broker.JOB_QUEUES,
) -> Context:
    """Return a context with fresh connections; without `launcher`, with one of its own."""
    engine = database.connect(
        settings.database_url,
        pool_size=4,
        # A worker that is cut off must not lock its job's row for longer than it holds the job.
        idle_transaction_seconds=settings.lease_seconds / 4,
    )
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    return Context(
        settings=settings,
        engine=engine,
        sessions=database.sessions(engine),
        storage=storage.from_settings(settings),
        worker_id=worker_id or ids.new("wrk"),
        launcher=launcher
        or EngineLauncher(is_warm=settings.engine_warm, isolation=Isolation.of(settings)),
        health=health or MachineHealth(),
        device_pool=device_pool or DevicePool(),
        tracer=tracing.start(settings, service="retort-worker"),
        job_queues=job_queues,
    )
