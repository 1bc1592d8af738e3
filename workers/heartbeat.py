"""Renews a lease in a thread of its own, and polls whether the user wants the job to stop.

Staging and uploads may take longer than a lease, so the attempt itself cannot renew it. When the
database is unreachable for as long as the lease lasts (minus a margin), or another worker holds
the job, the lease counts as lost, and the attempt must stop by itself. A second thread, which
never calls the database, sees to that: it calls `on_silence` in time, whatever the others wait for.
"""

import threading
import time
from collections.abc import Callable
from typing import Self

import sqlalchemy.exc
import structlog

from models_registry import errors
from models_registry.jobs import leases
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database
from workers.context import Context

log = structlog.get_logger()

_MARGIN = 0.75  # of the lease: stop well before another worker may start
# Of the lease: how long one call may take. A connection that was cut without a word is then
# given up early enough for another one to renew the lease.
_CALL = 1 / 6
_SHORTEST_CALL_SECONDS = 1.0
_CONNECT_SECONDS = 2


class Heartbeat:
    """Renews `lease` until the `with` block ends.

    `held_since` is `time.monotonic()` from before the claim: the lease began no earlier.
    `on_silence` is called from another thread, once, when the lease was not renewed in time.
    """

    def __init__(
        self,
        context: Context,
        lease: leases.Lease,
        *,
        held_since: float | None = None,
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._lease = lease
        self._on_silence = on_silence
        self._state = State.STARTING
        self._renewed = time.monotonic() if held_since is None else held_since
        self._lost = threading.Event()
        self._silent = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._watch = threading.Thread(target=self._watch_clock, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Start the threads."""
        self._watch.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the threads."""
        self._done.set()
        self._watch.join()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """Return whether the lease is lost: nothing may be written any more.

        Also by the clock: a database call that never returns must not keep the job.
        """
        if self._lost.is_set() or self._silent.is_set():
            return True
        if self._seconds_left() > 0:
            return False
        self._silent.set()
        return True

    @property
    def silent(self) -> bool:
        """Return whether it is lost because the database was not reached in time."""
        return self.lost and self._silent.is_set()

    @property
    def stop_wanted(self) -> bool:
        """Return whether the user, or a deadline, wants the engine to stop."""
        return self._state in (State.PAUSING, State.CANCELLING)

    def _seconds_left(self) -> float:
        return self._renewed + self._context.settings.lease_seconds * _MARGIN - time.monotonic()

    def _watch_clock(self) -> None:
        while not self._done.wait(max(0.0, self._seconds_left())):
            if self.silent:
                log.warning("lease_ran_out", job_id=self._lease.job_id, fence=self._lease.fence)
                self._on_silence()
                return
            if self._lost.is_set():
                return

    def _beat(self) -> None:
        settings = self._context.settings
        # Connections of its own: those of the attempt may all wait for an answer.
        engine = database.connect(
            settings.database_url,
            pool_size=1,
            statement_timeout_seconds=max(settings.lease_seconds * _CALL, _SHORTEST_CALL_SECONDS),
            connect_timeout_seconds=_CONNECT_SECONDS,
        )
        sessions = database.sessions(engine)
        readers = database.readers(engine)
        try:
            while not self._done.wait(settings.poll_seconds) and not self.lost:
                self._call(sessions, readers)
        finally:
            engine.dispose()

    def _call(self, sessions: database.Sessions, readers: database.Sessions) -> None:
        """Renew the lease if it is time to, or else poll."""
        began = time.monotonic()
        try:
            if began - self._renewed >= self._context.settings.heartbeat_seconds:
                self._renew(sessions)
                if not self.lost:  # what counts as lost stays lost
                    self._renewed = began  # not later: the lease runs from somewhere in between
            else:
                self._poll(readers)
        except errors.StaleFence:
            self._lost.set()  # or the attempt has just ended, where this has no effect
        except sqlalchemy.exc.SQLAlchemyError as error:
            silent = round(began - self._renewed, 1)
            log.warning("database_unreachable", seconds=silent, error=str(error))

    def _renew(self, sessions: database.Sessions) -> None:
        with sessions.begin() as session:
            seconds = self._context.settings.lease_seconds
            self._state = leases.renew(session, self._lease, lease_seconds=seconds)

    def _poll(self, readers: database.Sessions) -> None:
        with readers.begin() as session:
            self._state = leases.poll(session, self._lease)
