"""Our own detectors: torchvision's heads on a pyramid over a small or a timm backbone.

Sources: FCOS, Tian et al., ICCV 2019, arXiv:1904.01355; RetinaNet, Lin et al., ICCV 2017,
arXiv:1708.02002; Faster R-CNN, Ren et al., NeurIPS 2015, arXiv:1506.01497, with the pyramid of
arXiv:1612.03144.
Differs: images of up to 128 pixels a side get finer levels and smaller anchors, as objects in them
are small; RetinaNet's head has group norms, as torchvision's second version and FCOS have.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from torch import nn

from workers.distill.config import pyramids as rules
from workers.distill.networks import interface
from workers.distill.networks.dense import detectors, distribution_head, pyramids

NMS_THRESHOLD = 0.5
ASPECT_RATIOS = (0.5, 1.0, 2.0)
ROI_SIDE = 7

AnchorSize = Annotated[int, pydantic.Field(ge=2, le=4096, multiple_of=2)]


class Arguments(pyramids.Arguments):
    """Arguments of every own detector."""

    levels: int | None = pydantic.Field(
        None,
        ge=1,
        le=5,
        description="How many of the pyramid's maps are read, the finest first: strides 4, 8, 16. "
        "2 by default for images of up to 128 pixels a side, up to 4 for larger ones.",
    )
    anchor_sizes: list[AnchorSize] | None = pydantic.Field(
        None,
        min_length=1,
        max_length=5,
        description="Side in pixels of the anchors of each level, finest first. FCOS: a level "
        "takes boxes whose farthest side is 4 to 8 times as far away.",
    )
    detections_per_image: int = pydantic.Field(
        100, ge=1, le=1000, description="Most boxes of an image."
    )
    score_threshold: float = pydantic.Field(
        0.05, ge=0, lt=1, description="Boxes with a lower score are left out."
    )
    agnostic_nms: bool = pydantic.Field(
        False,
        description="Leave out a box that overlaps a better one of any class by more than half; "
        "false: of its own class alone. COCO's figures expect false. torchvision's own class, into "
        "which the weights load, knows no such choice.",
    )


class FCOSArguments(Arguments):
    """Arguments of `retort/fcos`."""

    head_convs: int = pydantic.Field(
        2, ge=1, le=8, description="Convolutions of each branch of the head before its last layer."
    )
    reg_max: int | None = pydantic.Field(
        None,
        ge=4,
        le=64,
        description="Predict a distribution over the distances 0 to reg_max of each side of a box, "
        "in anchor sizes of its level (16 is usual; farther sides are cut to it); null: the "
        "distances themselves. Method ld needs it, of both networks.",
    )


class RetinaNetArguments(Arguments):
    """Arguments of `retort/retinanet`."""

    head_convs: int = pydantic.Field(
        4, ge=1, le=4, description="Convolutions of each branch of the head before its last layer."
    )


class FasterRCNNArguments(Arguments):
    """Arguments of `retort/fasterrcnn`."""

    representation_size: int = pydantic.Field(
        256, ge=1, le=4096, description="Width of the two layers that classify a proposal."
    )
    box_batch_size_per_image: int | None = pydantic.Field(
        None,
        ge=1,
        le=2048,
        description="Proposals of an image that are learned from. 64 by default for images of up "
        "to 128 pixels a side, 512 for larger ones.",
    )
    rpn_post_nms_top_n_train: int | None = pydantic.Field(
        None,
        ge=1,
        le=4000,
        description="Proposals of an image that are drawn from in training. 200 by default for "
        "images of up to 128 pixels a side, 2000 for larger ones.",
    )


def build_fcos(accepted: FCOSArguments, sizes: interface.Sizes) -> detectors.Detector:
    """Build a detector that predicts one box per location; fresh weights."""
    library: Any = importlib.import_module("torchvision.models.detection.fcos")
    pyramid, strides, found = _pyramid(accepted, sizes, rules.FCOS)
    anchors = _anchors([(size,) for size in found], (1.0,))
    head = library.FCOSHead(pyramid.out_channels, 1, sizes.classes, accepted.head_convs)
    if accepted.reg_max is not None:
        sides = (sizes.height, sizes.width)
        pyramids.refuse(
            rules.FCOS, rules.of_reach("student", rules.FCOS, accepted.reg_max, found[-1], sides)
        )
        head = distribution_head.DistributionHead(head, accepted.reg_max)
    network = library.FCOS(
        pyramid,
        sizes.classes,
        anchor_generator=anchors,
        head=head,
        **_keywords(accepted, sizes, strides),
    )
    return _adopted(network, accepted, sizes, strides)


def build_retinanet(accepted: RetinaNetArguments, sizes: interface.Sizes) -> detectors.Detector:
    """Build a detector that predicts nine boxes per location; fresh weights."""
    library: Any = importlib.import_module("torchvision.models.detection.retinanet")
    pyramid, strides, found = _pyramid(accepted, sizes, rules.RETINANET)
    octave = [tuple(int(size * 2 ** (step / 3)) for step in range(3)) for size in found]
    anchors = _anchors(octave, ASPECT_RATIOS)
    head = library.RetinaNetHead(
        pyramid.out_channels,
        anchors.num_anchors_per_location()[0],
        sizes.classes,
        norm_layer=functools.partial(nn.GroupNorm, 32),
    )
    for branch in (head.classification_head, head.regression_head):
        branch.conv = branch.conv[: accepted.head_convs]
    network = library.RetinaNet(
        pyramid,
        sizes.classes,
        anchor_generator=anchors,
        head=head,
        **_keywords(accepted, sizes, strides),
    )
    return _adopted(network, accepted, sizes, strides)


def build_fasterrcnn(accepted: FasterRCNNArguments, sizes: interface.Sizes) -> detectors.Detector:
    """Build a detector that classifies proposals; fresh weights."""
    library: Any = importlib.import_module("torchvision.models.detection.faster_rcnn")
    pooler: Any = importlib.import_module("torchvision.ops").MultiScaleRoIAlign
    pyramid, strides, found = _pyramid(accepted, sizes, rules.FASTER_RCNN)
    is_small = rules.is_small((sizes.height, sizes.width))
    drawn = accepted.rpn_post_nms_top_n_train or (200 if is_small else 2000)
    width = accepted.representation_size
    network = library.FasterRCNN(
        pyramid,
        rpn_anchor_generator=_anchors([(size,) for size in found], ASPECT_RATIOS),
        rpn_post_nms_top_n_train=drawn,
        rpn_post_nms_top_n_test=min(drawn, 1000),
        box_roi_pool=pooler(
            featmap_names=[str(index) for index in range(pyramid.levels)],
            output_size=ROI_SIDE,
            sampling_ratio=2,
            # The side of a box that is pooled at stride 16.
            canonical_scale=56 if is_small else 224,
        ),
        box_head=library.TwoMLPHead(pyramid.out_channels * ROI_SIDE**2, width),
        box_predictor=library.FastRCNNPredictor(width, sizes.classes + 1),
        box_batch_size_per_image=accepted.box_batch_size_per_image or (64 if is_small else 512),
        **_keywords(accepted, sizes, strides, prefix="box_"),
    )
    return _adopted(network, accepted, sizes, strides)


def _pyramid(
    accepted: Arguments, sizes: interface.Sizes, reference: str
) -> tuple[pyramids.Pyramid, tuple[int, ...], list[int]]:
    """Return a pyramid, the strides of all maps of its backbone, and its levels' anchor sizes."""
    sides = (sizes.height, sizes.width)
    pyramid, strides = pyramids.build(
        accepted,
        sizes.channels,
        levels=accepted.levels,
        most=rules.most_levels(sides),
        reference=reference,
    )
    found = rules.default_sizes(reference, strides[: pyramid.levels], sides)
    if accepted.anchor_sizes is not None:
        found = list(accepted.anchor_sizes)
        faults = rules.of_anchor_sizes("student", reference, found, pyramid.levels)
        pyramids.refuse(reference, faults)
    return pyramid, strides, found


def _anchors(sizes: Sequence[tuple[int, ...]], ratios: tuple[float, ...]) -> Any:
    generator: Any = importlib.import_module("torchvision.models.detection.anchor_utils")
    return generator.AnchorGenerator(tuple(sizes), (ratios,) * len(sizes))


def _keywords(
    accepted: Arguments, sizes: interface.Sizes, strides: Sequence[int], *, prefix: str = ""
) -> dict[str, Any]:
    """Return which detections are chosen, and a transform that changes nothing but the padding.

    So the plain class gives the same detections for normalised images of the network's size.
    """
    return {
        f"{prefix}score_thresh": accepted.score_threshold,
        f"{prefix}nms_thresh": NMS_THRESHOLD,
        f"{prefix}detections_per_img": accepted.detections_per_image,
        "min_size": min(sizes.height, sizes.width),
        "max_size": max(sizes.height, sizes.width),
        "image_mean": [0.0] * sizes.channels,
        "image_std": [1.0] * sizes.channels,
        "size_divisible": strides[-1],
    }


def _adopted(
    module: nn.Module, accepted: Arguments, sizes: interface.Sizes, strides: Sequence[int]
) -> detectors.Detector:
    network = detectors.adopt(
        module,
        classes=sizes.classes,
        channels=sizes.channels,
        size=(sizes.height, sizes.width),
    )
    network.agnostic_nms = accepted.agnostic_nms
    network.smallest_batch = pyramids.smallest_batch(strides, sizes)
    return network
