"""How images are drawn and weights are moved: the same on the device as on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import scenes

pytestmark = pytest.mark.gpu

LARGEST = 5e-3
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw, clipped and averaged": (
        "kd",
        {"optimizer": {"name": "adamw"}, "clip_norm": 0.5, "ema_decay": 0.9},
    ),
    "dot, clipped": ("kd", {"optimizer": {"name": "dot"}, "clip_norm": 0.5}),
    "warm-up and cosine": ("kd", {"schedule": {"name": "cosine", "warmup_epochs": 1}}),
    "images that never change": ("kd", {"augmentation": "none"}),
    "autoaugment": ("kd", {"augmentation": "autoaugment"}),
    "randaugment": ("kd", {"augmentation": "randaugment"}),
    "mixup": ("kd", {"mixing": {"name": "mixup"}}),
    "cutmix and noisy labels": ("kd", {"mixing": {"name": "cutmix"}, "label_noise": 0.2}),
    "a teacher cache": ("fkd", {"teacher_cache": {"views": 4, "per_visit": 2}}),
    "a strong view": ("mlld", {}),
}


class TestTraining:
    @pytest.mark.parametrize("way", WAYS)
    def test_steps_equal_those_on_the_cpu(self, tmp_path: Path, way: str) -> None:
        name, training = WAYS[way]
        outcome, expected = scenes.on_both(tmp_path, method={"name": name}, training=training)
        assert scenes.distance(outcome, expected) < LARGEST

    def test_a_baseline_follows_the_student(self, tmp_path: Path) -> None:
        outcome, expected = scenes.on_both(tmp_path, baseline=True)
        assert outcome.lines[0]["phases"] == ["student", "baseline"]
        assert scenes.distance(outcome, expected) < LARGEST
        loss, other = (one.result["scores"]["baseline"]["loss"] for one in (outcome, expected))
        assert loss == pytest.approx(other, rel=1e-3)
