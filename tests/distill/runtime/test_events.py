import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from workers.distill.runtime import events

NOISY = """
import os, sys
from workers.distill.runtime import events
reporter = events.open_stream()
print("a library prints")
sys.stdout.flush()
os.system("echo a child prints")
reporter.warning("code", "only this is a line")
"""


class Sheet:
    """A descriptor to write to, and the lines that arrived."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.reporter = events.Reporter(self.descriptor)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def sheet(tmp_path: Path):
    opened = Sheet(tmp_path / "lines")
    yield opened
    os.close(opened.descriptor)


class TestReporter:
    def test_progress_is_said_at_most_twice_a_second(self, sheet: Sheet) -> None:
        for step in range(5):
            sheet.reporter.progress(step=step)
        assert [line["step"] for line in sheet.lines()] == [0]

    def test_metrics_travel_together(self, sheet: Sheet) -> None:
        sheet.reporter.metric("loss/total", 0.5, step=1, epoch=1)
        sheet.reporter.metric("loss/total", 0.25, step=2, epoch=1)
        assert sheet.lines() == []
        sheet.reporter.flush()
        (line,) = sheet.lines()
        assert [point["value"] for point in line["points"]] == [0.5, 0.25]

    def test_metrics_leave_before_what_they_led_to(self, sheet: Sheet) -> None:
        sheet.reporter.metric("loss/total", 0.5, step=1, epoch=1)
        sheet.reporter.checkpoint(path="checkpoints/step-00000001.ckpt")
        sheet.reporter.metric("loss/total", math.nan, step=2, epoch=1)
        sheet.reporter.failure("diverged", "the loss was not finite")
        kinds = [line["type"] for line in sheet.lines()]
        assert kinds == ["metrics", "checkpoint", "metrics", "failure"]

    def test_old_metrics_leave_with_the_next_point(
        self, sheet: Sheet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "METRICS_SECONDS", 0.0)
        sheet.reporter.metric("loss/total", 0.5, step=1, epoch=1)
        assert len(sheet.lines()) == 1

    def test_numbers_that_json_lacks_travel_as_words(self, sheet: Sheet) -> None:
        sheet.reporter.result(a=math.nan, b=[math.inf], c={"d": -math.inf}, e=1.5, f=None)
        assert sheet.lines() == [
            {"type": "result", "a": "NaN", "b": ["Infinity"], "c": {"d": "-Infinity"}}
            | {"e": 1.5, "f": None}
        ]


class TestMembers:
    def test_lines_of_a_member_carry_its_key(self, sheet: Sheet) -> None:
        sheet.reporter.of_member("one").warning("code", "odd")
        sheet.reporter.warning("code", "odd for all")
        assert [line.get("member") for line in sheet.lines()] == ["one", None]

    def test_each_member_is_heard_as_often_as_one_alone(self, sheet: Sheet) -> None:
        members = [sheet.reporter.of_member(key) for key in ("one", "other")]
        for step in range(3):
            for member in members:
                member.progress(step=step)
        assert [(line["member"], line["step"]) for line in sheet.lines()] == [
            ("one", 0),
            ("other", 0),
        ]


class TestOpenStream:
    def test_other_prints_never_reach_the_stream(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", NOISY],
            capture_output=True,
            text=True,
            check=True,
            env=folders.ENVIRONMENT,
        )
        assert [json.loads(line)["code"] for line in done.stdout.splitlines()] == ["code"]
        assert "a library prints" in done.stderr
        assert "a child prints" in done.stderr
