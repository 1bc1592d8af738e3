"""Shapes in the engine's signatures are checked while tests run."""

import importlib
import pkgutil

import jaxtyping
import pytest
import torch

from tests import shapes
from workers import distill


class TestShapes:
    @pytest.mark.slow
    def test_of_every_module_can_be_checked(self) -> None:
        for found in pkgutil.walk_packages(distill.__path__, "workers.distill."):
            # A former name warns when it is imported, which its own test expects.
            if not found.name.endswith(("__main__", "distill.weights")):
                importlib.import_module(found.name)
        engine = [one for one in shapes.FUNCTIONS if one.__module__.startswith("workers.distill.")]
        assert len(engine) > 1000
        for function in engine:
            shapes.check_of(function)  # raises for hints that nothing can check

    @pytest.mark.slow
    @pytest.mark.parametrize("pooled", [(2, 3, 4), (3, 4)])  # other dimensions, other rows
    def test_that_are_wrong_do_not_survive(self, pooled: tuple[int, ...]) -> None:
        from workers.distill.networks import interface

        jaxtyping.config.update("jaxtyping_disable", False)  # as in every test that is not slow
        with pytest.raises(jaxtyping.TypeCheckError):
            interface.Features(logits=torch.zeros(2, 3), pooled=torch.zeros(pooled))
