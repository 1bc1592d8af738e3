"""Ask a child process without credentials to do one thing, while a claim on it is renewed."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import sqlalchemy.exc
import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from workers import child_memory
from workers.context import Context
from workers.distill.config import upload_limits
from workers.engine_launcher import EngineLauncher
from workers.engine_process import EngineProcess, Report

log = structlog.get_logger()

_TICK_SECONDS = 0.2
# A child that runs for longer is killed.
LIMIT_SECONDS = 3600.0
OWN_BYTES = 1 << 30
"""What Python, torch and their libraries hold in a child before it reads anything, at most."""


class ChildDied(Exception):
    """The child ended without a result or failure, or took too long: its input may be the cause."""


class ChildTimedOut(ChildDied):
    """The child took too long, and was killed."""


class ClaimHold:
    """Renews a claim while the work lasts, however long that is."""

    def __init__(self, context: Context, renew: Callable[[Session], None]) -> None:
        """Call `renew` at every heartbeat; it raises errors.StaleFence when the claim is lost."""
        self._context = context
        self._renew = renew
        self._done = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim-hold", daemon=True)

    def __enter__(self) -> Self:
        """Start renewing the claim."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop renewing it."""
        self._done.set()
        self._thread.join()

    def must_stop(self) -> bool:
        """Return whether the claim is lost, or this worker is shutting down."""
        return self._lost.is_set() or self._context.shutting_down.is_set()

    def _beat(self) -> None:
        while not self._done.wait(self._context.settings.heartbeat_seconds):
            try:
                with self._context.sessions.begin() as session:
                    self._renew(session)
            except errors.StaleFence:
                self._lost.set()
                return
            except sqlalchemy.exc.SQLAlchemyError as error:
                log.warning("database_unreachable", error=str(error))


def ask(
    module: str,
    request: dict[str, Any],
    workdir: Path,
    *,
    launcher: EngineLauncher,
    must_stop: Callable[[], bool] = lambda: False,
    limit_seconds: float = LIMIT_SECONDS,
    memory_bytes: int | None = None,
) -> Report | None:
    """Run `module`; return its result or failure, or None when `must_stop` stopped it.

    `memory_bytes` bounds the child's memory beyond its libraries': the kernel keeps it where it can
    (private memory, on Linux), and a child that holds more by other means, or elsewhere, is killed.
    Either is a failure `too_large`.

    Raises: ChildDied when it ended without either; ChildTimedOut when it took longer than the
    limit.
    """
    path = workdir / "request.json"
    path.write_text(json.dumps(request))
    arguments = [str(path), "--workdir", str(workdir)]
    if memory_bytes is not None:
        arguments += ["--memory-bytes", str(memory_bytes)]
    answer: Report | None = None
    launcher.warm_up()
    while not launcher.wait_ready(_TICK_SECONDS):
        if must_stop():
            return None
    deadline = time.monotonic() + limit_seconds
    # Without a GPU: what is asked for needs none, and a job may be using it.
    with EngineProcess(
        module, arguments, workdir=workdir, launcher=launcher, device="cpu"
    ) as child:
        while not child.has_ended:
            if must_stop():
                return None
            if time.monotonic() > deadline:
                raise ChildTimedOut(f"it took longer than {limit_seconds:g} s")
            if memory_bytes is not None:
                held = child_memory.held_bytes(child.pid)
                if held > memory_bytes + OWN_BYTES:
                    log.warning("child_too_large", module=module, held_bytes=held)
                    return _too_large(memory_bytes)
            report = child.next_report(_TICK_SECONDS)
            if report is not None and report["type"] in ("result", "failure"):
                answer = report
        code = child.wait()
        if answer is None:
            tail = " | ".join(child.log_tail()[-5:])
            raise ChildDied(f"it ended with exit code {code} and no answer: {tail}")
    return answer


def _too_large(memory_bytes: int) -> Report:
    return {
        "type": "failure",
        "code": "too_large",
        "message": upload_limits.too_much_memory(memory_bytes),
        "retryable": False,
        "details": {},
    }
