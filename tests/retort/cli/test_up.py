"""`retort up`: what may be in its way, and what it leaves behind."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.journeys.stacks import free_port

pytestmark = [pytest.mark.slow]


def up(*options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "retort", "up", "--device", "cpu", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def complaint(*options: str) -> tuple[int, str]:
    """Return the exit code and the words of a start that must fail."""
    process = up(*options)
    _, words = process.communicate(timeout=60)
    return process.returncode, words.decode()


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, list[psutil.Process]]]:
    """A service, its port, and all the processes that it has started."""
    port = free_port()
    process = up("--data-dir", str(tmp_path / "data"), "--port", str(port))
    try:
        wait_until(lambda: answers(port))
        yield process, port, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, words = complaint("--data-dir", str(tmp_path / "data"), "--port", str(port))
    assert code == 5
    assert len(words.splitlines()) == 1
    assert f"port {port}" in words
    assert "--port" in words


def test_ends_cleanly_keeps_its_data_and_lets_nobody_else_in(
    running: tuple[subprocess.Popen[bytes], int, list[psutil.Process]], tmp_path: Path
):
    process, port, children = running
    known = tmp_path / "data" / "client.json"
    assert stat.S_IMODE(known.stat().st_mode) == 0o600
    code, words = complaint("--data-dir", str(tmp_path / "data"), "--port", str(free_port()))
    assert code == 5
    assert "--data-dir" in words
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
    again = up("--data-dir", str(tmp_path / "data"), "--port", str(port))
    try:
        wait_until(lambda: answers(port))
        key = json.loads(known.read_text())["api_key"]
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.get(f"http://127.0.0.1:{port}/v1/jobs", headers=headers).status_code == 200
    finally:
        again.terminate()
        again.communicate(timeout=60)


def test_killed_it_leaves_no_process_behind(
    running: tuple[subprocess.Popen[bytes], int, list[psutil.Process]],
):
    process, _, children = running
    names = " ".join(" ".join(child.cmdline()) for child in children)
    assert "redis-server" in names
    assert "uvicorn" in names
    os.kill(process.pid, signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=20)[1] == []
