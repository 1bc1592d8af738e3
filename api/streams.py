"""Streams of job events: one poller per process serves every stream and long poll.

A watcher holds no database connection and no thread while it waits: the poller asks the database
about all watched jobs in one query, and wakes those whose job has changed.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import structlog
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from api import errors, numbers
from models_registry import errors as registry_errors
from models_registry.access import keys
from models_registry.jobs import lifecycle, logs, queries
from models_registry.persistence import database, tables

log = structlog.get_logger()

POLL_SECONDS = 0.5
LOG_POLL_SECONDS = 1.0
RETRY_MILLISECONDS = 2000  # after a drain: by then another process listens
STREAMS_PER_PROJECT = 100
KEY_SECONDS = 5.0  # how often it is asked whether the keys of open streams are still valid


@dataclass(frozen=True)
class Progress:
    """What a stream sends between events; it has no sequence number and may be skipped."""

    snapshot: queries.JobSnapshot
    metrics: dict[str, float | str]  # in JSON form: NaN as text can be compared


@dataclass
class WatchedJob:
    """The newest progress of one watched job, and the number of its watchers."""

    watchers: int = 0
    latest: Progress | None = None
    gone: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, latest: Progress | None) -> None:
        """Store the progress, and wake the watchers if it has changed."""
        if latest != self.latest or (latest is None) != self.gone:
            self.latest, self.gone = latest, latest is None
            self.wake()

    def wake(self) -> None:
        """Wake the watchers; those that wait from now on wait for the next change."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass
class Hub:
    """The watched jobs of this process."""

    readers: database.Sessions
    draining: bool = False
    _watched: dict[str, WatchedJob] = field(default_factory=dict)
    _open: Counter[str] = field(default_factory=Counter)
    _keys: Counter[str] = field(default_factory=Counter)  # of those who watch
    _ended_keys: set[str] = field(default_factory=set)
    _keys_at: float = 0.0
    _needed: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll while the block runs; on leaving, end every stream."""
        self._loop, self._needed = asyncio.get_running_loop(), asyncio.Event()
        self.draining = False
        poller = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            # Not cancelled: that would leave its query running in a thread.
            self.drain()
            await poller

    def drain_soon(self) -> None:
        """Drain from a signal's callback, which may interrupt the event loop anywhere."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """End every stream and long poll: this process is about to stop."""
        self.draining = True
        self._needed.set()
        for watched in self._watched.values():
            watched.wake()

    @contextlib.contextmanager
    def stream_slot(self, project_id: str) -> Iterator[None]:
        """Count one open stream of a project.

        Raises: errors.TooManyStreams.
        """
        if self._open[project_id] >= STREAMS_PER_PROJECT:
            raise errors.TooManyStreams(
                f"this project has {STREAMS_PER_PROJECT} open streams here: close some first"
            )
        self._open[project_id] += 1
        try:
            yield
        finally:
            self._open[project_id] -= 1

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[WatchedJob]:
        """Poll a job while the block runs."""
        watched = self._watched.setdefault(job_id, WatchedJob())
        watched.watchers += 1
        self._needed.set()
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[job_id]

    @contextlib.contextmanager
    def _with_credential(self, credential_id: str) -> Iterator[None]:
        """Look at a key again and again while the block runs."""
        self._keys[credential_id] += 1
        try:
            yield
        finally:
            self._keys[credential_id] -= 1
            if not self._keys[credential_id]:
                del self._keys[credential_id]
                self._ended_keys.discard(credential_id)

    async def events_after(
        self, job_id: str, after: int, *, credential_id: str, limit: int, wait_seconds: float
    ) -> list[tables.EventRow]:
        """Return events after a sequence number, waiting a while for the first.

        Raises: Unauthenticated when the key has ended meanwhile.
        """
        deadline = asyncio.get_running_loop().time() + wait_seconds
        with self._with_credential(credential_id), self.watching(job_id) as watched:
            while True:
                if credential_id in self._ended_keys:
                    raise registry_errors.Unauthenticated("the key or token has ended")
                changed = watched.changed
                rows = await run_in_threadpool(self._read, job_id, after, limit)
                left = deadline - asyncio.get_running_loop().time()
                if rows or left <= 0 or self.draining or _is_over(watched, after):
                    return rows
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), left)

    async def follow(
        self, job_id: str, after: int, *, credential_id: str
    ) -> AsyncIterator[tables.EventRow | Progress]:
        """Yield the events after a sequence number as they come, and progress in between.

        It ends after the event that ends the job, when the job is deleted, when the key is revoked
        or expires, or on a drain.
        """
        sent: Progress | None = None
        with self._with_credential(credential_id), self.watching(job_id) as watched:
            while not self.draining and credential_id not in self._ended_keys:
                changed, latest = watched.changed, watched.latest
                if latest is None or latest.snapshot.last_sequence > after:
                    while rows := await run_in_threadpool(self._read, job_id, after):
                        for event in rows:
                            after = event.sequence
                            yield event
                if latest is not None and latest != sent and _is_news(latest, after):
                    sent = latest
                    yield latest
                if _is_over(watched, after):
                    return
                if watched.changed is changed:
                    await changed.wait()

    async def follow_log(
        self, job_id: str, position: logs.Position, *, credential_id: str
    ) -> AsyncIterator[tables.LogSliceRow]:
        """Yield the slices of a job's log behind a position as they come, until the job ends.

        It ends as well when the key is revoked or expires, or on a drain.
        """
        with self._with_credential(credential_id), self.watching(job_id) as watched:
            while not self.draining and credential_id not in self._ended_keys:
                # In this order: a worker ships the last lines before it ends the job.
                changed, latest = watched.changed, watched.latest
                while rows := await run_in_threadpool(self._read_log, job_id, position):
                    for row in rows:
                        position = logs.Position(row.attempt, row.end)
                        yield row
                if watched.gone or (latest is not None and _is_final(latest)):
                    return
                # New lines change nothing that the poller sees.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOG_POLL_SECONDS)

    def _read_log(self, job_id: str, position: logs.Position) -> list[tables.LogSliceRow]:
        with self.readers() as session:
            return logs.after(session, job_id=job_id, position=position)

    def _read(
        self, job_id: str, after: int, limit: int = queries.MAX_EVENTS
    ) -> list[tables.EventRow]:
        with self.readers() as session:
            return queries.events(session, job_id=job_id, after=after, limit=limit)

    async def _poll(self) -> None:
        while not self.draining:
            self._needed.clear()
            if not self._watched:
                await self._needed.wait()
                continue
            try:
                polled = await run_in_threadpool(self._poll_jobs, list(self._watched))
            except SQLAlchemyError as error:
                # Watchers keep waiting until the database is back or their client leaves.
                log.warning("stream_poll_failed", reason=type(error).__name__)
            else:
                for job_id, latest in polled.items():
                    if job_id in self._watched:
                        self._watched[job_id].update(latest)
                await self._check_keys()
            # A new watcher is served immediately, the others twice a second.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._needed.wait(), POLL_SECONDS)

    async def _check_keys(self) -> None:
        """Find the keys that have ended since they opened a stream, and wake their watchers."""
        now = asyncio.get_running_loop().time()
        if now - self._keys_at < KEY_SECONDS:
            return
        self._keys_at = now
        asked = set(self._keys)
        try:
            valid = await run_in_threadpool(self._valid_keys, asked)
        except SQLAlchemyError as error:
            log.warning("stream_keys_unknown", reason=type(error).__name__)
            return
        ended = (asked - valid) & self._keys.keys()
        if ended - self._ended_keys:
            self._ended_keys |= ended
            for watched in self._watched.values():
                watched.wake()

    def _valid_keys(self, credential_ids: set[str]) -> set[str]:
        with self.readers() as session:
            return keys.valid(session, credential_ids=credential_ids)

    def _poll_jobs(self, job_ids: list[str]) -> dict[str, Progress | None]:
        with self.readers() as session:
            snapshots = queries.snapshots(session, job_ids=job_ids)
            metrics = queries.latest_metrics(session, job_ids=list(snapshots))
        latest: dict[str, Progress | None] = dict.fromkeys(job_ids)
        for job_id, snapshot in snapshots.items():
            shown = {key: numbers.in_json(value) for key, value in metrics[job_id].items()}
            latest[job_id] = Progress(snapshot, shown)
        return latest


def _is_news(latest: Progress, after: int) -> bool:
    # The events that were just read may be younger: after a job's last, no progress is told.
    return latest.snapshot.last_sequence >= after and not _is_final(latest)


def _is_final(latest: Progress) -> bool:
    return lifecycle.is_final(latest.snapshot.state) or latest.snapshot.deleted


def _is_over(watched: WatchedJob, after: int) -> bool:
    if watched.gone:
        return True
    latest = watched.latest
    return latest is not None and _is_final(latest) and after >= latest.snapshot.last_sequence
