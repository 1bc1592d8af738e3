"""Renews a lease in a thread of its own, and polls whether the user wants the job to stop.

Staging and uploads may take longer than a lease, so the attempt itself cannot renew it. When the
database is unreachable for as long as the lease lasts (minus a margin), or another worker holds
the job, the lease counts as lost, and the attempt must stop by itself.
"""

import threading
import time
from typing import Self

import sqlalchemy.exc
import structlog

from models_registry import errors
from models_registry.jobs import leases
from models_registry.jobs.lifecycle import State
from workers.context import Context

log = structlog.get_logger()

_MARGIN = 0.75  # of the lease: stop well before another worker may start


class Heartbeat:
    """Renews `lease` until the `with` block ends."""

    def __init__(self, context: Context, lease: leases.Lease) -> None:
        self._context = context
        self._lease = lease
        self._state = State.STARTING
        self._renewed = time.monotonic()
        self._lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the thread."""
        self._done.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """Return whether the lease is lost: nothing may be written any more.

        Also by the clock: a database call that never returns must not keep the job.
        """
        silent = time.monotonic() - self._renewed
        return self._lost.is_set() or silent > self._context.settings.lease_seconds * _MARGIN

    @property
    def stop_wanted(self) -> bool:
        """Return whether the user, or a deadline, wants the engine to stop."""
        return self._state in (State.PAUSING, State.CANCELLING)

    def _beat(self) -> None:
        settings = self._context.settings
        while not self._done.wait(settings.poll_seconds) and not self.lost:
            began = time.monotonic()
            try:
                if began - self._renewed >= settings.heartbeat_seconds:
                    self._renew()
                    self._renewed = began  # not later: the lease runs from somewhere in between
                else:
                    self._poll()
            except errors.StaleFence:
                self._lost.set()  # or the attempt has just ended, where this has no effect
            except sqlalchemy.exc.SQLAlchemyError as error:
                silent = round(began - self._renewed, 1)
                log.warning("database_unreachable", seconds=silent, error=str(error))

    def _renew(self) -> None:
        with self._context.sessions.begin() as session:
            seconds = self._context.settings.lease_seconds
            self._state = leases.renew(session, self._lease, lease_seconds=seconds)

    def _poll(self) -> None:
        with self._context.readers.begin() as session:
            self._state = leases.poll(session, self._lease)
