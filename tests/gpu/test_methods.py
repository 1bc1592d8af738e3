"""Each method that learns from images: two steps on the device are those on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import scenes
from workers.distill.methods import catalog
from workers.distill.methods.datafree.base import DataFreeMethod

pytestmark = pytest.mark.gpu

NAMES = sorted(n for n, kind in catalog.METHODS.items() if not issubclass(kind, DataFreeMethod))
CHOICES: dict[str, dict[str, Any]] = {
    "crd": {"negatives": 20},
    "combine": {"methods": [{"name": "kd"}, {"name": "fitnet"}, {"name": "rkd"}]},
}
LARGEST = 5e-3
"""Share of the way of two steps that rounding may turn; most methods stay a hundred times below."""


def choice(name: str) -> dict[str, Any]:
    return {"name": name, **CHOICES.get(name, {})}


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
