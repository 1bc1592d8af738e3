import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing

from tests.workers import odd_engine, scenes
from workers import engine_launcher, engine_process
from workers.engine_launcher import EngineLauncher
from workers.engine_process import EngineProcess

# What the odd engine needs, so that a fork has it.
PRELOAD = ("workers.engine_process", "--")


@pytest.fixture(scope="module", params=[False, True], ids=["cold", "warm"])
def is_warm(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def launcher(is_warm: bool) -> Iterator[EngineLauncher]:
    with contextlib.closing(EngineLauncher(is_warm=is_warm, preload=PRELOAD)) as made:
        yield made


def start(way: str, workdir: Path, launcher: EngineLauncher) -> EngineProcess:
    return EngineProcess(odd_engine.MODULE, [way, str(workdir)], workdir=workdir, launcher=launcher)


def hear(engine: EngineProcess) -> list[engine_process.Report]:
    """Return every report until the stream ends."""
    heard = []

    def has_ended() -> bool:
        report = engine.next_report(0.1)
        if report is not None:
            heard.append(report)
        return engine.has_ended

    scenes.wait_until(has_ended, "the stream ends", pause_seconds=0)
    return heard


def first(engine: EngineProcess) -> engine_process.Report:
    report = engine.next_report(scenes.PATIENCE_SECONDS)
    assert report is not None
    return report


class TestReports:
    def test_come_in_order_and_the_stream_ends_with_the_child(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("polite", tmp_path, launcher) as engine:
            heard = hear(engine)
            assert [report["type"] for report in heard] == ["started", "result"]
            assert engine.next_report(0.1) is None
            assert engine.wait() == 0

    def test_none_comes_in_time_from_a_silent_child(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("stubborn", tmp_path, launcher) as engine:
            first(engine)
            assert engine.next_report(0.05) is None
            assert not engine.has_ended

    def test_lines_that_are_none_are_logged_and_skipped(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with (
            structlog.testing.capture_logs() as logged,
            start("babbling", tmp_path, launcher) as engine,
        ):
            assert hear(engine) == [{"type": "result"}]
        unreadable = [line["line"] for line in logged if line["event"] == "engine_line_unreadable"]
        assert len(unreadable) == 7
        assert unreadable[0] == "loading...\n"
        assert unreadable[-1] == "unfinished"

    def test_have_no_characters_that_databases_refuse(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("unstorable", tmp_path, launcher) as engine:
            (report,) = hear(engine)
        assert report == {"type": "result", "na\ufffdme": ["a\ufffdb", "\ufffd", "\U0001f600", 1]}

    @pytest.mark.slow
    def test_end_although_a_grandchild_holds_the_stream_open(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("leaving_family", tmp_path, launcher) as engine:
            (report,) = hear(engine)
            assert engine.wait() == 0
        assert scenes.has_ended(report["child"])


class TestChild:
    def test_gets_module_arguments_and_no_core_dumps(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("polite", tmp_path, launcher) as engine:
            started, result = hear(engine)
        assert started["arguments"] == ["polite", str(tmp_path)]
        assert result["core_bytes"] == [0, 0]

    def test_knows_no_settings_and_no_credentials(
        self, tmp_path: Path, is_warm: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secrets = {
            "RETORT_DATABASE_URL": "postgresql://somebody:secret@host/retort",
            "RETORT_S3_SECRET_ACCESS_KEY": "secret",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "PGPASSWORD": "secret",
            "HF_TOKEN": "secret",
            "LD_PRELOAD": "",
        }
        for name, value in secrets.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with (
            contextlib.closing(EngineLauncher(is_warm=is_warm, preload=PRELOAD)) as launcher,
            start("saying_its_environment", tmp_path, launcher) as engine,
        ):
            (result,) = hear(engine)
        environment = result["environment"]
        assert secrets.keys() & environment.keys() == set()
        assert "secret" not in str(environment)
        assert environment["OMP_NUM_THREADS"] == "1"
        # LC_CTYPE is Python's own: it sets a UTF-8 locale where there is none.
        assert environment.keys() - {"LC_CTYPE"} <= {
            *engine_launcher._INHERITED,
            "PYTHONUNBUFFERED",
        }

    @pytest.mark.parametrize(("device", "seen"), [("cpu", ""), ("auto", "1"), ("cuda", "1")])
    def test_sees_a_gpu_only_where_the_worker_offers_one(
        self, device: str, seen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert engine_launcher.scrubbed_environment(device)["CUDA_VISIBLE_DEVICES"] == seen

    def test_sees_the_cards_of_its_slot_alone(
        self, tmp_path: Path, is_warm: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
        with contextlib.closing(EngineLauncher(is_warm=is_warm, preload=PRELOAD)) as launcher:
            for cards in ("4", "5"):  # of one server, too
                folder = tmp_path / cards
                folder.mkdir()
                with EngineProcess(
                    odd_engine.MODULE,
                    ["saying_its_environment", str(folder)],
                    workdir=folder,
                    launcher=launcher,
                    cards=cards,
                ) as engine:
                    (result,) = hear(engine)
                assert result["environment"]["CUDA_VISIBLE_DEVICES"] == cards
        offering_none = engine_launcher.scrubbed_environment("cpu", cards="4")
        assert offering_none["CUDA_VISIBLE_DEVICES"] == ""

    @pytest.mark.parametrize(
        ("own", "seen"),
        [
            ({}, {"GOMP_SPINCOUNT": "10000"}),
            ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
            ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ],
    )
    def test_waits_for_threads_briefly_unless_an_operator_says_otherwise(
        self, own: dict[str, str], seen: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        environment = engine_launcher.scrubbed_environment("auto")
        assert {name: environment[name] for name in names if name in environment} == seen

    def test_leads_a_process_group_of_its_own(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("stubborn", tmp_path, launcher) as engine:
            pid = first(engine)["pid"]
            assert pid == engine.pid
            assert os.getpgid(pid) == pid != os.getpgid(0)

    def test_that_is_killed_has_a_negative_code(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("falling", tmp_path, launcher) as engine:
            assert [report["type"] for report in hear(engine)] == ["started"]
            assert engine.wait() == -signal.SIGKILL


class TestStopping:
    @pytest.mark.slow
    def test_is_not_forced_on_an_obedient_child(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("obedient", tmp_path, launcher) as engine:
            first(engine)
            engine.request_stop(grace_seconds=30)
            reports = hear(engine)
            assert not engine.enforce_stop()
            assert engine.wait() == engine_process.CHECKPOINTED
        assert reports == [{"type": "checkpoint", "helper_lives": True}]

    def test_is_forced_on_a_stubborn_child_after_the_grace(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("stubborn", tmp_path, launcher) as engine:
            first(engine)
            assert not engine.enforce_stop()
            asked = time.monotonic()
            engine.request_stop(grace_seconds=0.3)
            engine.request_stop(grace_seconds=600)  # asked again: nothing changes
            assert not engine.enforce_stop() or time.monotonic() - asked >= 0.3
            scenes.wait_until(engine.enforce_stop, "the grace is over")
            assert engine.wait() == -signal.SIGKILL
            assert hear(engine) == []

    @pytest.mark.slow
    def test_leaves_no_process_of_the_group_behind(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("with_family", tmp_path, launcher) as engine:
            report = first(engine)
            assert not scenes.has_ended(report["child"])
            engine.kill()
            assert scenes.has_ended(report["child"])
            assert scenes.has_ended(report["pid"])
            engine.kill()  # again: nothing is left, and that is no error

    @pytest.mark.slow
    def test_happens_when_the_block_is_left_by_an_error(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        def fail(engine: EngineProcess) -> None:
            with engine:
                seen.append(first(engine))
                raise KeyError("x")

        seen: list[engine_process.Report] = []
        with pytest.raises(KeyError):
            fail(start("with_family", tmp_path, launcher))
        assert scenes.has_ended(seen[0]["pid"])
        assert scenes.has_ended(seen[0]["child"])


class TestLogTail:
    def test_is_the_end_of_the_log_cut_to_a_readable_size(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("verbose", tmp_path, launcher) as engine:
            hear(engine)
            tail = engine.log_tail()
        assert 0 < len(tail) <= 50
        assert all(len(line) <= 400 and "\x00" not in line for line in tail)
        assert tail[-1].startswith("line 1999 \N{REPLACEMENT CHARACTER}xxx")

    def test_is_empty_for_a_child_that_wrote_nothing(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        with start("polite", tmp_path, launcher) as engine:
            hear(engine)
            assert engine.log_tail() == []

    def test_has_the_traceback_of_a_module_that_fails(
        self, tmp_path: Path, launcher: EngineLauncher
    ) -> None:
        module = "tests.workers.no_such_engine"
        with EngineProcess(module, [], workdir=tmp_path, launcher=launcher) as engine:
            assert hear(engine) == []
            assert engine.wait() == 1
            assert "no_such_engine" in engine.log_tail()[-1]
