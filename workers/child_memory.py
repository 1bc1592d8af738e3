"""How much memory a child holds, as its worker sees it: a second look beside the kernel's limit."""

import re
import sys
from pathlib import Path

import psutil

_HELD = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


def held_bytes(pid: int) -> int:
    """Return how much memory a process holds that the kernel cannot take back, shared one included.

    Where the kernel does not tell mapped files apart, they count as well. 0 of a process that has
    ended.
    """
    try:
        if sys.platform != "linux":
            return int(psutil.Process(pid).memory_info().rss)
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (OSError, psutil.NoSuchProcess):
        return 0
    return sum(int(found) for found in _HELD.findall(status)) * 1024
