"""Checks of what a process depends on, side by side, with an answer within a time limit.

A dependency that does not answer at all keeps a thread of its own waiting, one at a time, and
none of those that serve requests: those may all wait for the same dependency.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from sqlalchemy.exc import SQLAlchemyError

from models_registry import errors

LIMIT_SECONDS = 1.5
_SILENT = f"has not answered for {LIMIT_SECONDS:g} s"


class Check:
    """One check; `fault` is what to say of a dependency for which it raises."""

    def __init__(self, run: Callable[[], object], fault: str) -> None:
        self._run = run
        self._fault = fault
        self._lock = threading.Lock()
        self._running: Future[str | None] | None = None

    def start(self) -> Future[str | None]:
        """Return the fault to come, of a check that still runs or of a new one."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = Future()
                self._running.set_running_or_notify_cancel()  # nobody can cancel it
                threading.Thread(
                    target=self._settle, args=(self._running,), name="readiness", daemon=True
                ).start()
            return self._running

    def _settle(self, answer: Future[str | None]) -> None:
        try:
            self._run()
        except (errors.Unavailable, SQLAlchemyError):
            answer.set_result(self._fault)
        except Exception as error:  # whoever waits for the answer gets it
            answer.set_exception(error)
        else:
            answer.set_result(None)


async def faults(checks: Mapping[str, Check]) -> dict[str, str | None]:
    """Run the checks, and return what is wrong with each dependency, None where nothing is."""
    answers = {name: asyncio.wrap_future(check.start()) for name, check in checks.items()}
    if answers:
        await asyncio.wait(answers.values(), timeout=LIMIT_SECONDS)
    silent = {name for name, answer in answers.items() if not answer.done()}
    for name in silent:
        answers[name].cancel()  # its loop may be closed when the check ends
    return {
        name: _SILENT if name in silent else answer.result() for name, answer in answers.items()
    }
