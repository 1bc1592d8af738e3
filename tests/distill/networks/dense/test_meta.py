"""Sizes of maps and of weights are known without computing either."""

import torch
from torch import nn

from workers.distill.networks import interface
from workers.distill.networks.dense import meta


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"half": self.norm(self.conv(images))}


class TestMaps:
    def test_have_sizes_alone_and_leave_the_module_as_it_was(self) -> None:
        module = Halves()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        found = meta.maps(module, 2, (16, 20))
        assert found["half"].is_meta
        assert found["half"].shape == (1, 3, 8, 10)
        assert module.training
        assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())


class TestWithoutDraws:
    def test_leaves_everything_but_the_values(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        with torch.device("meta"), meta.WithoutDraws():
            conv = nn.Conv2d(2, 3, 3)
            kept = nn.init.normal_(conv.weight)
        assert kept is conv.weight
        assert kept.is_meta
        assert kept.shape == (3, 2, 3, 3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_ends_with_its_block(self) -> None:
        with meta.WithoutDraws():
            weight = nn.init.normal_(torch.zeros(2))
        assert torch.equal(weight, torch.zeros(2))
        assert nn.init.normal_(weight).abs().sum() > 0


class TestStage:
    def test_strides_are_powers_of_two_whatever_padding_lost(self) -> None:
        for side, stride in ((38, 8), (19, 16), (10, 32), (1, 256)):
            found = meta.stage(torch.zeros(1, 7, side, side), 300)
            assert found == interface.StageInfo(7, stride)
