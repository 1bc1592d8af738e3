"""Residual networks for small images, named `resnet<depth>` and `resnet<depth>x4`.

Parameter names and shapes equal those of the checkpoints that RepDistiller and MDistiller
publish, so such a file loads as it is. Source: He et al., CVPR 2016, arXiv:1512.03385, section 4.2.
Differs: projections instead of zero-padded shortcuts, as in those repositories; pooling adapts to
the size of the last map, which equals their fixed 8x8 pooling at 32x32.
"""

from collections.abc import Sequence
from typing import Annotated

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface

STRIDES = (1, 2, 2)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; shows the sum before the last activation too."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def residual_sum(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output before its last activation."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        hidden = functional.relu(self.bn1(self.conv1(maps)))
        total: Tensor = self.bn2(self.conv2(hidden)) + shortcut
        return total

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output."""
        return functional.relu(self.residual_sum(maps))


class ResNet(interface.Network):
    """Stem, three stages of basic blocks, average pooling and a linear classifier."""

    def __init__(self, *, blocks: int, widths: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, stages[0], blocks, STRIDES[0])
        self.layer2 = _stage(stages[0], stages[1], blocks, STRIDES[1])
        self.layer3 = _stage(stages[1], stages[2], blocks, STRIDES[2])
        self.fc = nn.Linear(stages[2], classes)
        self.pooled_width = stages[2]
        self.stages_info = tuple(
            interface.StageInfo(width, stride)
            for width, stride in zip(stages, (1, 2, 4), strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the logits."""
        return self.observe(images).logits

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and what stood before their activations."""
        stem = functional.relu(self.bn1(self.conv1(images)))
        maps, stages, pre_activations = stem, [], []
        for stage in (self.layer1, self.layer2, self.layer3):
            before, maps = _walk(stage, maps)
            pre_activations.append(before)
            stages.append(maps)
        pooled = maps.mean(dim=(2, 3))
        return interface.Features(
            logits=self.fc(pooled),
            pooled=pooled,
            stem=stem,
            stages=tuple(stages),
            pre_activations=tuple(pre_activations),
            final=maps,
        )

    def pooled_classifier(self) -> nn.Linear:
        """Return the last layer, `fc`."""
        return self.fc

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the norm of each stage's last block, which the shortcut is added to."""
        return tuple(stage[-1].bn2 for stage in (self.layer1, self.layer2, self.layer3))  # type: ignore[misc]  # a Sequential hides the names of `Block`


class Arguments(pydantic.BaseModel):
    """Arguments of the narrow networks."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    widths: list[Annotated[int, pydantic.Field(ge=1, le=4096)]] = pydantic.Field(
        [16, 16, 32, 64],
        min_length=4,
        max_length=4,
        description="Channels of the stem and of the three stages.",
    )


class WideArguments(Arguments):
    """Arguments of the `x4` networks: four times the channels, twice the stem."""

    widths: list[Annotated[int, pydantic.Field(ge=1, le=4096)]] = pydantic.Field(
        [32, 64, 128, 256],
        min_length=4,
        max_length=4,
        description="Channels of the stem and of the three stages.",
    )


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(channels_in, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


def _walk(stage: nn.Sequential, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stage's last map before and after its activation."""
    before = maps
    for block in stage:
        # The names of `Block` are known only here: a Sequential hides them from the type checker.
        before = block.residual_sum(maps)  # type: ignore[operator]
        maps = functional.relu(before)
    return before, maps
