"""Our own segmenter: a light head on a pyramid over a small or a timm backbone.

The maps of all levels are enlarged to the finest one and added up; two 3x3 convolutions, each with
batch norm and a rectifier, and a 1x1 convolution follow; the logits are enlarged to the image.
Source: Kirillov et al., CVPR 2019, arXiv:1901.02446, section 3.2 (Panoptic FPN).
Differs: levels are enlarged in one step, not by a convolution for each doubling.
"""

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.dense import detectors, pyramids

REFERENCE = "retort/segmenter"
MOST_LEVELS = 4
"""Strides 4, 8, 16 and 32."""


class PyramidSegmenter(interface.Network):
    """Backbone, pyramid and head; the pyramid's maps are the stages, finest first."""

    task = "segmentation"

    def __init__(self, pyramid: pyramids.Pyramid, strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        width = pyramid.out_channels
        self.backbone = pyramid
        self.head = nn.Sequential(*_layer(width), *_layer(width))
        self.classifier = nn.Conv2d(width, classes, 1)
        self.multiple = strides[-1]
        self.pooled_width = width
        self.stages_info = tuple(
            interface.StageInfo(width, stride) for stride in strides[: pyramid.levels]
        )
        for module in self.head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]  # a layer may have none

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C h w"]:
        """Return the logits of every pixel."""
        return self.observe(images).logits

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, also before they are upsampled, an embedding and the pyramid's maps."""
        height, width = images.shape[2:]
        # Cells of the maps then cover the image without a remainder.
        larger = detectors.padded(images, self.multiple)
        stages = tuple(self.backbone(larger).values())
        fused = stages[0]
        for stage in stages[1:]:
            fused = fused + _resized(stage, (fused.shape[2], fused.shape[3]))
        last = self.head(fused)
        coarse = self.classifier(last)
        logits = _resized(coarse, (larger.shape[2], larger.shape[3]))[:, :, :height, :width]
        return interface.Features(
            logits=logits,
            pooled=last.mean(dim=(2, 3)),
            stages=stages,
            final=last,
            coarse_logits=coarse,
        )


class Arguments(pyramids.Arguments):
    """Arguments of this network."""

    fpn_channels: int = pydantic.Field(
        64, ge=1, le=1024, description="Channels of the pyramid's maps and of the head."
    )


def build(accepted: Arguments, sizes: interface.Sizes) -> PyramidSegmenter:
    """Build a network with fresh weights."""
    pyramid, strides = pyramids.build(
        accepted, sizes.channels, levels=None, most=MOST_LEVELS, reference=REFERENCE
    )
    network = PyramidSegmenter(pyramid, strides, sizes.classes)
    network.smallest_batch = pyramids.smallest_batch(strides, sizes)
    return network


def _layer(width: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
