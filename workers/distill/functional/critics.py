"""A critic of maps of classes, and the Wasserstein losses by which it and a student learn.

Sources: Liu et al., CVPR 2019, arXiv:1903.04197, section 3.3 (the critic of maps); Gulrajani et
al., NeurIPS 2017, arXiv:1704.00028 (gradient penalty); Zhang et al., ICML 2019, arXiv:1805.08318
(self-attention).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOST_LAYERS = 4
ATTENDING_LAYERS = 2
"""The last ones are followed by self-attention."""
ATTENTION_SHARE = 8
SLOPE = 0.1
SMALLEST_SQUARE = 1e-12


class SelfAttention(nn.Module):
    """Add to each position what it attends to at all others; nothing at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // ATTENTION_SHARE)
        self.query, self.key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        """Return maps of the same shape."""
        query, key, value = (part(maps).flatten(2) for part in (self.query, self.key, self.value))
        shares = (query.mT @ key).softmax(2)
        attended: Tensor = (value @ shares.mT).view_as(maps)
        return maps + self.scale * attended


class MapCritic(nn.Module):
    """Score maps of classes: high for those of a teacher, low for those of a student.

    Layers halve the maps until two pixels are left of the shorter side, at most `MOST_LAYERS`.
    """

    def __init__(self, classes: int, *, height: int, width: int, channels: int) -> None:
        """Build for maps of about this size; the first layer has so many channels."""
        super().__init__()
        count = min(max(1, int(math.log2(min(height, width))) - 1), MOST_LAYERS)
        layers: list[nn.Module] = []
        given = classes
        for index in range(count):
            wanted = channels * 2**index
            layers += [nn.Conv2d(given, wanted, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            if count - index <= ATTENDING_LAYERS:
                layers.append(SelfAttention(wanted))
            given = wanted
        self.layers = nn.Sequential(*layers)
        self.score = nn.Conv2d(given, 1, 1)

    def forward(self, maps: Float[Tensor, "N C h w"]) -> Float[Tensor, " N"]:
        """Return the score of each image: the mean of its positions."""
        scores: Tensor = self.score(self.layers(maps)).mean((1, 2, 3))
        return scores


def student_loss(critic: nn.Module, student: Float[Tensor, "N C h w"]) -> Float[Tensor, ""]:
    """Return minus the mean score of a student's maps; the critic gets no gradient."""
    fixed = {name: value.detach() for name, value in critic.named_parameters()}
    scores: Tensor = torch.func.functional_call(critic, fixed, (student,))
    return -scores.mean()


def critic_loss(
    critic: nn.Module,
    student: Float[Tensor, "N C h w"],
    teacher: Float[Tensor, "N C h w"],
    mixed: Float[Tensor, "N C h w"],
    *,
    penalty_weight: float,
) -> Float[Tensor, ""]:
    """Return the score of the student's maps minus the teacher's, and the weighted penalty.

    The penalty is the squared distance from 1 of the length of the score's gradient at `mixed`,
    maps between both. Student and teacher get no gradient.
    """
    gap: Tensor = critic(student.detach()).mean() - critic(teacher.detach()).mean()
    return gap + penalty_weight * gradient_penalty(critic, mixed)


def gradient_penalty(critic: nn.Module, mixed: Float[Tensor, "N C h w"]) -> Float[Tensor, ""]:
    """Return the mean of (length of the score's gradient by an image's map - 1)^2."""
    mixed = mixed.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    # A root of 0 has no gradient that is a number.
    lengths = gradient.square().flatten(1).sum(1).clamp_min(SMALLEST_SQUARE).sqrt()
    return (lengths - 1).square().mean()
