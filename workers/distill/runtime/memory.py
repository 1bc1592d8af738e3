"""A bound on the memory of a process that reads files of strangers."""

import errno
import re
import resource
import sys
from pathlib import Path

# What libraries say in a RuntimeError where there is no memory left.
_REFUSED = re.compile(
    r"can't allocate memory|bad_alloc|can't start new thread|could not create a primitive$"
)


def limit(extra_bytes: int) -> None:
    """Let this process take at most so many bytes beyond what it has; allocations beyond fail.

    Private memory counts; mapped files and shared memory do not. Linux only: elsewhere there is no
    such limit, and nothing happens: whoever started the process looks at what it holds.
    """
    if sys.platform != "linux":
        return
    most = _data_bytes() + extra_bytes
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that memory could not be had."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return True
        if isinstance(cause, RuntimeError) and _REFUSED.search(str(cause)):
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        cause = cause.__cause__
    return False


def _data_bytes() -> int:
    """Return what the kernel counts against the limit: private and writable memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/status has no VmData")
    return int(found[1]) * 1024
