"""When an engine is forked, when it gets a fresh interpreter, and that the reason is told."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.workers import odd_engine, scenes
from workers import engine_launcher, engine_server_client
from workers.engine_launcher import EngineLauncher
from workers.engine_process import EngineProcess, Report

PRELOAD = ("workers.engine_process", "--")
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="engines are forked on Linux only"
)


SERVER = "workers.engine_server"


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """Leave out the servers of other tests of this process, which may run on."""
    OTHERS.update(one.pid for one in scenes.engines(SERVER))
    yield
    OTHERS.clear()


OTHERS: set[int] = set()


def own_servers() -> list[psutil.Process]:
    """Return the servers that the present test has started."""
    return [one for one in scenes.engines(SERVER) if one.pid not in OTHERS]


def servers() -> int:
    return len(own_servers())


def reports(launcher: EngineLauncher, workdir: Path, way: str = "polite") -> list[Report]:
    """Return all reports of a short engine."""
    heard = []
    with EngineProcess(odd_engine.MODULE, [way], workdir=workdir, launcher=launcher) as engine:
        while not engine.has_ended:
            report = engine.next_report(scenes.PATIENCE_SECONDS)
            if report is not None:
                heard.append(report)
    return heard


def warm(preload: Sequence[str] = PRELOAD) -> contextlib.closing[EngineLauncher]:
    return contextlib.closing(EngineLauncher(is_warm=True, preload=preload))


def is_told(reports: list[Report], reason: str) -> bool:
    """Return whether the engine was started cold, and said so first."""
    warning, *rest = reports
    assert [report["type"] for report in rest] == ["started", "result"]
    return warning["code"] == "engine_cold" and reason in warning["message"]


class TestServer:
    def test_starts_when_an_engine_is_foreseen_and_not_before(self, tmp_path: Path) -> None:
        with warm() as launcher:
            assert launcher.wait_ready(0)  # a start would not wait for it; it would start it
            assert servers() == 0
            launcher.warm_up()
            launcher.warm_up()
            scenes.wait_until(lambda: launcher.wait_ready(0.1), "the server is ready")
            assert servers() == 1
            assert [report["type"] for report in reports(launcher, tmp_path)] == [
                "started",
                "result",
            ]
        assert servers() == 0

    def test_is_none_where_that_is_switched_off(self, tmp_path: Path) -> None:
        launcher = EngineLauncher(is_warm=False)
        launcher.warm_up()
        assert launcher.wait_ready(0)
        assert [report["type"] for report in reports(launcher, tmp_path)] == ["started", "result"]
        assert servers() == 0

    def test_that_takes_its_time_can_be_waited_for_in_small_portions(self, tmp_path: Path) -> None:
        with warm() as launcher:
            launcher.warm_up()
            (server,) = scenes.wait_until(own_servers, "the server starts")
            server.suspend()
            assert not launcher.wait_ready(0.05)
            server.resume()
            scenes.wait_until(lambda: launcher.wait_ready(0.1), "the server is ready")


class TestColdStart:
    @pytest.mark.parametrize(
        ("preload", "reason"),
        [
            (("tests.workers.no_such_module", "--"), "No module named"),
            (("tests.workers.leaves_thread", "--"), "2 threads run"),
        ],
    )
    def test_of_a_server_that_cannot_fork_is_told(
        self, preload: tuple[str, ...], reason: str, tmp_path: Path
    ) -> None:
        with warm(preload) as launcher:
            assert is_told(reports(launcher, tmp_path), reason)

    def test_comes_after_a_late_import_that_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with warm((*PRELOAD, "tests.workers.leaves_thread")) as launcher:
            first = reports(launcher, tmp_path)
            assert [report["type"] for report in first] == ["started", "result"]
            (server,) = own_servers()
            scenes.wait_until(lambda: server.num_threads() > 1, "the server has imported it")
            assert is_told(reports(launcher, tmp_path), "2 threads run")

    def test_comes_with_another_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Libraries have read the old one when they were loaded."""
        with warm() as launcher:
            reports(launcher, tmp_path)
            monkeypatch.setenv("OMP_NUM_THREADS", "3")
            assert is_told(reports(launcher, tmp_path), "environment")

    def test_comes_when_the_server_hangs_which_is_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It holds the standard output of the engine that it was asked for."""
        monkeypatch.setattr(engine_server_client, "_FORK_SECONDS", 0.05)
        monkeypatch.setattr(engine_server_client, "_END_SECONDS", 0.05)
        with warm() as launcher:
            launcher.warm_up()
            scenes.wait_until(lambda: launcher.wait_ready(0.1), "the server is ready")
            (server,) = own_servers()
            server.suspend()
            assert is_told(reports(launcher, tmp_path), "hangs")
            assert scenes.has_ended(server.pid)


class TestClose:
    def test_ends_engines_and_the_next_start_makes_another_server(self, tmp_path: Path) -> None:
        with warm() as launcher:
            with EngineProcess(
                odd_engine.MODULE, ["stubborn"], workdir=tmp_path, launcher=launcher
            ) as engine:
                assert engine.next_report(scenes.PATIENCE_SECONDS) is not None
                launcher.close()
                assert engine.wait() == -signal.SIGKILL
            assert [report["type"] for report in reports(launcher, tmp_path)] == [
                "started",
                "result",
            ]


class TestShareCores:
    def test_gives_each_slot_as_many_threads_but_one_at_least(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
        for slots, threads in ((2, "3"), (4, "1"), (8, "1")):
            monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is as before at the end
            monkeypatch.delenv("OMP_NUM_THREADS")
            engine_launcher.share_cores(slots)
            assert os.environ["OMP_NUM_THREADS"] == threads

    def test_leaves_what_the_operator_has_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        engine_launcher.share_cores(2)
        assert os.environ["OMP_NUM_THREADS"] == "5"


class TestCardNames:
    @pytest.mark.parametrize(
        ("visible", "names"),
        [
            ("", ["0", "1"]),
            ("6,7", ["6", "7"]),
            ("MIG-x, GPU-y,3", ["MIG-x", "GPU-y"]),
        ],
    )
    def test_are_those_that_the_worker_sees(
        self, visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert engine_launcher.card_names(2) == names
