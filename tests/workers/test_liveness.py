"""A probe finds a loop that stands still, and leaves a worker with a job alone."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from models_registry.settings import Settings
from workers import liveness, staging


class Loop:
    """A timer that is run by hand."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []

    def call_repeatedly(self, _seconds: float, work: Callable[[], object], /) -> None:
        self.work.append(work)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def test_before_the_start_is_a_fault(settings: Settings) -> None:
    assert "no worker has started" in (liveness.fault(settings) or "")


def test_of_a_loop_that_moves_is_none(settings: Settings) -> None:
    loop = Loop()
    path = liveness.keep(loop, settings.data_dir)
    long_ago = time.time() - 2 * liveness.STALL_SECONDS
    os.utime(path, (long_ago, long_ago))
    assert "has not moved for 120 s" in (liveness.fault(settings) or "")
    for work in loop.work:
        work()
    assert liveness.fault(settings) is None


def test_with_a_job_at_hand_is_none(settings: Settings) -> None:
    path = liveness.keep(Loop(), settings.data_dir)
    os.utime(path, (0, 0))
    with staging.scratch(settings.scratch_dir, "job_1-1"):
        assert liveness.fault(settings) is None
    assert liveness.fault(settings) is not None
