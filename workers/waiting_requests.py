"""Answer a request that somebody waits for: by one child process, and recorded in any case.

What all such requests have in common: a scratch folder, a child without credentials, and an answer
or the reason why there is none. What goes in and comes out is said by `sampler` and `predictor`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from workers import staging
from workers.child_requests import ChildDied, ask
from workers.context import Context
from workers.engine_process import Report

log = structlog.get_logger()

# A request that nobody reads any more need not be recorded at all costs.
_PATIENCE_SECONDS = 10.0

# Any: what a child has answered, as JSON.
Answer: TypeAlias = dict[str, Any]


class Unanswered(Exception):
    """There is no answer, for a reason with a code of its own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer(
    context: Context,
    name: str,
    work: Callable[[Path], Answer],
    *,
    died: str,
    finish: Callable[[Session, Answer | None, Answer | None], None],
) -> bool | None:
    """Record what `work` returns in a folder of its own, or why there is nothing.

    `work` raises `Unanswered`; where its child died, the code is `died`. `finish` records the
    answer and the failure (`code`, `message`), of which one is None. Return whether there is an
    answer, None where neither could be recorded.
    """
    given, failure = None, None
    try:
        with staging.scratch(context.settings.scratch_dir, name) as workdir:
            given = work(workdir)
    except Unanswered as error:
        failure = _failure(error.code, str(error))
    except ChildDied as error:
        failure = _failure(died, f"the process failed: {error}")
    except (errors.RegistryError, OSError) as error:
        failure = _failure("worker_failed", f"the worker could not do it: {error}")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        context.persist(
            lambda session: finish(session, given, failure),
            hopeless=lambda: time.monotonic() > deadline,
        )
    except errors.Unavailable as error:
        log.warning("answer_lost", request=name, because=str(error))
        return None
    return failure is None


def ask_child(
    context: Context, module: str, workdir: Path, *, limit_seconds: float, again: str
) -> Report:
    """Return the result of a program that reads and writes `workdir`.

    Raises: Unanswered where it refused, or where this worker was stopped: then `again` says what to
    do; ChildDied where it ended without either, or took longer than the limit.
    """
    report = ask(
        module,
        {},
        workdir,
        launcher=context.launcher,
        must_stop=context.shutting_down.is_set,
        limit_seconds=limit_seconds,
        memory_bytes=context.settings.inspection_memory_bytes,
    )
    if report is None:
        raise Unanswered("worker_stopped", f"the worker was stopped: {again}")
    if report["type"] == "failure":
        raise Unanswered(report["code"], report["message"])
    return report


def _failure(code: str, message: str) -> Answer:
    return {"code": code, "message": message[:4000]}
