"""What a child of a worker is kept from, and that what `/v1/workers` says of that is true."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models_registry.settings import Settings
from tests.workers import attacker, scenes, talking_ranks
from workers import isolation
from workers.engine_launcher import EngineLauncher
from workers.engine_process import EngineProcess
from workers.isolated_process import LOOPBACK, IsolationPlan
from workers.isolation import Isolation

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="engines are isolated on Linux only"
)
IS_ROOT = os.geteuid() == 0
SECRET = "postgresql://user:secret@database"
# Of <linux/capability.h> and <linux/prctl.h>.
CAP_SYS_ADMIN, PR_CAPBSET_DROP = 21, 24
PRELOAD = ("workers.engine_process", "--")

# Which attempts each measure refuses.
REFUSED_BY = {
    "network": ("internet",),
    "sockets": ("internet", "socket_file"),
    "files": ("secret", "system_file", "outside"),
    "inputs": ("change_input", "replace_input", "log"),
    "processes": ("environment", "memory_of_others", "trace"),
    "uid": ("environment", "change_input", "signal"),
    "privileges": ("give_away",),
    "memory": ("spend",),
}


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder that every user may enter, as pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="retort-isolation-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the attacker where an engine finds it: of this checkout it may read workers/ only."""
    (place / "code").mkdir()
    shutil.copy(attacker.__file__, place / "code")
    shutil.copy(talking_ranks.__file__, place / "code")
    monkeypatch.setenv("PYTHONPATH", str(place / "code"))


@pytest.fixture
def victim() -> Iterator[int]:
    """Return the id of a process like a worker: its environment holds a credential."""
    code = (
        "import sys; from workers import isolation; isolation.protect_process(); "
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "RETORT_DATABASE_URL": SECRET},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def attack(launcher: EngineLauncher, place: Path, victim: int) -> dict[str, Any]:
    """Start the attacker as an engine is started, and return its report."""
    workdir = place / "scratch" / "job"
    (workdir / "teacher").mkdir(parents=True)
    teacher = workdir / "teacher" / "model.safetensors"
    teacher.write_bytes(b"weights")
    teacher.chmod(0o444)
    secret = place / "retort.sqlite3"
    secret.write_text(SECRET)
    with contextlib.ExitStack() as opened:
        internet = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        beside = opened.enter_context(socket.socket(socket.AF_UNIX))
        path = str(place / ".s.PGSQL.5432")
        beside.bind(path)
        Path(path).chmod(0o777)
        beside.listen()
        targets = {
            "pid": victim,
            "address": internet.getsockname(),
            "socket": path,
            "secret": str(secret),
            "input": str(teacher),
            "log": str(workdir / "engine.log"),
            "outside": str(place / "outside"),
            "workdir": str(workdir),
        }
        engine = opened.enter_context(
            EngineProcess("attacker", [json.dumps(targets)], workdir=workdir, launcher=launcher)
        )
        report = None
        while not engine.has_ended:
            report = engine.next_report(scenes.PATIENCE_SECONDS) or report
        assert report is not None, engine.log_tail()
        assert report["type"] == "result", (report, engine.log_tail())
    assert (workdir / "renamed").read_bytes() == b"weights"
    return report


def settings_of(place: Path) -> Settings:
    return Settings(data_dir=place, engine_memory_bytes=2**30)


def check(status: isolation.Status, report: dict[str, Any]) -> None:
    """Assert that what is said to be active is: no more may be claimed than holds."""
    for measure, names in REFUSED_BY.items():
        if status[measure]["is_active"]:
            done = [name for name in names if report["found"][name] == "done"]
            assert not done, (measure, status[measure], done)
        assert status[measure]["detail"]
    assert (report["uid"] != os.geteuid()) == status["uid"]["is_active"]
    if status["limits"]["is_active"]:
        assert report["open_files"] <= 4096
    if status["privileges"]["is_active"]:
        assert report["no_new_privileges"]


@pytest.mark.slow
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_what_is_claimed_holds(is_warm: bool, place: Path, victim: int) -> None:
    isolated = Isolation.of(settings_of(place))
    launcher = EngineLauncher(is_warm=is_warm, preload=PRELOAD, isolation=isolated)
    with contextlib.closing(launcher):
        report = attack(launcher, place, victim)
    check(isolated.status(), report)
    assert report["home"].startswith(str(place / "scratch"))


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_what_cannot_be_had_is_told(missing: str, place: Path, victim: int) -> None:
    whole = Isolation.of(settings_of(place))
    wanted = whole._wanted
    steps = tuple(step for step in wanted.steps if step != missing)
    less = Isolation(dataclasses.replace(wanted, steps=steps), because="this machine has none")
    launcher = EngineLauncher(is_warm=True, preload=PRELOAD, isolation=less)
    with contextlib.closing(launcher):
        check(less.status(), attack(launcher, place, victim))


def test_without_isolation_every_attempt_succeeds(place: Path, victim: int) -> None:
    """The attempts themselves work, so that a refusal means something."""
    with contextlib.closing(EngineLauncher(is_warm=False)) as launcher:
        found = attack(launcher, place, victim)["found"]
    expected = set(found) if IS_ROOT else set(found) - {"give_away", "environment"}
    refused = {name for name in expected - {"system_file"} if found[name] != "done"}
    assert refused <= {"trace", "memory_of_others"}  # a hardened kernel


def test_a_folder_that_the_user_cannot_enter_is_a_reason(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    status = Isolation.of(settings_of(closed)).status()
    assert not status["uid"]["is_active"]
    expected = "may not enter" if IS_ROOT else "run it as root"
    assert expected in status["uid"]["detail"]
    assert str(tmp_path) not in json.dumps(status)


def test_a_named_user_that_cannot_enter_is_an_error(tmp_path: Path) -> None:
    plan = Isolation.of(settings_of(tmp_path))._wanted
    named = Isolation(dataclasses.replace(plan, steps=("user",), uid=1, gid=1), is_user_named=True)
    with pytest.raises(ValueError, match="RETORT_ENGINE_USER cannot be had: "):
        named.check_user()


def test_a_user_that_cannot_be_had_stops_the_worker(place: Path) -> None:
    wrong = Settings(data_dir=place, engine_user="no-such-user")
    with pytest.raises(ValueError, match="RETORT_ENGINE_USER is 'no-such-user'"):
        Isolation.of(wrong)
    with pytest.raises(ValueError, match="RETORT_ENGINE_USER is '0'"):
        Isolation.of(Settings(data_dir=place, engine_user="0"))


@pytest.mark.slow
class TestRanks:
    def test_talk_to_each_other_and_to_nobody_else(self, place: Path) -> None:
        isolated = Isolation.of(settings_of(place))
        if isolated.why_alone() is not None:
            with pytest.raises(OSError, match="could talk"):
                isolated.plan(place, shares_cache=False, talks=True)
            return
        launcher = EngineLauncher(is_warm=False, isolation=isolated)
        workdir = place / "scratch" / "job"
        workdir.mkdir(parents=True)
        with contextlib.ExitStack() as opened:
            internet = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            beside = opened.enter_context(socket.socket(socket.AF_UNIX))
            path = str(place / ".s.PGSQL.5432")
            beside.bind(path)
            Path(path).chmod(0o777)
            beside.listen()
            targets = {
                "workdir": str(workdir),
                "address": internet.getsockname(),
                "socket": path,
            }
            engine = opened.enter_context(
                EngineProcess(
                    "talking_ranks",
                    [json.dumps(targets)],
                    workdir=workdir,
                    launcher=launcher,
                    talks=True,
                )
            )
            report = None
            while not engine.has_ended:
                report = engine.next_report(scenes.PATIENCE_SECONDS) or report
            assert report is not None, engine.log_tail()
        status = isolated.status()
        assert report["total"] == 3.0, engine.log_tail()
        assert (report["internet"] == "done") is not status["network"]["is_active"]
        assert (report["socket_file"] == "done") is not status["sockets"]["is_active"]

    def test_need_a_network_of_their_own_or_the_operators_word(self, place: Path) -> None:
        steps = ("landlock", "seccomp")
        alone = Isolation(IsolationPlan(steps, workdir=str(place)))
        assert "RETORT_ENGINE_SOCKETS" in str(alone.why_alone())
        with pytest.raises(OSError, match="no network namespace"):
            alone.plan(place, shares_cache=False, talks=True)
        allowed = Isolation(IsolationPlan(steps, workdir=str(place)), allows_sockets=True)
        assert allowed.why_alone() is None
        assert allowed.plan(place, shares_cache=False, talks=True).may_connect
        assert not allowed.plan(place, shares_cache=False).may_connect
        assert "none (RETORT_ENGINE_SOCKETS)" in allowed.status()["network"]["detail"]

    def test_never_have_the_machines_own_loopback_interface(self, place: Path) -> None:
        """Whoever may change networks, but make none, could raise that of the machine."""
        found = (
            "import json, pathlib, sys; from models_registry.settings import Settings; "
            "from workers.isolation import Isolation; "
            "isolated = Isolation.of(Settings(data_dir=pathlib.Path(sys.argv[1]))); "
            "print(json.dumps([isolated._possible().steps, isolated.why_alone()]))"
        )
        weaker = (
            "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); "
            f"assert libc.prctl({PR_CAPBSET_DROP}, {CAP_SYS_ADMIN}, 0, 0, 0) == 0 "
            "or os.geteuid() != 0; "
            "os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
        )
        done = subprocess.run(
            [sys.executable, "-c", weaker, found, str(place)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        steps, why_alone = json.loads(done.stdout.splitlines()[-1])
        assert "network_namespace" not in steps
        assert LOOPBACK not in steps
        assert "no network namespace" in why_alone
