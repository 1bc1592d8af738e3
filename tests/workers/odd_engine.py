"""A child process that behaves oddly on request: `python -m tests.workers.odd_engine WAY`.

Stands where an engine stands, in tests of those who start, hear and end one.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from workers import engine_process
from workers.engine_launcher import EngineLauncher

MODULE = "tests.workers.odd_engine"
LONG_SECONDS = 600


def report(kind: str, **facts: Any) -> None:
    """Write one report line."""
    sys.stdout.write(json.dumps({"type": kind, **facts}) + "\n")
    sys.stdout.flush()


def polite() -> None:
    """Report, and end."""
    report("started", arguments=sys.argv[1:])
    report("result", core_bytes=list(resource.getrlimit(resource.RLIMIT_CORE)))


def babbling() -> None:
    """Write lines that are no reports around one that is."""
    for line in (b"loading...\n", b"5\n", b"[1]\n", b"\xff\xfe\n", b'{"no": "type"}\n', b"\n"):
        sys.stdout.buffer.write(line)
    report("result")
    sys.stdout.buffer.write(b"unfinished")


def unstorable() -> None:
    """Name what no database stores."""
    sys.stdout.write(
        '{"type": "result", "na\\u0000me": ["a\\u0000b", "\\ud800", "\\ud83d\\ude00", 1]}\n'
    )


def saying_its_environment() -> None:
    """Report every variable."""
    report("result", environment=dict(os.environ))


def saying_what_it_inherits() -> None:
    """Report the process as it found itself."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    report(
        "result",
        session_is_own=os.getsid(0) == os.getpid(),
        files=sorted(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()),
        stdin=str(Path("/proc/self/fd/0").readlink()),
        handlers=[str(signal.getsignal(number)) for number in numbers],
        blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        threads=threading.active_count(),
        cwd=str(Path.cwd()),
        name=Path("/proc/self/comm").read_text().strip(),
        draw=random.random(),
    )


def verbose() -> None:
    """Write a long log with bytes that no database takes."""
    for number in range(2000):
        sys.stderr.buffer.write(b"line %d \x00\xff" % number + b"x" * 1000 + b"\n")
    report("result")


def stubborn() -> None:
    """Take no notice of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report("started", pid=os.getpid())
    time.sleep(LONG_SECONDS)


def obedient() -> None:
    """Stop on SIGTERM as an engine does, with the help of a child."""
    helper = _child()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    report("started", pid=os.getpid())
    while not stopped.is_set():
        time.sleep(0.01)
    time.sleep(0.2)
    report("checkpoint", helper_lives=helper.poll() is None)
    sys.exit(engine_process.CHECKPOINTED)


def training() -> None:
    """Train for ever, as far as a worker can see; stop on SIGTERM."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    report("started", device="cpu", resumed_from_step=0)
    step = 0
    while not stopped.wait(0.05):
        step += 1
        report("progress", progress=0.0, step=step)
    sys.exit(engine_process.CHECKPOINTED)


def waiting_for_go() -> None:
    """Start, and finish when a test says so."""
    report("started", device="cpu", resumed_from_step=0)
    while not (Path(sys.argv[4]) / "go").exists():
        time.sleep(0.01)
    finishing()


def go(scratch: Path) -> None:
    """Let the engine in the one working folder below `scratch` finish."""
    (folder,) = [path for path in scratch.iterdir() if path.is_dir()]
    (folder / "go").touch()


def misreporting() -> None:
    """Write a report that no worker understands."""
    report("started", device="cpu", resumed_from_step=0)
    report("metrics")
    time.sleep(LONG_SECONDS)


def without_device() -> None:
    """Fail for want of a device."""
    report("failure", code="worker_failed", message="no card", details={"fault": "no_device"})
    sys.exit(1)


def finishing() -> None:
    """Leave a student's files in the working folder, and report less than a card needs."""
    report("started", device="cpu", resumed_from_step=0)
    folder, config = Path(sys.argv[4]), json.loads(Path(sys.argv[2]).read_text())
    student = config["student"]
    description = {
        **{name: student[name] for name in ("network", "arguments", "input")},
        "task": config["task"],
        "classes": config["class_names"],
    }
    (folder / "student.safetensors").write_bytes(b"student")
    (folder / "model.json").write_text(json.dumps(description))
    (folder / "metrics.json").write_text("{}")
    report("result", parameters={"student": 1})


def with_family() -> None:
    """Start a child of its own, and wait."""
    report("started", pid=os.getpid(), child=_child().pid)
    time.sleep(LONG_SECONDS)


def leaving_family() -> None:
    """Start a child that holds the report stream open, and end before it."""
    report("result", child=_child().pid)


def falling() -> None:
    """Die as if for want of memory."""
    report("started", device="cpu", resumed_from_step=0)
    os.kill(os.getpid(), signal.SIGKILL)


def supervising() -> None:
    """Start an engine process of its own, and wait to be killed."""
    launcher = EngineLauncher(is_warm=sys.argv[3] == "warm", preload=("--",))
    with engine_process.EngineProcess(
        MODULE, ["stubborn"], workdir=Path(sys.argv[2]), launcher=launcher
    ) as engine:
        report("started", child=engine.pid, first=engine.next_report(LONG_SECONDS))
        time.sleep(LONG_SECONDS)


def _child() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", str(LONG_SECONDS)])


if __name__ == "__main__":
    globals()[sys.argv[1]]()
