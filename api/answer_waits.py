"""Wait a little for what a worker makes while its caller waits."""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query
from fastapi.concurrency import run_in_threadpool

LONGEST_WAIT_SECONDS = 25
POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 0.5

T = TypeVar("T")
WaitSeconds = Annotated[
    float,
    Query(
        ge=0,
        le=LONGEST_WAIT_SECONDS,
        description="How long to wait for the answer; without one by then, 202.",
    ),
]


async def until_settled(
    asked: T, *, read: Callable[[], T | None], is_settled: Callable[[T], bool], wait_seconds: float
) -> T | None:
    """Return what was asked for once it is settled, as it is when time is up, or None if deleted.

    It waits without a thread of its own; `read` is called in one, ever less often.
    """
    deadline = time.monotonic() + wait_seconds
    found: T | None = asked
    pause = POLL_SECONDS
    while found is not None and not is_settled(found) and time.monotonic() < deadline:
        await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
        found = await run_in_threadpool(read)
    return found
