import pytest
import torch
from torch import nn

from workers.distill.functional import critics


class Linear(nn.Module):
    """A critic whose gradient by a map is its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return (maps.flatten(1) * self.weight).sum(1)


def maps(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 2, 1, 1)


class TestLosses:
    def test_of_a_linear_critic_are_known(self) -> None:
        critic, student, teacher = Linear(), maps(1, 0, 0, 1).requires_grad_(), maps(2, 2, 0, 0)
        found = critics.critic_loss(critic, student, teacher, teacher, penalty_weight=10.0)
        # (3 + 4) / 2 - (14 + 0) / 2 + 10 * (5 - 1)^2
        assert float(found.detach()) == pytest.approx(3.5 - 7 + 160)
        assert float(critics.student_loss(critic, student).detach()) == pytest.approx(-3.5)

    def test_the_gradient_of_the_penalty_is_right(self) -> None:
        torch.manual_seed(0)
        critic = critics.MapCritic(2, height=4, width=4, channels=2).double()
        given = torch.randn(1, 2, 4, 4, dtype=torch.float64)
        names = [name for name, _ in critic.named_parameters()]

        def penalty(*values: torch.Tensor) -> torch.Tensor:
            class Bound(nn.Module):
                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    scores: torch.Tensor = torch.func.functional_call(
                        critic, dict(zip(names, values, strict=True)), (x,)
                    )
                    return scores

            return critics.gradient_penalty(Bound(), given)

        assert torch.autograd.gradcheck(penalty, tuple(critic.parameters()))


class TestMapCritic:
    @pytest.mark.parametrize(("side", "layers"), [(1, 1), (8, 2), (64, 4), (500, 4)])
    def test_has_as_many_layers_as_the_maps_allow(self, side: int, layers: int) -> None:
        critic = critics.MapCritic(3, height=side, width=side + 3, channels=2)
        assert sum(isinstance(part, nn.Conv2d) for part in critic.layers) == layers
        assert critic(torch.zeros(2, 3, min(side, 64), min(side, 64))).shape == (2,)

    def test_attention_is_silent_at_first(self) -> None:
        attention = critics.SelfAttention(4)
        given = torch.randn(2, 4, 3, 3)
        assert torch.equal(attention(given), given)
        nn.init.ones_(attention.scale)
        assert not torch.equal(attention(given), given)
