"""Runs a module or a program so that it dies with the process that started it.

`python -m workers.parent_death PARENT MODULE ARGS...`, or `PARENT -- PROGRAM ARGS...`. An engine
whose supervisor is killed would go on using the device; the kernel's parent-death signal ends it.
Done in the child itself, because code between fork and exec is unsafe in a process with threads.
The kernel watches the thread that started the child: start it from one that lives as long as the
child may.
"""

import ctypes
import os
import resource
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when `parent` dies; does nothing outside of Linux."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the signal was set


def main() -> None:
    """Run `MODULE ARGS...` as if by `python -m`, or become a program; leave no core dumps."""
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = sys.argv[2:]
    if sys.argv[0] == "--":
        os.execv(sys.argv[1], sys.argv[1:])  # the kernel keeps the setting across this call
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
