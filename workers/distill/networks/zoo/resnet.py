"""Residual networks for small and for large images.

Small: `resnet<depth>` and `resnet<depth>x4` with three stages, `resnet18` and `resnet50` with four;
large: `imagenet_resnet<depth>`. Parameter names and shapes equal those of the checkpoints that
RepDistiller, MDistiller and torchvision publish, so such a file loads as it is.
Source: He et al., CVPR 2016, arXiv:1512.03385, sections 3.3, 4.1 and 4.2.
Differs: projections instead of zero-padded shortcuts, and the stride of a bottleneck in its 3x3
convolution, as in those repositories; pooling adapts to the size of the last map, which equals
their fixed pooling at 32x32 and 224x224.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional

Projection = Literal["downsample", "shortcut"]
Classifier = Literal["fc", "linear"]


class Block(nn.Module):
    """A residual branch and a shortcut; `residual_sum` is their sum before the last activation.

    `projection` is the name of the shortcut's layers in checkpoints.
    """

    expansion = 1

    def __init__(
        self, channels_in: int, width: int, stride: int, projection: Projection = "downsample"
    ) -> None:
        super().__init__()
        self.projection = projection
        self.projects = stride != 1 or channels_in != self.expansion * width
        self._add_branch(channels_in, width, stride)
        if self.projects:
            channels = self.expansion * width
            layers = (
                nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )
            self.add_module(projection, nn.Sequential(*layers))

    def _add_branch(self, channels_in: int, width: int, stride: int) -> None:
        raise NotImplementedError

    def branch(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the residual branch's output, which is added to the shortcut."""
        raise NotImplementedError

    def last_norm(self) -> nn.BatchNorm2d:
        """Return the norm that ends the branch."""
        raise NotImplementedError

    def residual_sum(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output before its last activation."""
        shortcut = getattr(self, self.projection)(maps) if self.projects else maps
        return self.branch(maps) + shortcut

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output."""
        return functional.relu(self.residual_sum(maps))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def _add_branch(self, channels_in: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def branch(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the residual branch's output, which is added to the shortcut."""
        hidden = functional.relu(self.bn1(self.conv1(maps)))
        added: Tensor = self.bn2(self.conv2(hidden))
        return added

    def last_norm(self) -> nn.BatchNorm2d:
        """Return the second norm."""
        return self.bn2


class Bottleneck(Block):
    """A 1x1, a 3x3 and a 1x1 convolution; the last has four times the channels."""

    expansion = 4

    def _add_branch(self, channels_in: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)

    def branch(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the residual branch's output, which is added to the shortcut."""
        hidden = functional.relu(self.bn1(self.conv1(maps)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        added: Tensor = self.bn3(self.conv3(hidden))
        return added

    def last_norm(self) -> nn.BatchNorm2d:
        """Return the third norm."""
        return self.bn3


@dataclass(frozen=True)
class Layout:
    """Blocks, stem and checkpoint names of a residual network.

    The stem of small images is a 3x3 convolution, that of large ones 7x7 with stride 2 and pooling.
    """

    block: type[Block]
    blocks: tuple[int, ...]
    is_for_large_images: bool = False
    projection: Projection = "downsample"
    classifier: Classifier = "fc"


class ResNet(convolutional.ConvolutionalNetwork):
    """Stem and three or four stages that halve the map from the second on; linear classifier."""

    def __init__(
        self, layout: Layout, *, widths: Sequence[int], classes: int, channels: int
    ) -> None:
        super().__init__()
        self.layout = layout
        expansion = layout.block.expansion
        stem, *stages = widths
        self.conv1 = _stem(layout, channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        incoming = (stem, *(expansion * width for width in stages))
        for index, (width, blocks) in enumerate(zip(stages, layout.blocks, strict=True)):
            stride = 1 if index == 0 else 2
            self.add_module(
                f"layer{index + 1}", _stage(layout, incoming[index], width, blocks, stride)
            )
        self.add_module(layout.classifier, nn.Linear(incoming[-1], classes))
        self.classifier_name = layout.classifier
        self.pooled_width = incoming[-1]
        first = 4 if layout.is_for_large_images else 1
        self.stages_info = tuple(
            interface.StageInfo(width, first * 2**index) for index, width in enumerate(incoming[1:])
        )
        convolutional.initialise_convolutions(self)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and pre-activations."""
        stem = functional.relu(self.bn1(self.conv1(images)))
        maps = functional.max_pool2d(stem, 3, 2, 1) if self.layout.is_for_large_images else stem
        stages, pre_activations = [], []
        for stage in self._stages():
            before, maps = _walk(stage, maps)
            pre_activations.append(before)
            stages.append(maps)
        return self.features(maps, stem=stem, stages=stages, pre_activations=pre_activations)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the norm of each stage's last block, which the shortcut is added to."""
        return tuple(stage[-1].last_norm() for stage in self._stages())  # type: ignore[operator]  # a Sequential hides the names of `Block`

    def _stages(self) -> Iterator[nn.Sequential]:
        for index in range(len(self.layout.blocks)):
            yield getattr(self, f"layer{index + 1}")


class Arguments(arguments.Arguments):
    """Arguments of the narrow networks."""

    widths: arguments.ThreeStages = pydantic.Field([16, 16, 32, 64])


class WideArguments(Arguments):
    """Arguments of the `x4` networks: four times the channels, twice the stem."""

    widths: arguments.ThreeStages = pydantic.Field([32, 64, 128, 256])


class FourStageArguments(arguments.Arguments):
    """Arguments of the networks with four stages."""

    widths: list[arguments.Channels] = pydantic.Field(
        [64, 64, 128, 256, 512],
        min_length=5,
        max_length=5,
        description="Channels of the stem and of the four stages; a stage of bottlenecks "
        "ends in four times as many.",
    )


def small(depth: int) -> Layout:
    """Return the layout of a network with three stages: depth is six times the blocks, plus two."""
    return Layout(BasicBlock, ((depth - 2) // 6,) * 3)


def small_with_four_stages(block: type[Block], *blocks: int) -> Layout:
    """Return the layout of a deep network for small images, with its own names."""
    return Layout(block, blocks, projection="shortcut", classifier="linear")


def large(block: type[Block], *blocks: int) -> Layout:
    """Return the layout of a network for large images, with torchvision's names."""
    return Layout(block, blocks, is_for_large_images=True)


def build(
    layout: Layout, accepted: Arguments | FourStageArguments, sizes: interface.Sizes
) -> ResNet:
    """Build a network with fresh weights."""
    return ResNet(layout, widths=accepted.widths, classes=sizes.classes, channels=sizes.channels)


def _stem(layout: Layout, channels: int, width: int) -> nn.Conv2d:
    if layout.is_for_large_images:
        return nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)


def _stage(layout: Layout, channels_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    make, channels = layout.block, layout.block.expansion * width
    first = make(channels_in, width, stride, layout.projection)
    rest = (make(channels, width, 1, layout.projection) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _walk(stage: nn.Sequential, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stage's last map before and after its activation."""
    before = maps
    for block in stage:
        # Sequential hides the type `Block` from the type checker.
        before = block.residual_sum(maps)  # type: ignore[operator]
        maps = functional.relu(before)
    return before, maps
