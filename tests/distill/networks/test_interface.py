"""`Tap` records, and leaves nothing behind."""

import pytest
import torch
from torch import nn

from workers.distill.networks import interface


def a_module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


class TestTap:
    def test_records_what_modules_receive_and_return(self) -> None:
        module, batch = a_module(), torch.ones(2, 3)
        with interface.Tap(module, ["0"], inputs=["2"]) as tap:
            module(batch)
        assert torch.equal(tap.outputs["0"], module[0](batch))
        assert torch.equal(tap.inputs["2"], module[1](module[0](batch)))

    def test_removes_its_hooks_even_after_an_error(self) -> None:
        module = a_module()
        with pytest.raises(RuntimeError), interface.Tap(module, ["0"], inputs=["2"]):
            module(torch.ones(2, 5))
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())

    def test_names_the_module_that_does_not_exist(self) -> None:
        with pytest.raises(KeyError, match="no module named 'layer9'"):
            interface.Tap(a_module(), ["layer9"])


class TestNetwork:
    def test_says_which_class_shows_nothing(self) -> None:
        with pytest.raises(NotImplementedError, match="Network does not return features"):
            interface.Network().observe(torch.zeros(1, 1, 8, 8))
