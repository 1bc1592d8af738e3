"""Waits for what threads and processes do: long enough for a busy machine, and no longer."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""Longer than anything takes where ten processes share two cores; what takes longer hangs."""


def until(
    is_so: Callable[[], T | None],
    what: str,
    *,
    seconds: float = PATIENCE_SECONDS,
    pause_seconds: float = 0.05,
) -> T:
    """Return the first answer of `is_so` that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(pause_seconds)
    return answer


def once_within(seconds: float, act: Callable[[], T], *, tries: int = 5) -> T:
    """Return what `act` returns in the first of several tries that takes less than `seconds`.

    For what is promised within seconds: a busy machine delays one try, and hardly each of five.
    """
    answers: list[T] = []

    def measured() -> float:
        began = time.monotonic()
        answers.append(act())
        return time.monotonic() - began

    takes_less_than(seconds, measured, tries=tries)
    return answers[-1]


def takes_less_than(seconds: float, measured: Callable[[], float], *, tries: int = 5) -> None:
    """Assert that one of several tries takes less than `seconds`, by what `measured` returns.

    Like `once_within`, where only a part of what has to be done is promised to be quick.
    """
    times: list[float] = []
    while not times or times[-1] >= seconds:
        assert len(times) < tries, f"it took {[round(one, 2) for one in times]} s each time"
        times.append(measured())
