"""Model cards that were issued before the engine moved still load their student."""

import importlib

import pytest

from workers.distill.networks import weights


def test_the_former_import_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match=r"networks\.weights"):
        former = importlib.import_module("workers.distill.weights")
    assert former.rebuild is weights.rebuild
