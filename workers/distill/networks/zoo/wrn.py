"""Wide residual networks for small images, named `wrn_<depth>_<factor>`.

Norm and activation precede each convolution, so a stage ends in a sum: `stages` are these sums, and
`pre_activations` the next norm's outputs for them. Parameter names and shapes equal those of the
checkpoints that RepDistiller and MDistiller publish.
Source: Zagoruyko, Komodakis, BMVC 2016, arXiv:1605.07146, section 2.
Differs: no dropout; pooling adapts to the size of the last map. Pre-activations are the values of
the forward pass itself: those repositories normalise it a second time, which updates the running
statistics of three norms twice in each training step.
"""

from collections.abc import Sequence

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional

STRIDES = (1, 2, 2)


class Block(nn.Module):
    """Norm, activation and 3x3 convolution, twice, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if stride != 1 or channels_in != channels:
            self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def steps(
        self, maps: Float[Tensor, "N c h w"]
    ) -> tuple[Float[Tensor, "N c h w"], Float[Tensor, "N d i j"]]:
        """Return the normed input, before the activation, and the block's output."""
        normed = self.bn1(maps)
        active = functional.relu(normed)
        hidden = functional.relu(self.bn2(self.conv1(active)))
        shortcut = maps if self.convShortcut is None else self.convShortcut(active)
        return normed, shortcut + self.conv2(hidden)

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output."""
        return self.steps(maps)[1]


class Stage(nn.Module):
    """Blocks of one width; the first may halve the map."""

    def __init__(self, channels_in: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = Block(channels_in, channels, stride)
        self.layer = nn.Sequential(
            first, *(Block(channels, channels, 1) for _ in range(blocks - 1))
        )

    def steps(
        self, maps: Float[Tensor, "N c h w"]
    ) -> tuple[Float[Tensor, "N c h w"], Float[Tensor, "N d i j"]]:
        """Return the normed input of the first block, and the output of the last."""
        first, *rest = self.layer
        normed, maps = first.steps(maps)  # type: ignore[operator]  # a Sequential hides the names of `Block`
        for block in rest:
            maps = block(maps)
        return normed, maps

    def first_norm(self) -> nn.BatchNorm2d:
        """Return the first norm of the stage."""
        norm: nn.BatchNorm2d = self.layer[0].bn1  # type: ignore[assignment]  # the same
        return norm


class WRN(convolutional.ConvolutionalNetwork):
    """Stem, three stages with strides 1, 2, 2, a last norm, average pooling, linear classifier."""

    def __init__(self, *, blocks: int, widths: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.block1 = Stage(stem, stages[0], blocks, STRIDES[0])
        self.block2 = Stage(stages[0], stages[1], blocks, STRIDES[1])
        self.block3 = Stage(stages[1], stages[2], blocks, STRIDES[2])
        self.bn1 = nn.BatchNorm2d(stages[2])
        self.fc = nn.Linear(stages[2], classes)
        self.pooled_width = stages[2]
        self.stages_info = convolutional.stages_info(stages, (1, 2, 4))
        convolutional.initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and the next norms' outputs for them."""
        stem = self.conv1(images)
        _, first = self.block1.steps(stem)
        normed_first, second = self.block2.steps(first)
        normed_second, third = self.block3.steps(second)
        normed_third = self.bn1(third)
        final = functional.relu(normed_third)
        return self.features(
            final,
            stem=stem,
            stages=(first, second, third),
            pre_activations=(normed_first, normed_second, normed_third),
        )

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the first norm after each stage."""
        return (self.block2.first_norm(), self.block3.first_norm(), self.bn1)


class Arguments(arguments.Arguments):
    """Arguments of the networks of factor 1."""

    widths: arguments.ThreeStages = pydantic.Field([16, 16, 32, 64])


class WideArguments(Arguments):
    """Arguments of the networks of factor 2."""

    widths: arguments.ThreeStages = pydantic.Field([16, 32, 64, 128])


def build(depth: int, accepted: Arguments, sizes: interface.Sizes) -> WRN:
    """Build a network with fresh weights: depth is six times the blocks of a stage, plus four."""
    return WRN(
        blocks=(depth - 4) // 6,
        widths=accepted.widths,
        classes=sizes.classes,
        channels=sizes.channels,
    )
