"""Stopped and continued on the device: the student is that of an undisturbed run."""

from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from tests.distill.run import test_group
from tests.gpu import scenes
from workers.distill.runtime import signals

pytestmark = pytest.mark.gpu

LARGEST = 5e-3
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Draws on the device: its generator's state is part of the checkpoint.
    "crd": ({"name": "crd", "negatives": 20}, {}),
    "adamw, averaged": ({"name": "fitnet"}, {"optimizer": {"name": "adamw"}, "ema_decay": 0.9}),
    "dot": ({"name": "kd"}, {"optimizer": {"name": "dot"}}),
    "half precision": (
        {"name": "kd"},
        {"precision": "float16" if scenes.DEVICE == "cuda" else "bfloat16"},
    ),
}


class TestResume:
    @pytest.mark.parametrize("way", WAYS)
    def test_a_stopped_run_ends_with_the_same_student(
        self, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        method, training = WAYS[way]
        changes = {"method": method, "training": {"max_steps": 4, **training}}
        whole = scenes.on_device(tmp_path / "whole", **changes)
        left = scenes.prepare(tmp_path / "left", scenes.DEVICE, **changes)
        with scenes.surroundings(on_device=True):
            code, _ = test_group.interrupted(left, monkeypatch, 2)
        assert code == signals.EXIT_CODE
        outcome = scenes.run(left, on_device=True)
        assert folders.of_type(outcome.lines, "started")[0]["resumed_from_step"] == 2
        assert scenes.distance(outcome, whole) < LARGEST
        assert outcome.result["scores"]["student"]["loss"] == pytest.approx(
            whole.result["scores"]["student"]["loss"], rel=LARGEST
        )

    def test_a_checkpoint_of_the_device_can_be_continued_on_the_cpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        training = {"max_steps": 4}
        path = scenes.prepare(tmp_path / "left", "any", training=training)
        with scenes.surroundings(on_device=True):
            code, _ = test_group.interrupted(path, monkeypatch, 2)
        assert code == signals.EXIT_CODE
        whole = scenes.prepare(tmp_path / "whole", "any", training=training)
        with monkeypatch.context() as patch:
            patch.setattr("torch.cuda.is_available", lambda: False)
            outcome = scenes.run(path, on_device=False)
            expected = scenes.run(whole, on_device=False)
        assert outcome.lines[0]["resumed_from_step"] == 2
        assert scenes.distance(outcome, expected) < LARGEST
