"""Carries the rounds of a federated job between its engine's folder and database and storage.

The engine writes and awaits files (`workers.distill.federated.remote` says which); this puts them
into rows and blobs under the job's lease, and brings the replies. It is called between two reports
of the engine, and keeps nothing that the database does not have: a worker that is killed is
followed by another, which carries on.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy.exc
import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.federations import federations, rounds
from models_registry.jobs import leases
from models_registry.persistence import tables
from workers import child_files, staging
from workers.context import Context

log = structlog.get_logger()
T = TypeVar("T")

POLL_SECONDS = 0.2
SLOW_POLL_SECONDS = 2.0
"""How often a deadline, and who has come back, is looked for where nothing else has changed."""


class Persist(Protocol):
    """Runs a transaction, repeatedly while the database cannot be reached."""

    def __call__(self, write: Callable[[Session], T], /) -> T:
        """Return what `write` returns. Raises: errors.StaleFence if the lease is lost."""
        ...


class FederationBridge:
    """The files of one attempt at a federated job; `persist` runs a transaction under its lease."""

    def __init__(
        self,
        context: Context,
        lease: leases.Lease,
        workdir: Path,
        persist: Persist,
    ) -> None:
        self._context = context
        self._lease = lease
        self._persist = persist
        self._workdir = workdir
        self._folder = workdir / "federation"
        self._federation_id = federations.id_of(lease.job_id)
        self._has_plan = False
        self._has_failed = False
        self._published: set[int] = set()
        self._opened = 0
        self._polled_at = self._looked_at = 0.0
        self._revision = -1

    def poll(self) -> None:
        """Carry what is new in either direction; cheap where nothing is.

        While the store cannot be reached, the next call tries again. Raises: errors.StaleFence.
        """
        now = time.monotonic()
        if now - self._polled_at < POLL_SECONDS or self._has_failed or not self._folder.is_dir():
            return
        self._polled_at = now
        try:
            if not self._has_plan:
                self._carry_plan()
                return
            self._carry_consensus()
            if self._is_due(now):
                self._carry_clients()
                self._carry_round()
        except errors.StorageDown as error:
            log.warning("round_waits_for_storage", job_id=self._lease.job_id, error=error.message)
        except rounds.TooFewClientsError as error:
            self._has_failed = True
            self._write(self._folder / "failure.json", {"message": error.message})

    # -- from the engine -----------------------------------------------------------------------

    def _carry_plan(self) -> None:
        path = self._folder / "plan.json"
        if not path.exists():
            return
        plan = self._read(path)
        open_path = self._folder / "open_set.safetensors"
        open_set = self._put(open_path) if open_path.exists() else None
        self._persist(lambda s: rounds.publish_plan(s, self._lease, plan=plan, open_set=open_set))
        self._has_plan = True

    def _carry_consensus(self) -> None:
        for path in sorted(self._folder.glob("rounds/*/consensus.safetensors")):
            number = int(path.parent.name)
            if number in self._published:
                continue
            file = self._put(path)
            is_first = self._persist(self._publishing(number, file))
            self._published.add(number)
            if not is_first:
                self._persist(self._warning(number))

    def _publishing(self, number: int, file: leases.OutputFile) -> Callable[[Session], bool]:
        return lambda s: rounds.publish(s, self._lease, number=number, file=file)

    def _warning(self, number: int) -> Callable[[Session], None]:
        message = (
            f"Round {number} was computed again after an interruption, with slightly other "
            "numbers (another kind of machine?); clients have, and keep, the first."
        )
        return lambda s: leases.warn(s, self._lease, code="consensus_differs", message=message)

    # -- to the engine -------------------------------------------------------------------------

    def _is_due(self, now: float) -> bool:
        """Return whether the database may have something new."""
        if self._newest_task() > self._opened:
            return True
        try:
            with self._context.readers() as session:
                revision = session.get_one(tables.FederationRow, self._federation_id).revision
        except sqlalchemy.exc.OperationalError as error:
            log.warning("round_waits_for_database", job_id=self._lease.job_id, error=str(error))
            return False
        if revision == self._revision and now - self._looked_at < SLOW_POLL_SECONDS:
            return False
        self._revision, self._looked_at = revision, now
        return True

    def _carry_clients(self) -> None:
        gathered = self._persist(lambda s: rounds.gather(s, self._lease))
        if gathered.is_complete:
            self._write(self._folder / "clients.json", list(gathered.clients))

    def _newest_task(self) -> int:
        tasks = self._folder.glob("rounds/*/task.json")
        return max((int(path.parent.name) for path in tasks), default=0)

    def _carry_round(self) -> None:
        """Open the round that the engine waits for, and bring its replies once it is closed."""
        number = self._newest_task()
        folder = self._folder / "rounds" / f"{number:04d}"
        if not number or (folder / "closed.json").exists():
            return
        if number > self._opened:
            task = self._read(folder / "task.json")
            self._persist(lambda s: rounds.open_round(s, self._lease, number=number, task=task))
            self._opened = number
        blobs = self._persist(lambda s: self._replies_if_closed(s, number))
        if blobs is None:
            return
        replies = folder / "replies"
        with child_files.resolved(self._workdir, folder) as target:
            (target / "replies").mkdir(exist_ok=True)
        for client_id, blob in blobs.items():
            with child_files.resolved(self._workdir, replies) as target:
                staging.fetch(self._context.storage, blob, target / f"{client_id}.safetensors")
        self._write(folder / "closed.json", {"clients": sorted(blobs)})
        log.info("round_closed", job_id=self._lease.job_id, round=number, replies=len(blobs))

    def _replies_if_closed(self, session: Session, number: int) -> dict[str, tables.BlobRow] | None:
        if not rounds.close_if_due(session, self._lease, number=number):
            return None
        replies = rounds.replies(session, self._federation_id, number)
        return {reply.client_id: session.get_one(tables.BlobRow, reply.sha256) for reply in replies}

    def _put(self, path: Path) -> leases.OutputFile:
        with child_files.open_below(self._workdir, path.relative_to(self._workdir)) as file:
            stored = self._context.storage.put(file)
        return leases.OutputFile(path.name, stored.sha256, stored.size_bytes, stored.key)

    def _write(self, path: Path, content: object) -> None:
        name = path.relative_to(self._workdir)
        child_files.write_below(self._workdir, name, json.dumps(content).encode())

    def _read(self, path: Path) -> Any:  # Any: JSON
        return child_files.json_below(self._workdir, path.relative_to(self._workdir))
