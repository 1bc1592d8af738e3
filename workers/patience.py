"""Waits for a store that cannot be used, while the lease of the job is kept."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from models_registry import errors

log = structlog.get_logger()
T = TypeVar("T")

LIMIT_SECONDS = 24 * 3600.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_TICK_SECONDS = 0.2


def while_store_is_down(
    work: Callable[[], T],
    *,
    on_wait: Callable[[errors.StorageDown], None],
    must_stop: Callable[[], bool],
) -> T:
    """Return what `work` returns; repeat it while it finds the store down or full.

    `on_wait` is called once, with the first error; what it raises ends the waiting.
    Raises: errors.StorageDown when `must_stop` returns true, or after `LIMIT_SECONDS`.
    """
    began = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    is_told = False
    while True:
        try:
            return work()
        except errors.StorageDown as error:
            log.warning("store_awaited", error=str(error))
            if not is_told:
                on_wait(error)
                is_told = True
            again_at = time.monotonic() + pause
            while time.monotonic() < again_at:
                if must_stop() or time.monotonic() - began > LIMIT_SECONDS:
                    raise
                time.sleep(_TICK_SECONDS)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
