"""The engine's log for people: which reports become lines, and how often."""

import os
from pathlib import Path

import pytest

from workers.distill.runtime import events, narration


@pytest.fixture
def log(tmp_path: Path):
    path = tmp_path / "engine.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    reports = os.open(os.devnull, os.O_WRONLY)
    narrator = narration.Narrator(descriptor)
    yield path, events.Reporter(reports, narrator=narrator)
    os.close(descriptor)
    os.close(reports)


def sentences(path: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]


def test_tells_the_course_of_a_run(log) -> None:
    path, reporter = log
    reporter.started(device="cpu", resumed_from_step=0)
    reporter.metric("loss/total", 0.5, step=1, epoch=1)
    reporter.metric("loss/total", 0.25, step=2, epoch=1)
    reporter.metric("validation/accuracy", 0.875, step=2, epoch=1)
    reporter.checkpoint(path="c", step=2, size_bytes=1234)
    reporter.of_member("job_1").warning("odd", "something is odd")
    reporter.failure("diverged", "the loss is NaN")
    assert sentences(path) == [
        "started on cpu",
        "epoch 1, step 2: loss/total 0.25, validation/accuracy 0.875",
        "checkpoint of step 2 written, 1,234 bytes",
        "job_1 warning: something is odd (odd)",
        "failed: the loss is NaN (diverged)",
    ]


def test_tells_losses_alone_only_now_and_then(log) -> None:
    path, reporter = log
    for step in range(1, 4):
        reporter.metric("loss/total", float("nan"), step=step, epoch=1)
        reporter.flush()
    assert sentences(path) == ["epoch 1, step 1: loss/total nan"]
