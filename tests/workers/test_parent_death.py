import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers import odd_engine, scenes


class TestParentDeath:
    @pytest.mark.parametrize("start", ["cold", "warm"])
    def test_ends_a_child_whose_supervisor_is_killed(self, start: str, tmp_path: Path) -> None:
        """The child ignores SIGTERM, and nobody is left to send it anything else."""
        supervisor = subprocess.Popen(
            [sys.executable, "-m", odd_engine.MODULE, "supervising", str(tmp_path), start],
            stdout=subprocess.PIPE,
        )
        assert supervisor.stdout is not None
        with supervisor.stdout:
            child = json.loads(supervisor.stdout.readline())["child"]
            assert not scenes.has_ended(child)
            os.kill(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
        scenes.wait_until(lambda: scenes.has_ended(child), "the child is gone")

    def test_lets_nothing_run_whose_parent_has_died_before(self) -> None:
        somebody_else = os.getppid()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "workers.parent_death",
                str(somebody_else),
                odd_engine.MODULE,
                "polite",
            ],
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, b"")

    def test_runs_a_module_as_python_would(self) -> None:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "workers.parent_death",
                str(os.getpid()),
                odd_engine.MODULE,
                "polite",
            ],
            capture_output=True,
            check=True,
        )
        started = json.loads(done.stdout.splitlines()[0])
        assert started == {"type": "started", "arguments": ["polite"]}

    def test_becomes_a_program_that_still_dies_with_its_parent(self) -> None:
        supervising = (
            "import os, subprocess, sys;"
            "child = subprocess.Popen([sys.executable, '-m', 'workers.parent_death',"
            " str(os.getpid()),"
            " '--', sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)'],"
            " stdout=subprocess.PIPE, start_new_session=True);"
            "child.stdout.readline();"
            "print(child.pid, flush=True);"
            "child.wait()"
        )
        supervisor = subprocess.Popen([sys.executable, "-c", supervising], stdout=subprocess.PIPE)
        assert supervisor.stdout is not None
        with supervisor.stdout:
            child = int(supervisor.stdout.readline())
            assert not scenes.has_ended(child)
            supervisor.kill()
            supervisor.wait()
        scenes.wait_until(lambda: scenes.has_ended(child), "the program is gone")
