"""Long polls of federations: one query for all who wait for the same federation.

Whoever waits holds no thread and no database connection. Rows count their changes in `revision`;
what a request waits for is read again only when that has changed.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from models_registry.persistence import database, tables

T = TypeVar("T")
Version = tuple[int, str]
"""The revision of a federation and the state of its job."""

POLL_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 25


@dataclass
class _Watched:
    """A federation that some wait for: when its version was read last, and what it was."""

    waiting: int = 0
    read_at: float = 0.0
    version: Version | None = None
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class FederationWaits:
    """The federations that requests of this process wait for."""

    readers: database.Sessions
    is_draining: Callable[[], bool]
    _watched: dict[str, _Watched] = field(default_factory=dict)

    async def until(
        self, federation_id: str, read: Callable[[Session], T | None], *, wait_seconds: float
    ) -> T | None:
        """Return what `read` returns, as soon as that is not None; None when time is up."""
        found = await run_in_threadpool(lambda: self._read(read))
        if found is not None or wait_seconds <= 0:
            return found
        watched = self._watched.setdefault(federation_id, _Watched())
        watched.waiting += 1
        try:
            return await self._wait(federation_id, watched, read, time.monotonic() + wait_seconds)
        finally:
            watched.waiting -= 1
            if not watched.waiting:
                self._watched.pop(federation_id, None)

    async def _wait(
        self,
        federation_id: str,
        watched: _Watched,
        read: Callable[[Session], T | None],
        deadline: float,
    ) -> T | None:
        seen: Version | None = None  # nothing was read under this version
        while True:
            version = await self._version(federation_id, watched)
            if version != seen:
                seen = version
                found = await run_in_threadpool(lambda: self._read(read))
                if found is not None:
                    return found
            left = deadline - time.monotonic()
            if left <= 0 or self.is_draining():
                return None
            await asyncio.sleep(min(POLL_SECONDS, left))

    async def _version(self, federation_id: str, watched: _Watched) -> Version | None:
        async with watched.reading:
            if time.monotonic() - watched.read_at >= POLL_SECONDS / 2:
                watched.version = await run_in_threadpool(self._read_version, federation_id)
                watched.read_at = time.monotonic()
            return watched.version

    def _read(self, read: Callable[[Session], T | None]) -> T | None:
        with self.readers() as session:
            return read(session)

    def _read_version(self, federation_id: str) -> Version | None:
        row, job = tables.FederationRow, tables.JobRow
        query = sa.select(row.revision, job.state).join(job, row.job_id == job.id)
        with self.readers() as session:
            found = session.execute(query.where(row.id == federation_id)).one_or_none()
        return None if found is None else (found.revision, found.state)
