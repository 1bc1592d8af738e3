"""Whether this machine's worker is alive: `python -m workers.liveness`, for probes of containers.

The consumer's own event loop touches a file. A loop that is stuck touches nothing, while its
process looks healthy from outside. Loops also stand still while the broker cannot be reached: a
worker with a job at hand is then left alone, and one without may be started again.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from models_registry.settings import Settings
from workers import staging

TOUCH_SECONDS = 5.0
STALL_SECONDS = 60.0
_PREFIX = "alive-"


class Timer(Protocol):
    """The timer of Celery's event loop, as far as it is used here."""

    def call_repeatedly(self, seconds: float, work: Callable[[], object], /) -> object:
        """Call `work` in the loop, again and again."""


def keep(timer: Timer, folder: Path) -> Path:
    """Touch this process's file below `folder` from its event loop, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_PREFIX}{os.getpid()}"
    path.touch()
    timer.call_repeatedly(TOUCH_SECONDS, path.touch)
    return path


def fault(settings: Settings) -> str | None:
    """Return why the worker counts as stuck, or None."""
    touched = [path.stat().st_mtime for path in settings.data_dir.glob(f"{_PREFIX}*")]
    if not touched:
        return f"no worker has started its loop: {settings.data_dir} has no {_PREFIX}* file"
    age = time.time() - max(touched)
    if age < STALL_SECONDS or staging.is_in_use(settings.scratch_dir):
        return None
    return f"the worker's loop has not moved for {age:.0f} s, and no job is at hand"


if __name__ == "__main__":
    if found := fault(Settings()):
        sys.exit(found)
