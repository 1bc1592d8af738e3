"""A child process that tries what no engine may: `python -m attacker TARGETS`.

TARGETS is JSON: the process to spy on, files to read, files to write, and addresses to call. It
reports by name of each attempt `done`, or why it was refused.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PTRACE_ATTACH = 16


def _trace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_ATTACH, pid, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _call(family: int, address: Any) -> None:
    with socket.socket(family) as connection:
        connection.settimeout(5)
        connection.connect(address)


def _write(path: str) -> None:
    with open(path, "ab") as file:  # noqa: PTH123  # as a stranger's code would
        file.write(b"x")


def _spend() -> None:
    """Take more memory than a limit of 1 GiB allows."""
    mmap.mmap(-1, 3 * 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


def attempts(given: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Return what is tried, by name."""
    pid = given["pid"]
    return {
        "environment": lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        "memory_of_others": lambda: Path(f"/proc/{pid}/mem").open("rb").read(1),
        "trace": lambda: _trace(pid),
        "signal": lambda: os.kill(pid, signal.SIGCONT),
        "internet": lambda: _call(socket.AF_INET, tuple(given["address"])),
        "socket_file": lambda: _call(socket.AF_UNIX, given["socket"]),
        "secret": lambda: Path(given["secret"]).read_bytes(),
        "system_file": lambda: Path("/etc/hostname").read_bytes(),
        "change_input": lambda: _write(given["input"]),
        "replace_input": lambda: Path(given["input"]).parent.rename(Path(given["workdir"], "x")),
        "log": lambda: Path(given["log"]).unlink(),
        "outside": lambda: _write(given["outside"]),
        "give_away": lambda: os.chown(Path(given["workdir"], "renamed"), 12345, -1),
        "spend": _spend,
    }


def main() -> None:
    """Try everything, and report."""
    given = json.loads(sys.argv[1])
    # What an engine needs.
    Path(given["workdir"], "output").write_bytes(Path(given["input"]).read_bytes())
    Path(given["workdir"], "output").rename(Path(given["workdir"], "renamed"))
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    found = {}
    for name, attempt in attempts(given).items():
        try:
            attempt()
            found[name] = "done"
        except (OSError, MemoryError) as error:
            found[name] = type(error).__name__
    report = {
        "type": "result",
        "found": found,
        "uid": os.getuid(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "no_new_privileges": "NoNewPrivs:\t1" in Path("/proc/self/status").read_text(),
        "home": os.environ["HOME"],
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
