"""Backbones with a feature pyramid, for our own detectors and our own segmenter.

The pyramid is torchvision's; its top-down path starts at the backbone's coarsest map, whichever of
its levels are read.
Source: Lin et al., CVPR 2017, arXiv:1612.03144, section 3.
"""

import importlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config import pyramids as rules
from workers.distill.config.rules import Violation
from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, resnet

SMALL_RESNET = rules.SMALL_RESNET
FIRST_STRIDE = 4
"""Finer maps are left out: a pyramid over them costs more than the rest of a network."""


class SmallResNet(nn.Module):
    """A stem and three stages of basic blocks; all four halve the map.

    Channels are width, 2, 4 and 4 times the width. Source: He et al., CVPR 2016, arXiv:1512.03385.
    """

    def __init__(self, *, width: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.channels = widths[1:]
        for index in range(3):
            self.add_module(
                f"layer{index + 1}",
                nn.Sequential(
                    resnet.BasicBlock(widths[index], widths[index + 1], 2),
                    *(
                        resnet.BasicBlock(widths[index + 1], widths[index + 1], 1)
                        for _ in range(blocks - 1)
                    ),
                ),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "N c h w"]) -> list[Tensor]:
        """Return the maps of the stages, at strides 4, 8 and 16."""
        maps = nn.functional.relu(self.bn1(self.conv1(images)))
        stages = []
        for index in range(3):
            maps = self.get_submodule(f"layer{index + 1}")(maps)
            stages.append(maps)
        return stages


class Pyramid(nn.Module):
    """A backbone, and a pyramid whose finest `levels` maps are returned by name."""

    def __init__(
        self, body: nn.Module, channels: Sequence[int], *, out_channels: int, levels: int
    ) -> None:
        super().__init__()
        self.body = body
        fpn: Any = importlib.import_module("torchvision.ops").FeaturePyramidNetwork
        self.fpn = fpn(list(channels), out_channels)
        for index in range(levels, len(channels)):
            # Levels that nobody reads have no output layer, which would never be trained.
            self.fpn.layer_blocks[index] = nn.Identity()
        self.levels = levels
        self.out_channels = out_channels

    def forward(self, images: Float[Tensor, "N c h w"]) -> dict[str, Tensor]:
        """Return the maps, finest first, under the names "0", "1"..."""
        named = OrderedDict((str(index), maps) for index, maps in enumerate(self.body(images)))
        found: dict[str, Tensor] = self.fpn(named)
        return {name: found[name] for name in list(found)[: self.levels]}


class Arguments(arguments.Arguments):
    """Arguments of a backbone with a pyramid."""

    backbone: str = pydantic.Field(
        SMALL_RESNET,
        pattern=r"^(small_resnet|timm/[A-Za-z0-9_]{1,80})$",
        description="`small_resnet`, or `timm/<name>` for a convolutional network of timm.",
    )
    width: int = pydantic.Field(
        24, ge=1, le=512, description="Channels of the stem of `small_resnet`."
    )
    blocks: int = pydantic.Field(
        2, ge=1, le=16, description="Residual blocks of each stage of `small_resnet`."
    )
    fpn_channels: int = pydantic.Field(
        64, ge=32, le=1024, multiple_of=32, description="Channels of the pyramid's maps."
    )


def build(
    accepted: Arguments, channels: int, *, levels: int | None, most: int, reference: str
) -> tuple[Pyramid, tuple[int, ...]]:
    """Return a pyramid of `levels` maps, and the strides of all maps of its backbone.

    Where `levels` is None, all maps are read, but no more than `most`. Raises `UnknownNetwork` when
    the backbone does not exist, has no maps for a pyramid or fewer than `levels`.
    """
    body, widths, strides = _body(accepted, channels, reference)
    count = min(most, len(strides)) if levels is None else levels
    refuse(reference, rules.of_levels("student", reference, count, accepted.backbone, strides))
    pyramid = Pyramid(body, widths, out_channels=accepted.fpn_channels, levels=count)
    return pyramid, strides


def refuse(reference: str, violations: Iterator[Violation]) -> None:
    """Raise `UnknownNetwork` for the first argument that is wrong, if there is one."""
    for violation in violations:
        argument = violation.field.rpartition("/")[2]
        raise errors.UnknownNetwork(violation.message, network=reference, argument=argument)


def smallest_batch(strides: Sequence[int], sizes: interface.Sizes) -> int:
    """Return 2 where the coarsest map has one pixel, over which a batch norm learns nothing."""
    return 2 if max(sizes.height, sizes.width) <= strides[-1] else 1


def _body(
    accepted: Arguments, channels: int, reference: str
) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    if accepted.backbone == SMALL_RESNET:
        small = SmallResNet(width=accepted.width, blocks=accepted.blocks, channels=channels)
        return small, small.channels, rules.SMALL_STRIDES
    timm = importlib.import_module("timm")
    name = accepted.backbone.partition("/")[2]
    if name not in timm.list_models():
        raise _refused(reference, f"timm has no network {name!r}")
    try:
        with torch.device("meta"):
            whole: Any = timm.create_model(name, pretrained=False, features_only=True)
        maps = whole.feature_info
        chosen = [index for index, stride in enumerate(maps.reduction()) if stride >= FIRST_STRIDE]
        strides = tuple(maps.reduction()[index] for index in chosen)
        if not strides or strides != tuple(FIRST_STRIDE * 2**step for step in range(len(strides))):
            found = ", ".join(map(str, maps.reduction()))
            raise _refused(
                reference,
                f"a pyramid needs maps at strides 4, 8, 16..., and {name} has them at {found}",
            )
        body: Any = timm.create_model(
            name, pretrained=False, in_chans=channels, features_only=True, out_indices=chosen
        )
    except errors.UnknownNetwork:
        raise
    # What timm raises for networks without maps is not documented.
    except (
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise _refused(reference, f"timm cannot return the maps of {name}: {error}") from error
    return body, tuple(body.feature_info.channels()), strides


def _refused(reference: str, reason: str) -> errors.UnknownNetwork:
    return errors.UnknownNetwork(
        f"{reference} does not accept argument 'backbone': {reason}; choose a convolutional "
        "network of timm such as timm/resnet18, or small_resnet",
        network=reference,
        argument="backbone",
    )
