"""`retort up`: what may be in its way, and what it leaves behind."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from retort import config, errors
from retort.cli import detached
from retort.cli import up as up_program
from tests import waiting
from tests.services import free_port

pytestmark = [pytest.mark.slow]


def up(*options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "retort", "up", "--device", "cpu", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def complaint(*options: str) -> tuple[int, str]:
    """Return the exit code and the words of a start that must fail."""
    process = up(*options)
    _, words = process.communicate(timeout=waiting.PATIENCE_SECONDS)
    return process.returncode, words.decode()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def running(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A service that answers; whatever happens, it has ended afterwards."""
    process = up("--data-dir", str(folder), "--port", str(port))
    try:
        waiting.until(lambda: answers(port), "the service answers")
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=waiting.PATIENCE_SECONDS)


def test_what_keeps_it_from_starting_in_the_background_is_said_here(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, words = complaint("--detach", "--data-dir", str(tmp_path / "data"), "--port", port)
    assert code == 5
    assert len(words.splitlines()) == 1
    assert f"port {port}" in words


def test_there_may_be_nothing_to_stop(tmp_path: Path):
    with pytest.raises(errors.BadOption, match="no `retort up` runs with the data in"):
        detached.stop(tmp_path)
    (tmp_path / up_program.LOCK).write_text("1")  # what one leaves that has ended
    with pytest.raises(errors.BadOption, match="--data-dir"):
        detached.stop(tmp_path)


def test_it_ends_cleanly_keeps_its_data_lets_nobody_else_in_and_leaves_no_process_behind(
    tmp_path: Path,
):
    """Ended by Ctrl-C first, then started again, then killed."""
    folder, port = tmp_path / "data", free_port()
    known = folder / "client.json"
    with running(folder, port) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        assert stat.S_IMODE(known.stat().st_mode) == 0o600
        code, words = complaint("--data-dir", str(folder), "--port", str(free_port()))
        assert code == 5
        assert "--data-dir" in words
        process.send_signal(signal.SIGINT)
        assert process.wait(waiting.PATIENCE_SECONDS) == 0
        assert psutil.wait_procs(children, timeout=waiting.PATIENCE_SECONDS)[1] == []
    with running(folder, port) as process:
        key = json.loads(known.read_text())["api_key"]
        waiting.until(config.Environment().up_file.exists, "the service can be found")
        assert config.find().api_key == key
        assert detached.running() == folder, "`retort down` finds it from any folder"
        headers = {"authorization": f"Bearer {key}"}
        jobs = httpx.get(
            f"http://127.0.0.1:{port}/v1/jobs", headers=headers, timeout=waiting.PATIENCE_SECONDS
        )
        assert jobs.status_code == 200
        children = psutil.Process(process.pid).children(recursive=True)
        names = " ".join(" ".join(child.cmdline()) for child in children)
        assert "redis-server" in names
        assert "api.server" in names
        os.kill(process.pid, signal.SIGKILL)
        assert psutil.wait_procs(children, timeout=waiting.PATIENCE_SECONDS)[1] == []
