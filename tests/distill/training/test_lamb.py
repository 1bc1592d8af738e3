"""LAMB against timm's, which was written from the published code of others."""

import copy
from typing import Any

import pytest
import torch
from timm.optim.lamb import Lamb
from torch import nn

from workers.distill.training import lamb

RATE = 0.02
SETTINGS: dict[str, Any] = {"lr": RATE, "betas": (0.8, 0.95), "weight_decay": 0.1}


def network() -> nn.Sequential:
    torch.manual_seed(5)
    made = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    return made.double()


def gradients(made: nn.Module, step: int) -> None:
    images = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step)).double()
    made.zero_grad()
    made(images).square().mean().backward()


def last_weight(made: nn.Sequential) -> torch.Tensor:
    last = made[3]
    assert isinstance(last, nn.Linear)
    return last.weight


def ours(made: nn.Module) -> lamb.LAMB:
    return lamb.LAMB(list(made.parameters()), **SETTINGS)


class TestLAMB:
    def test_moves_weights_as_timm_does(self) -> None:
        one, other = network(), network()
        mine = ours(one)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in other.parameters() if p.dim() > 1]},
            {"params": [p for p in other.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        theirs = Lamb(groups, **SETTINGS, max_grad_norm=None)
        for step in range(5):
            for made, optimizer in ((one, mine), (other, theirs)):
                gradients(made, step)
                optimizer.step()
        for mine_one, their_one in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(mine_one, their_one, rtol=1e-10, atol=1e-12)

    def test_a_step_of_a_weight_is_as_long_as_the_weight_times_the_rate(self) -> None:
        made = network()
        before = copy.deepcopy(made)
        optimizer = ours(made)
        gradients(made, 0)
        optimizer.step()
        started = last_weight(before).detach()
        moved = last_weight(made).detach() - started
        expected = RATE * float(started.norm())
        assert float(moved.norm()) == pytest.approx(expected, rel=1e-9)

    def test_a_weight_of_zeros_moves_by_the_rate_alone(self) -> None:
        weight = nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.ones(2, 2)
        lamb.LAMB([weight], **SETTINGS).step()
        assert torch.allclose(weight, torch.full((2, 2), -RATE), rtol=1e-4)

    def test_leaves_alone_what_has_no_gradient(self) -> None:
        made = network()
        before = last_weight(made).clone()
        last_weight(made).requires_grad_(False)
        optimizer = ours(made)
        gradients(made, 0)
        optimizer.step()
        assert torch.equal(last_weight(made), before)
        assert last_weight(made) not in optimizer.state
