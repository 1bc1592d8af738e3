"""Students side by side on the device: each ends as it would alone there, and on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.distill.run import test_group
from tests.gpu import scenes

pytestmark = pytest.mark.gpu

LARGEST = 5e-3
MEMBERS: dict[str, dict[str, Any]] = {
    "kd": {"method": {"name": "kd"}},
    "averaged": {
        "method": {"name": "dkd"},
        "training": {"optimizer": {"name": "adamw"}, "ema_decay": 0.9},
    },
    "draws": {"method": {"name": "crd", "negatives": 20}},
    "looks_at_maps": {"method": {"name": "at"}},
    "batch_statistics": {"method": {"name": "ofd"}},
}


def member(accelerator: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return what a group's recipe says of a member."""
    training = {**scenes.TRAINING, **changes.get("training", {})}
    return {**changes, "accelerator": accelerator, "training": training, "initial": True}


def prepare(workdir: Path, accelerator: str) -> Path:
    """Write a group's folder, whose students start from given weights."""
    for key in MEMBERS:
        scenes.start(workdir / "members" / key / "initial")
    members = {key: member(accelerator, changes) for key, changes in MEMBERS.items()}
    return test_group.prepare(workdir, members)


def outcome(group: scenes.Outcome, key: str) -> scenes.Outcome:
    """Return what one member has left."""
    lines = [line for line in group.lines if line.get("member") == key]
    return scenes.Outcome(group.workdir / "members" / key, lines)


class TestGroups:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_each_student_is_the_one_it_would_be_alone(
        self, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(scenes.TRAINING, "precision", precision)
        path = prepare(tmp_path / "group", scenes.DEVICE)
        group = scenes.run(path, on_device=True)
        for key, changes in MEMBERS.items():
            alone = scenes.on_device(tmp_path / key, **changes)
            assert outcome(group, key).result["type"] == "result"
            # The same kernels; in which order they are tried out may differ.
            assert scenes.distance(outcome(group, key), alone) < LARGEST, key

    @pytest.mark.usefixtures("equal_draws")
    def test_each_student_is_that_of_the_cpu(self, tmp_path: Path) -> None:
        group = scenes.run(prepare(tmp_path / "device", scenes.DEVICE), on_device=True)
        expected = scenes.run(prepare(tmp_path / "cpu", "cpu"), on_device=False)
        for key in MEMBERS:
            apart = scenes.distance(outcome(group, key), outcome(expected, key))
            assert apart < LARGEST, key
