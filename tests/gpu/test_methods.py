"""Each method that learns from images: two steps on the device are those on the CPU.

Only the last test runs without a device: that the engine takes the recipe of each method.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import dense_scenes, scenes
from workers.distill.config.descriptions import DENSE_TASKS
from workers.distill.config.job import JobConfig
from workers.distill.methods import catalog
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.run.prepare import check_config

OF_IMAGES = {n: k for n, k in catalog.METHODS.items() if not issubclass(k, DataFreeMethod)}
NAMES = sorted(name for name, kind in OF_IMAGES.items() if "classification" in kind.tasks)
DENSE = [
    (task, name)
    for task in sorted(DENSE_TASKS)
    for name, kind in sorted(OF_IMAGES.items())
    if task in kind.tasks and name != "combine"
]
CHOICES: dict[str, dict[str, Any]] = {
    "crd": {"negatives": 20},
    "combine": {"methods": [{"name": "kd"}, {"name": "fitnet"}, {"name": "rkd"}]},
}
LARGEST = 5e-3
"""Share of the way of two steps that rounding may turn; most methods stay a hundred times below."""


def choice(name: str) -> dict[str, Any]:
    return {"name": name, **CHOICES.get(name, {})}


@pytest.mark.gpu
@pytest.mark.usefixtures("equal_draws")
class TestMethods:
    @pytest.mark.parametrize("name", [*NAMES, "combine"])
    def test_two_steps_equal_those_on_the_cpu(self, tmp_path: Path, name: str) -> None:
        outcome, expected = scenes.on_both(tmp_path, method=choice(name))
        assert scenes.distance(outcome, expected) < LARGEST

    def test_crd_draws_with_replacement_as_well(self, tmp_path: Path) -> None:
        method = {"name": "crd", "negatives": 400, "mode": "relax"}
        outcome, expected = scenes.on_both(tmp_path, method=method)
        assert scenes.distance(outcome, expected) < LARGEST

    @pytest.mark.parametrize(("task", "name"), DENSE)
    def test_two_steps_on_boxes_or_masks_equal_those_on_the_cpu(
        self, tmp_path: Path, task: str, name: str
    ) -> None:
        on_device, alone = tmp_path / "device", tmp_path / "cpu"
        recipe = dense_scenes.prepare(on_device, task, {"name": name}, scenes.DEVICE)
        outcome = scenes.run(recipe, on_device=True)
        recipe = dense_scenes.prepare(alone, task, {"name": name}, "cpu")
        assert scenes.distance(outcome, scenes.run(recipe, on_device=False)) < LARGEST


def test_every_method_has_a_recipe_that_the_engine_takes() -> None:
    assert {*NAMES, *(name for _, name in DENSE)} == OF_IMAGES.keys()
    for task, name in DENSE:
        recipe = dense_scenes.recipe(task, {"name": name})
        check_config(JobConfig.model_validate(recipe), has_dataset=True)
