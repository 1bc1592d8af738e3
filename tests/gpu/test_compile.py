"""Compiled networks on the device, in a process of their own, as the worker starts it."""

from pathlib import Path

import pytest

from tests.distill import folders
from tests.gpu import scenes

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

COUNTS = {**folders.COUNTS, "train": 32}
"""Batches of one size, so that each network is compiled once."""


class TestCompile:
    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_the_student_is_the_one_without(self, tmp_path: Path, precision: str) -> None:
        students = {}
        for choice in ("on", "off"):
            training = {"compile": choice, "precision": precision, "max_steps": 3}
            path = scenes.prepare(tmp_path / choice, scenes.DEVICE, training=training)
            folders.make_dataset(path.parent / "dataset", counts=COUNTS)
            output, _ = folders.start(path).communicate(timeout=280)
            lines = folders.of_type(scenes.parsed(output), "result")
            assert lines, (path.parent / "stderr.log").read_text()
            students[choice] = scenes.Outcome(path.parent, scenes.parsed(output))
        assert students["on"].result["compile"] is True
        assert folders.of_type(students["on"].lines, "warning") == []
        # Products are TF32 in both; what the compiler fuses is rounded less often.
        limit = 0.05 if precision == "float32" else 0.3
        assert scenes.distance(students["on"], students["off"]) < limit
