"""What was measured of methods, as the service reads it."""

import typing

import pytest

from models_registry import catalog
from models_registry.jobs import measured_methods
from workers.distill.config import descriptions


class TestFigures:
    def test_are_of_tasks_and_methods_that_there_are(self) -> None:
        figures = measured_methods.figures()
        assert set(figures) <= set(typing.get_args(descriptions.Task))
        for task, section in figures.items():
            assert section["made_with"].startswith("python -m benchmarks.")
            for name, by_balance in section["methods"].items():
                assert task in catalog.load().methods[name]["tasks"]
                for balance in by_balance:
                    found = measured_methods.of(name, balance=balance, task=task)
                    assert found is not None
                    assert found.lowest <= found.difference
                    assert min(found.seeds, found.pairs) >= 1

    @pytest.mark.parametrize("task", ["embedding", None])
    def test_are_unknown_for_other_tasks(self, task: str | None) -> None:
        assert measured_methods.of("pkd", balance="auto", task=task) is None
        assert measured_methods.measured_on(task) is None

    def test_of_a_method_without_balance_are_the_only_ones(self) -> None:
        found = measured_methods.of("simkd", balance=None, task="classification")
        assert found is not None
        assert found == measured_methods.of("simkd", balance="auto", task="classification")
        assert measured_methods.of("pkd", balance="published", task="segmentation") is None
