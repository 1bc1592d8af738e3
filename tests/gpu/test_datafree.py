"""Each method without data: its calls and the student's steps are those on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from tests.gpu import scenes
from workers.distill.config.synthesis import GeneratorSynthesis
from workers.distill.methods import catalog
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.runtime import signals

pytestmark = pytest.mark.gpu

NAMES = sorted(n for n, kind in catalog.METHODS.items() if issubclass(kind, DataFreeMethod))
CHOICES: dict[str, dict[str, Any]] = {
    "cmi": {"bank_size": 16, "bank_draws": 8},
    "nayer": {"code_size": 8},
}
LARGEST = 0.02
"""Share of the way that rounding may turn: Adam makes whole steps of small gradients too."""


def choice(name: str) -> dict[str, Any]:
    budget: dict[str, Any] = {
        "steps": 2,
        "batch_size": 8,
        "student_steps": 1,
        "calls_per_epoch": 2,
        "data_scale": None,
        "buffer_images": 12,
    }
    kind = catalog.METHODS[name]
    assert issubclass(kind, DataFreeMethod)
    usual = kind.Params().synthesis
    if isinstance(usual, GeneratorSynthesis):
        budget |= {"latent_size": 8, "width": 4, "warmup_calls": min(usual.warmup_calls, 1)}
    return {"name": name, **CHOICES.get(name, {}), "synthesis": budget}


class TestDataFree:
    @pytest.mark.usefixtures("equal_draws")
    @pytest.mark.parametrize("name", NAMES)
    def test_calls_and_steps_equal_those_on_the_cpu(self, tmp_path: Path, name: str) -> None:
        outcome, expected = scenes.on_both(tmp_path, method=choice(name))
        for key in ("calls", "steps", "images"):
            assert outcome.result["synthesis"][key] == expected.result["synthesis"][key]
        assert scenes.distance(outcome, expected) < LARGEST

    @pytest.mark.parametrize("name", NAMES)
    def test_takes_bfloat16(self, tmp_path: Path, name: str) -> None:
        training = {"precision": "bfloat16", "ema_decay": 0.9}
        outcome = scenes.on_device(tmp_path, method=choice(name), training=training)
        assert all(bool(value.isfinite().all()) for value in outcome.student.values())

    @pytest.mark.parametrize("name", ["cmi", "dafl", "deepinversion", "fast", "ssdkd"])
    def test_goes_on_from_inside_a_call_as_if_nothing_had_happened(
        self, tmp_path: Path, name: str
    ) -> None:
        whole = scenes.on_device(tmp_path / "whole", method=choice(name))
        path = scenes.prepare(tmp_path / "left", scenes.DEVICE, method=choice(name))
        with scenes.surroundings(on_device=True):
            for look in (1, 2, 3):
                code, _ = folders.run_here(path, folders.StopsAt(look))
                assert code == signals.EXIT_CODE
        outcome = scenes.run(path, on_device=True)
        assert folders.of_type(outcome.lines, "started")[0]["resumed_from_step"] >= 0
        assert scenes.distance(outcome, whole) < LARGEST
