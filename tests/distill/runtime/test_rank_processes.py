"""The processes of a job on several devices: all of them end together, for one reason."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import waiting
from tests.distill import folders

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from workers.distill.runtime import events, rank_processes, signals

folder, case = Path(sys.argv[1]), sys.argv[2]

def work(rank):
    (folder / f"new{rank}").write_text(str(os.getpid()))
    (folder / f"new{rank}").rename(folder / f"pid{rank}")
    if case == "done":
        while rank == 0 and not (folder / "pid1").exists():
            time.sleep(0.01)
        return 0
    if case == "failed" and rank == 1:
        while not (folder / "pid0").exists():
            time.sleep(0.01)
        reporter.failure("diverged", "a loss was not finite", retryable=False, details={})
        return 1
    if case == "lost" and rank == 1:
        while not (folder / "pid0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "peer" and rank == 0:
        while not (folder / "ended").exists():
            time.sleep(0.01)
        return rank_processes.PEER_LOST
    if case == "peer":
        (folder / "ended").touch()
        time.sleep(0.3)
        os._exit(9)
    if case == "stop" and rank == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(signals.EXIT_CODE))
        (folder / "listens").touch()
    while True:
        time.sleep(1)

reporter = events.open_stream()
sys.exit(rank_processes.RankProcesses(2, reporter, signals.Stop()).run(work))
"""


Start = Callable[[Path, str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts the program; what is left at the end is killed."""
    with contextlib.ExitStack() as started:

        def run(folder: Path, case: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, folder, case],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=folders.ENVIRONMENT,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield run


def end(process: subprocess.Popen[str], folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return exit code and lines, once none of the processes is left."""
    output, _ = process.communicate(timeout=waiting.PATIENCE_SECONDS)
    for rank in range(2):
        pid = int((folder / f"pid{rank}").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    return process.returncode, [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
class TestRankProcesses:
    def test_that_are_done_report_nothing_of_their_own(self, tmp_path: Path, start: Start) -> None:
        assert end(start(tmp_path, "done"), tmp_path) == (0, [])

    def test_end_with_the_failure_that_one_of_them_has_told(
        self, tmp_path: Path, start: Start
    ) -> None:
        code, lines = end(start(tmp_path, "failed"), tmp_path)
        assert (code, [line["code"] for line in lines]) == (1, ["diverged"])

    def test_end_when_one_is_killed_and_say_which(self, tmp_path: Path, start: Start) -> None:
        code, lines = end(start(tmp_path, "lost"), tmp_path)
        assert (code, [line["code"] for line in lines]) == (1, ["rank_lost"])
        assert lines[0]["retryable"]
        assert "the process of device 2 of 2 ended by signal 9" in lines[0]["message"]

    def test_tell_the_cause_where_another_one_met_its_consequence_first(
        self, tmp_path: Path, start: Start
    ) -> None:
        code, lines = end(start(tmp_path, "peer"), tmp_path)
        assert (code, len(lines)) == (1, 1)
        assert "device 2 of 2 ended with exit code 9" in lines[0]["message"]

    def test_pass_a_request_to_stop_on_to_the_first(self, tmp_path: Path, start: Start) -> None:
        process = start(tmp_path, "stop")
        started = [tmp_path / name for name in ("listens", "pid1")]
        waiting.until(lambda: all(path.exists() for path in started), "both ranks run")
        process.send_signal(signal.SIGTERM)
        assert end(process, tmp_path) == (75, [])
