"""`retort up --detach` and `retort down`: the service on this machine without a terminal."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from retort import config, errors
from retort.cli import up

LOG = "logs/up.log"
# Longer than `retort up` itself waits, whose reason says more.
READY_SECONDS = 360
STOP_SECONDS = 120


def start(data_dir: Path, options: Sequence[str]) -> str:
    """Start `retort up` in the background, and return what it says once it is ready.

    Raises: errors.CannotStart with the reason when it ends instead.
    """
    log = data_dir.resolve() / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "retort", "up", "--data-dir", str(data_dir), *options]
    log.touch(mode=0o600)
    log.chmod(0o600)  # it will hold a link that signs in
    with log.open("w") as written:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            # The end of the terminal must not end it.
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        said = log.read_text()
        if process.poll() is not None:
            reason = said.strip().rpartition("\n")[2].removeprefix("error: ")
            raise errors.CannotStart(reason or f"it ended with exit code {process.returncode}")
        if up.READY in said:
            return said.partition(up.READY)[0].rstrip()
        time.sleep(0.1)
    process.terminate()
    raise errors.CannotStart(f"it was not ready within {READY_SECONDS} s: see {log}")


def running() -> Path:
    """Return the data folder of the service to stop where none is named.

    That is `retort-data` in this folder, unless only the service that `retort up` remembers for
    this user runs.
    """
    here = Path("retort-data")
    remembered = config.data_dir_here()
    return here if remembered is None or _runs(here) else remembered


def stop(data_dir: Path) -> Path:
    """Stop the `retort up` of a data folder, wait until it has ended, and return the folder.

    Raises: errors.BadOption where none runs, errors.TimedOut where it does not end.
    """
    path = data_dir / up.LOCK
    if not _runs(data_dir):
        raise errors.BadOption(
            f"no `retort up` runs with the data in {data_dir}; name its folder with --data-dir"
        )
    os.kill(int(path.read_text()), signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while not _is_free(path):
        if time.monotonic() > deadline:
            raise errors.TimedOut(
                f"the service has not ended within {STOP_SECONDS} s: see {data_dir / LOG}"
            )
        time.sleep(0.1)
    return data_dir


def _runs(data_dir: Path) -> bool:
    path = data_dir / up.LOCK
    return path.exists() and not _is_free(path)


def _is_free(path: Path) -> bool:
    with path.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
