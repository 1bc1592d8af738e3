"""Half precision on the device: every method takes it, and steps stay near those in float32."""

from pathlib import Path

import pytest

from tests.gpu import scenes
from tests.gpu.test_methods import NAMES, choice

pytestmark = pytest.mark.gpu

HALF = "float16" if scenes.DEVICE == "cuda" else "bfloat16"
"""The CPU refuses float16."""
LARGEST = 0.5
"""Share of a step that eight bits of precision may turn."""


class TestBfloat16:
    @pytest.mark.usefixtures("equal_draws")
    @pytest.mark.parametrize("name", [*NAMES, "combine"])
    def test_a_step_is_near_that_in_float32(self, tmp_path: Path, name: str) -> None:
        half = {"max_steps": 1, "precision": "bfloat16"}
        outcome = scenes.on_device(tmp_path / "half", method=choice(name), training=half)
        full = {"max_steps": 1}
        expected = scenes.on_device(tmp_path / "full", method=choice(name), training=full)
        assert outcome.lines[0]["precision"] == "bfloat16"
        assert scenes.distance(outcome, expected) < LARGEST

    def test_is_what_auto_chooses_on_cuda(self, tmp_path: Path) -> None:
        outcome = scenes.on_device(tmp_path, training={"precision": "auto"})
        expected = "bfloat16" if scenes.DEVICE == "cuda" else "float32"
        assert outcome.result["precision"] == expected


class TestFloat16:
    @pytest.mark.parametrize("clip_norm", [None, 1.0])
    @pytest.mark.parametrize("name", ["kd", "fitnet", "rkd"])
    def test_learns_with_scaled_losses(
        self, tmp_path: Path, name: str, clip_norm: float | None
    ) -> None:
        training = {"max_steps": 12, "epochs": 3, "clip_norm": clip_norm}
        half = {**training, "precision": HALF}
        outcome = scenes.on_device(tmp_path / "half", method=choice(name), training=half)
        expected = scenes.on_device(tmp_path / "full", method=choice(name), training=training)
        assert outcome.result["precision"] == HALF
        # The first steps may be left out, until the scale fits.
        assert scenes.distance(outcome, expected) < 1
