"""What a fork of the server is, and what happens when one of the processes is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog.testing

from tests.workers import odd_engine, scenes
from workers import engine_server, engine_server_client
from workers.engine_launcher import EngineLauncher
from workers.engine_process import EngineProcess, Report

PRELOAD = ("workers.engine_process", "--")
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="engines are forked on Linux only"
)


@pytest.fixture
def launcher() -> Iterator[EngineLauncher]:
    with contextlib.closing(EngineLauncher(is_warm=True, preload=PRELOAD)) as made:
        yield made


def start(way: str, workdir: Path, launcher: EngineLauncher) -> EngineProcess:
    folder = workdir / way
    folder.mkdir(exist_ok=True)
    return EngineProcess(odd_engine.MODULE, [way], workdir=folder, launcher=launcher)


def first(engine: EngineProcess) -> Report:
    report = engine.next_report(scenes.PATIENCE_SECONDS)
    assert report is not None
    return report


def server_of(engine: EngineProcess) -> psutil.Process:
    server = psutil.Process(engine.pid).parent()
    assert server is not None
    assert "workers.engine_server" in server.cmdline()
    return server


class TestFork:
    def test_is_like_a_fresh_process(self, launcher: EngineLauncher, tmp_path: Path) -> None:
        """The second one, so that the first one's descriptors could have leaked into it."""
        found: list[dict[str, Any]] = []
        cold = EngineLauncher(is_warm=False)
        with start("stubborn", tmp_path, launcher) as running:
            first(running)
            for chosen in (cold, launcher, launcher):
                with start("saying_what_it_inherits", tmp_path, chosen) as engine:
                    found.append(first(engine))
                    assert engine.wait() == 0
        draws = {facts.pop("draw") for facts in found}
        assert len(draws) == 3  # no two forks have the same random state
        names = [facts.pop("name") for facts in found]
        assert names[1:] == [engine_server.process_name(odd_engine.MODULE)] * 2
        assert found[0] == found[1] == found[2]
        assert found[1]["files"] == [0, 1, 2]
        assert found[1]["session_is_own"]

    def test_ends_with_its_own_code_while_others_run(
        self, launcher: EngineLauncher, tmp_path: Path
    ) -> None:
        with (
            start("stubborn", tmp_path, launcher) as running,
            start("falling", tmp_path, launcher) as falling,
            start("polite", tmp_path, launcher) as polite,
        ):
            assert polite.wait() == 0
            assert falling.wait() == -signal.SIGKILL
            assert not falling.lost_server
            assert server_of(running) == server_of(running)
            assert not scenes.has_ended(running.pid)
        assert scenes.has_ended(running.pid)

    def test_leaves_no_zombie_with_the_server(
        self, launcher: EngineLauncher, tmp_path: Path
    ) -> None:
        with start("stubborn", tmp_path, launcher) as running:
            server = server_of(running)
            with start("polite", tmp_path, launcher) as engine:
                engine.wait()
            assert [child.pid for child in server.children()] == [running.pid]


class TestKill:
    def test_of_the_server_ends_its_engines_and_the_next_one_is_cold(
        self, launcher: EngineLauncher, tmp_path: Path
    ) -> None:
        with start("stubborn", tmp_path, launcher) as engine:
            first(engine)
            server_of(engine).kill()
            assert engine.wait() == -signal.SIGKILL
            assert engine.lost_server
            scenes.wait_until(lambda: scenes.has_ended(engine.pid), "the engine is gone")
        with (
            structlog.testing.capture_logs() as logged,
            start("polite", tmp_path, launcher) as cold,
        ):
            warning = first(cold)
            assert (warning["type"], warning["code"]) == ("warning", "engine_cold")
            assert "it has ended or hangs" in warning["message"]
            assert first(cold)["type"] == "started"
        assert "engine_started_cold" in {line["event"] for line in logged}
        with start("polite", tmp_path, launcher) as warm:
            assert first(warm)["type"] == "started"

    def test_of_an_engine_is_noticed_although_the_server_hangs(
        self, launcher: EngineLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with start("stubborn", tmp_path, launcher) as engine:
            first(engine)
            server = server_of(engine)
            server.suspend()
            monkeypatch.setattr(engine_server_client, "_FORK_SECONDS", 0.05)
            os.kill(engine.pid, signal.SIGKILL)
            assert engine.wait() == -signal.SIGKILL
            assert engine.lost_server
            server.resume()

    @pytest.mark.slow
    def test_of_the_worker_ends_server_and_engines(self, tmp_path: Path) -> None:
        worker = subprocess.Popen(
            [sys.executable, "-m", odd_engine.MODULE, "supervising", str(tmp_path), "warm"],
            stdout=subprocess.PIPE,
        )
        assert worker.stdout is not None
        with worker.stdout:
            engine = json.loads(worker.stdout.readline())["child"]
            family = [process.pid for process in psutil.Process(worker.pid).children(True)]
            assert len(family) == 2
            assert engine in family
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
        scenes.wait_until(lambda: all(map(scenes.has_ended, family)), "both are gone")

    def test_of_a_whole_terminal_leaves_the_server_to_its_worker(
        self, launcher: EngineLauncher, tmp_path: Path
    ) -> None:
        """A stop is for the engines, which write a checkpoint first."""
        with start("obedient", tmp_path, launcher) as engine:
            first(engine)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                server_of(engine).send_signal(number)
            engine.request_stop(grace_seconds=30)
            assert engine.wait() == 75
            assert not engine.lost_server
