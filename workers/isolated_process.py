"""Isolates the process that it runs in, before that reads files of strangers.

`python -m workers.isolated_process PLAN PARENT MODULE ARGS...` runs a module isolated, so that it
dies with its parent; `python -m workers.isolated_process --probe PLAN` prints which steps of a plan
cannot be taken here, and why. A plan is made by `workers/isolation.py`.
"""

import dataclasses
import json
import os
import resource
import runpy
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers import linux_sandbox, parent_death
from workers.distill.runtime import memory

MOST_OPEN_FILES = 4096
MOST_PROCESSES = 4096
MOST_FILE_BYTES = 64 * 2**30
_SYSTEM = tuple(map(Path, ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/sys")))
# Of /etc, only what libraries read; /proc shows of other processes what anybody may know.
_SETTINGS = tuple(
    Path("/etc") / name
    for name in (
        *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "passwd", "group"),
        *("nsswitch.conf", "alternatives", "fonts", "mime.types", "OpenCL", "vulkan", "nvidia"),
    )
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
LOOPBACK = "loopback"
"""The step by which the processes of one job can talk, in a network namespace of their own."""
GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "dri", "kfd", "dxg")


@dataclass(frozen=True)
class IsolationPlan:
    """What a child gives up before it runs: the names in `steps` must all succeed."""

    steps: tuple[str, ...]
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    memory_bytes: int | None = None
    workdir: str = ""
    cache: str = ""
    may_connect: bool = False
    """Whether sockets of the internet protocols are not refused: its processes talk by them."""

    def encode(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def decode(cls, text: str) -> "IsolationPlan":
        """Return a plan from its JSON."""
        content = json.loads(text)
        return cls(**{**content, **{name: tuple(content[name]) for name in ("steps", "groups")}})


def _limit(plan: IsolationPlan) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = [(resource.RLIMIT_NOFILE, MOST_OPEN_FILES), (resource.RLIMIT_FSIZE, MOST_FILE_BYTES)]
    if plan.uid is not None:  # else the worker's other processes would count as well
        limits.append((resource.RLIMIT_NPROC, MOST_PROCESSES))
    for which, most in limits:
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _limit_memory(plan: IsolationPlan) -> None:
    memory.limit(plan.memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _become_user(plan: IsolationPlan) -> None:
    if plan.uid is None or plan.gid is None:
        raise OSError("there is no user to become")
    os.setgroups(list(plan.groups))
    os.setresgid(plan.gid, plan.gid, plan.gid)
    os.setresuid(plan.uid, plan.uid, plan.uid)


def _restrict_files(plan: IsolationPlan) -> None:
    devices = Path("/dev")
    gpus = [path for pattern in GPU_DEVICES for path in devices.glob(pattern)]
    linux_sandbox.restrict_files(
        readable=[*_SYSTEM, *_SETTINGS, Path("/proc"), *_libraries()],
        usable=[*(devices / name for name in _DEVICES), *gpus],
        writable=[
            Path(plan.workdir),
            devices / "shm",
            *([Path(plan.cache)] if plan.cache else []),
        ],
        may_connect=plan.may_connect,
    )


def _libraries() -> Iterator[Path]:
    """Yield where Python and its packages lie; of this project, the folder of the engine only."""
    ours = Path(__file__).resolve().parent
    yield ours
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    python |= set(sysconfig.get_paths().values())
    named = (os.environ.get(name, "") for name in ("LD_LIBRARY_PATH", "CUDA_HOME"))
    # In a checkout, our parent is on the path as well, and the service's data may lie there.
    others = {*sys.path, *":".join(named).split(":")} - {"", str(ours.parent)}
    yield from map(Path, python | others)


STEPS: dict[str, Callable[[IsolationPlan], None]] = {
    "network_namespace": lambda _: linux_sandbox.leave_network(),
    LOOPBACK: lambda _: linux_sandbox.raise_loopback(),
    "limits": _limit,
    "user": _become_user,
    "memory": _limit_memory,
    "capabilities": lambda _: linux_sandbox.drop_capabilities(),
    "dumps": lambda _: linux_sandbox.forbid_dumps(),
    "privileges": lambda _: linux_sandbox.forbid_privileges(),
    "landlock": _restrict_files,
    "seccomp": lambda plan: linux_sandbox.filter_calls(may_connect=plan.may_connect),
}
"""In the order in which they must be taken: each may forbid what an earlier one needs."""


def apply(plan: IsolationPlan) -> None:
    """Isolate this process, which must have one thread. Raises: OSError where a step fails."""
    for name, step in STEPS.items():
        if name in plan.steps:
            try:
                step(plan)
            except OSError as error:
                raise OSError(f"the engine could not be isolated, step {name}: {error}") from error


def missing(plan: IsolationPlan) -> dict[str, str]:
    """Take each step that can be taken, and return why the others cannot."""
    failures = {}
    for name in plan.steps:
        try:
            if name == "user":
                _try_user(plan)
            STEPS[name](plan)
        except OSError as error:
            failures[name] = error.strerror or str(error)
    return failures


def _try_user(plan: IsolationPlan) -> None:
    """Raise OSError where the plan's user cannot be become, or could run no engine."""
    # Paths are the operator's own affair; the sentence is shown to everybody.
    needed = {
        str(Path(__file__).parent): "the folder of Retort's code",
        sys.prefix: "the folder of Python's packages",
        sys.base_prefix: "the folder of Python",
        plan.workdir: "RETORT_DATA_DIR",
    }
    trial = os.fork()  # there is no way back from another user
    if trial == 0:
        try:
            _become_user(plan)
            closed = [not os.access(folder, os.X_OK) for folder in needed]
        except OSError as error:
            os._exit(100 + (error.errno or 0) % 100)
        os._exit(1 + closed.index(True) if any(closed) else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(trial, 0)[1])
    if code >= 100:
        raise OSError(code - 100, os.strerror(code - 100))
    if code:
        name = list(needed.values())[code - 1]
        raise OSError(f"user {plan.uid} may not enter {name}: let everybody enter (chmod o+x)")


def main() -> None:
    """Run a module isolated, or print what can be had."""
    if sys.argv[1] == "--probe":
        sys.stdout.write(json.dumps(missing(IsolationPlan.decode(sys.argv[2]))))
        return
    plan, parent = IsolationPlan.decode(sys.argv[1]), int(sys.argv[2])
    parent_death.die_with_parent(parent)
    apply(plan)
    parent_death.die_with_parent(parent)  # another user's process forgets it
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
