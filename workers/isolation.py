"""Decides how the processes that read files of strangers are isolated: engines and inspections.

A worker may read its database URL, the database, the store and every job's files; its children may
not. What of that this machine allows is tried once, in a child, told in `/v1/workers`, and from
then on demanded: a child that cannot have it does not start. `isolated_process.py` is what runs in
the child; docs/decisions/0031 has the reasons.
"""

import dataclasses
import errno
import json
import os
import pwd
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from models_registry.settings import Settings
from workers import linux_sandbox
from workers.distill.config import teachers
from workers.isolated_process import (
    GPU_DEVICES,
    LOOPBACK,
    MOST_FILE_BYTES,
    MOST_OPEN_FILES,
    MOST_PROCESSES,
    STEPS,
    IsolationPlan,
)

log = structlog.get_logger()

TEMPORARY = ".tmp"
"""The folder for temporary files in a working folder."""
_PROBE_SECONDS = 60
_ANYBODY = "nobody"
_CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
}
_INPUTS = frozenset(
    {"teacher", "dataset", "initial", "upload", "recipe.json", "request.json"}
    | {"engine.log", ".lock"}
    | {teachers.folder_of(place, teachers.MOST_TEACHERS) for place in range(teachers.MOST_TEACHERS)}
)

Status: TypeAlias = dict[str, dict[str, Any]]
"""By measure, whether it `is_active`, and in `detail` how, or why not."""


class Isolation:
    """How the children of this worker are isolated.

    Not found out before it is needed: that starts a process.
    """

    def __init__(
        self,
        wanted: IsolationPlan,
        *,
        because: str | None = None,
        is_user_named: bool = False,
        allows_sockets: bool = False,
    ) -> None:
        self._wanted = wanted
        self._no_user_because = because
        self._is_user_named = is_user_named
        self._allows_sockets = allows_sockets
        self._failures: dict[str, str] | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> "Isolation":
        """Return what the settings ask for.

        Raises: ValueError where RETORT_ENGINE_USER names a user that engines cannot run as.
        """
        if not sys.platform.startswith("linux"):
            return cls(
                IsolationPlan(()), because=f"{sys.platform} has no such means: run workers on Linux"
            )
        user, because = _user(settings.engine_user)
        steps = tuple(name for name in STEPS if name != "user" or user is not None)
        if not _is_root():
            steps = tuple(name for name in steps if name not in ("network_namespace", LOOPBACK))
        if _has_gpu(settings) and settings.engine_memory_bytes is None:
            steps = tuple(name for name in steps if name != "memory")
        plan = IsolationPlan(
            steps,
            uid=None if user is None else user.pw_uid,
            gid=None if user is None else user.pw_gid,
            groups=_gpu_groups(),
            memory_bytes=settings.engine_memory_bytes,
            workdir=str(settings.scratch_dir.absolute()),
            cache=str(settings.compile_cache_dir.absolute()),
        )
        return cls(
            plan,
            because=because,
            is_user_named=settings.engine_user is not None,
            allows_sockets=settings.engine_sockets,
        )

    def check_user(self) -> None:
        """Raise ValueError where engines cannot run as the user that was named in the settings."""
        why = self._find_failures().get("user") if self._is_user_named else None
        if why is not None:
            raise ValueError(f"RETORT_ENGINE_USER cannot be had: {why}; or leave it empty")

    def warm_up(self) -> None:
        """Find out in the background what can be had, so that no engine waits for it."""
        threading.Thread(target=self._find_out, name="isolation", daemon=True).start()

    def _find_out(self) -> None:
        try:
            self._find_failures()
        except OSError as error:
            log.warning("isolation_unknown", error=str(error))  # the first engine tries again

    def plan(self, workdir: Path, *, shares_cache: bool, talks: bool = False) -> IsolationPlan:
        """Return what a child with this working folder gives up, and give the folder to its user.

        With `shares_cache` it may use what other jobs have compiled. With `talks` its own processes
        reach each other over the loopback interface of their network namespace.
        Raises: OSError where the folder cannot be given away, or its processes could not talk.
        """
        possible = self._possible()
        if talks and (why_not := self.why_alone()) is not None:
            raise OSError(errno.EPERM, why_not)
        if talks:
            possible = dataclasses.replace(possible, may_connect=True)
        else:
            steps = tuple(name for name in possible.steps if name != LOOPBACK)
            possible = dataclasses.replace(possible, steps=steps)
        (workdir / TEMPORARY).mkdir(exist_ok=True)
        if shares_cache:
            self._make_cache(possible)
        if possible.uid is not None and possible.gid is not None:
            hand_over(workdir, possible.uid, possible.gid)
        cache = possible.cache if shares_cache else ""
        return dataclasses.replace(possible, workdir=str(workdir.absolute()), cache=cache)

    def environment(self, plan: IsolationPlan) -> dict[str, str]:
        """Return the variables by which libraries find the only folders that they may write."""
        own = Path(plan.workdir) / TEMPORARY
        caches = {name: str(Path(plan.cache or own) / folder) for name, folder in _CACHES.items()}
        return {"HOME": str(own), "TMPDIR": str(own), **caches}

    def status(self) -> Status:
        """Return what holds for every child, and why what does not hold does not."""
        possible, failed = self._possible(), self._find_failures()
        return {
            name: {"is_active": is_active, "detail": detail}
            for name, is_active, detail in _measures(
                possible, failed, self._no_user_because, self._talk()
            )
        }

    def why_alone(self) -> str | None:
        """Return why the processes of one engine could not talk to each other; None if they can.

        Where sockets are refused, they need a network namespace with a loopback interface, or the
        operator's word that they may have sockets without one.
        """
        steps = set(self._possible().steps)
        if LOOPBACK in steps or not {"seccomp", "landlock", "network_namespace"} & steps:
            return None
        if self._allows_sockets and "network_namespace" not in steps:
            return None
        reason = self._find_failures().get(LOOPBACK, "the worker does not run as root")
        return (
            "engines may open no socket here, and have no network namespace in which the processes "
            f"of several devices could talk ({reason}): run the worker as root, with the "
            "capabilities SYS_ADMIN and NET_ADMIN, or set RETORT_ENGINE_SOCKETS"
        )

    def _talk(self) -> str:
        """Return what jobs on several devices may do besides, to end a sentence with."""
        if self.why_alone() is not None:
            return "; a job has one device"
        if LOOPBACK in self._possible().steps:
            return "; of several devices, the loopback interface of their own namespace alone"
        return "; of several devices, none (RETORT_ENGINE_SOCKETS)"

    def _possible(self) -> IsolationPlan:
        failures = self._find_failures()
        steps = tuple(name for name in self._wanted.steps if name not in failures)
        has_user = "user" in steps
        return dataclasses.replace(
            self._wanted,
            steps=steps,
            uid=self._wanted.uid if has_user else None,
            gid=self._wanted.gid if has_user else None,
        )

    def _find_failures(self) -> dict[str, str]:
        with self._lock:
            if self._failures is None:
                self._failures = self._probe()
            return self._failures

    def _probe(self) -> dict[str, str]:
        """Return why the steps that cannot be taken here cannot."""
        wanted = self._wanted
        if not wanted.steps:
            return {}
        scratch = Path(wanted.workdir)
        scratch.mkdir(parents=True, exist_ok=True)
        failures = _ask_child(wanted)
        if "network_namespace" in failures:
            # Without a namespace of its own, it would be the machine's loopback interface.
            failures[LOOPBACK] = failures["network_namespace"]
        if wanted.uid is not None and wanted.gid is not None and "user" not in failures:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                try:
                    hand_over(Path(folder), wanted.uid, wanted.gid)
                except OSError as error:
                    failures["user"] = f"the worker may give no folder away: {error.strerror}"
        return failures

    def _make_cache(self, plan: IsolationPlan) -> None:
        folder = Path(plan.cache)
        folder.mkdir(parents=True, exist_ok=True)
        if plan.uid is not None and plan.gid is not None and folder.stat().st_uid != plan.uid:
            os.chown(folder, plan.uid, plan.gid)


def _ask_child(plan: IsolationPlan) -> dict[str, str]:
    """Return what a child process finds missing. Raises: OSError where it cannot say."""
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "workers.isolated_process", "--probe", plan.encode()],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        log.error("isolation_not_probed", error=str(error), error_output=str(error.stderr)[-2000:])
        raise OSError(errno.EAGAIN, "the isolation of engines could not be tried") from error
    failures: dict[str, str] = json.loads(finished.stdout)
    return failures


def _has_gpu(settings: Settings) -> bool:
    """Return whether engines may use a graphics card, whose driver maps more than it takes."""
    devices = (path for pattern in GPU_DEVICES for path in Path("/dev").glob(pattern))
    return settings.worker_device != "cpu" and any(devices)


def _is_root() -> bool:
    return os.geteuid() == 0


def _user(name: str | None) -> tuple[pwd.struct_passwd | None, str | None]:
    """Return the user that engines run as, or why they run as the worker's.

    Raises: ValueError where one was asked for that cannot be had.
    """
    if name is None and not _is_root():
        return None, (
            f"the worker runs as user {os.geteuid()}, which cannot become another: run it as root"
        )
    try:
        wanted = name or _ANYBODY
        user = pwd.getpwuid(int(wanted)) if wanted.isdecimal() else pwd.getpwnam(wanted)
    except KeyError:
        if name is None:
            return None, f"there is no user {_ANYBODY}: name another in RETORT_ENGINE_USER"
        raise ValueError(
            f"RETORT_ENGINE_USER is {name!r}: this machine has no such user; make one, or leave it "
            "empty"
        ) from None
    if not _is_root():
        raise ValueError(
            f"RETORT_ENGINE_USER is {name!r}, which only a worker that runs as root can become, "
            f"and this one runs as user {os.geteuid()}: run it as root, or leave it empty"
        )
    if user.pw_uid == 0:
        raise ValueError(f"RETORT_ENGINE_USER is {name!r}: root would isolate nothing")
    return user, None


def _gpu_groups() -> tuple[int, ...]:
    """Return the groups by which ordinary users may use this machine's graphics cards."""
    found = set()
    for pattern in ("nvidia*", "dri/*", "kfd"):
        for path in Path("/dev").glob(pattern):
            facts = path.stat()
            if not facts.st_mode & 0o006 and facts.st_mode & 0o060 and facts.st_gid:
                found.add(facts.st_gid)
    return tuple(sorted(found))


def _measures(
    plan: IsolationPlan, failures: dict[str, str], no_user_because: str | None, talk: str
) -> Iterator[tuple[str, bool, str]]:
    """Yield measure, whether it is active, and how or why not; in the words of `/v1/workers`."""
    has = set(plan.steps).__contains__
    missing = failures.get
    unknown = no_user_because or "not asked for"
    if has("user"):
        name = pwd.getpwuid(plan.uid or 0).pw_name
        yield "uid", True, f"engines run as {name} ({plan.uid}), the worker as {os.geteuid()}"
        yield "inputs", True, "inputs belong to the worker's user, and cannot be changed"
    else:
        why = missing("user", unknown)
        yield "uid", False, why
        yield "inputs", False, "they belong to the engine's own user: each job has its own copies"
    ways = [
        told
        for step, told in (
            ("network_namespace", "a network namespace without interfaces"),
            ("seccomp", "a seccomp filter that refuses sockets"),
        )
        if has(step)
    ]
    why = missing("seccomp", unknown)
    yield "network", bool(ways), " and ".join(ways) + talk if ways else why
    # Sockets of the file system, by which PostgreSQL can be reached, are in no network namespace.
    yield "sockets", has("seccomp"), "refused by seccomp" if has("seccomp") else why
    if has("landlock"):
        detail = f"Landlock {linux_sandbox.landlock_version()}: only libraries and its own folder"
    else:
        detail = missing("landlock", unknown)
    yield "files", has("landlock"), detail
    ways = [told for step, told in (("user", "its user"), ("landlock", "Landlock")) if has(step)]
    # Against seccomp alone, the environment of other processes of the same user stays readable.
    detail = f"others cannot be traced or read: {', '.join(ways)}"
    yield "processes", bool(ways), detail if ways else missing("landlock", unknown)
    has_none = has("capabilities") and has("privileges")
    detail = "none is left, and none can be gained" if has_none else missing("privileges", unknown)
    yield "privileges", has_none, detail
    most = plan.memory_bytes
    told = "the machine's" if most is None else f"{most} bytes"
    why = missing("memory", "a graphics card maps more: set RETORT_ENGINE_MEMORY_BYTES to limit it")
    yield "memory", has("memory"), told if has("memory") else why
    processes = f", {MOST_PROCESSES} processes" if has("user") else ""
    told = f"{MOST_OPEN_FILES} open files, {MOST_FILE_BYTES} bytes a file{processes}"
    yield "limits", has("limits"), told if has("limits") else missing("limits", unknown)


def protect_process() -> None:
    """Hide the memory and environment of a worker from others of its user (Linux only)."""
    if sys.platform.startswith("linux"):
        linux_sandbox.forbid_dumps()


def hand_over(folder: Path, uid: int, gid: int) -> None:
    """Let a user write a working folder, but not the inputs in it.

    A folder with inputs stays the worker's, and is sticky: what is in it can be removed by its
    owner only.
    """
    entries = sorted(folder.iterdir())
    if any(path.name in _INPUTS for path in entries):
        os.chown(folder, os.geteuid(), gid)
        folder.chmod(0o1770)
    else:
        os.chown(folder, uid, gid)
        folder.chmod(0o700)
    for path in entries:
        if path.name in _INPUTS:
            _make_readable(path, gid)
        elif path.is_dir():
            hand_over(path, uid, gid)
        else:
            os.chown(path, uid, gid)


def _make_readable(path: Path, gid: int) -> None:
    os.chown(path, os.geteuid(), gid)
    if path.is_dir():
        path.chmod(0o750)
        for inner in path.iterdir():
            _make_readable(inner, gid)
    else:
        path.chmod(0o440)
