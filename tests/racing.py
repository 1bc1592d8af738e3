"""Runs work at the same time: in threads, each with a database session of its own."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import TypeVar

from sqlalchemy.orm import Session

from models_registry.persistence import database
from tests import waiting

T = TypeVar("T")

# Long enough to run into the other's lock; where it is not, the test sees the easy order of events.
_HEAD_START_SECONDS = 0.1
_STUCK_SECONDS = waiting.PATIENCE_SECONDS


def together(works: Sequence[Callable[[], T]]) -> list[T]:
    """Start all at the same moment, and return their results in the given order."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], T]) -> T:
        start.wait(_STUCK_SECONDS)
        return work()

    with futures.ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works, timeout=_STUCK_SECONDS))


def overtaken(
    sessions: database.Sessions,
    first: Callable[[Session], object],
    second: Callable[[Session], T],
) -> T:
    """Begin `second` while the transaction of `first` is open; return what `second` returns.

    `second` sees the database as it was, and meets what `first` did when it tries to write.
    """

    def late() -> T:
        with sessions.begin() as session:
            return second(session)

    with futures.ThreadPoolExecutor(1) as pool:
        with sessions.begin() as session:
            first(session)
            session.flush()
            running = pool.submit(late)
            time.sleep(_HEAD_START_SECONDS)
        return running.result(_STUCK_SECONDS)
