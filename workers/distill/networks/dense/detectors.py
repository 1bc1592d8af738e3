"""Detectors of torchvision with our network interface.

Our own detectors are built from the same classes, so both are widened here. Parameters keep their
names, so that checkpoints load unchanged; losses, sampling and the choice of detections are the
library's own. Batch norms are live: torchvision's frozen ones, which its published weights were
trained with, have the same keys, so those weights load.
Differs: the library's transform is not used, as images have the network's size and are normalised
already; they are only padded at the bottom and at the right, as it does. Where a head has a column
for background, that column stays inside: classes are 0..K-1. Weights of 2019 and 2020
(`fasterrcnn_resnet50_fpn_coco`, `retinanet_resnet50_fpn_coco`) were trained with an epsilon of 0 in
their frozen batch norms; here it is 1e-5, as for all others.
"""

import copy
import functools
import importlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.data import boxes
from workers.distill.networks import interface
from workers.distill.networks.dense import (
    branches,
    distribution_head,
    meta,
    region_pooling,
    region_proposals,
)

ACCEPTED = ("detections_per_image", "score_threshold")
"""Arguments of torchvision's detectors."""
OTHER_HEADS = ("maskrcnn_", "keypointrcnn_")
"""Detectors that need more than boxes to be trained."""
FIXED_SIZES = {"ssd300_vgg16": (300, 300)}
"""Detectors whose layers and anchors fit one size of image."""

BACKGROUND, IGNORED = -1, -2

Examples = list[dict[str, Tensor]]
"""Boxes and labels of each image, as torchvision takes them."""


def padded(images: Float[Tensor, "N c h w"], multiple: int) -> Float[Tensor, "N c h2 w2"]:
    """Return the images with zeros below and to the right, so that `multiple` divides the sides."""
    below, right = -images.shape[2] % multiple, -images.shape[3] % multiple
    return functional.pad(images, (0, right, 0, below)) if below or right else images


def examples(targets: Float[Tensor, "N M 7"], *, first_class: int, dtype: torch.dtype) -> Examples:
    """Return what is trained on: no padding, no flagged boxes, none without an area."""
    corners = targets[..., boxes.X1 : boxes.Y2 + 1].to(dtype)
    has_area = (corners[..., 2:] > corners[..., :2]).all(dim=-1)
    kept = boxes.is_ordinary(targets) & has_area
    labels = targets[..., boxes.CLASS].long() + first_class
    return [
        {"boxes": corners[index][rows], "labels": labels[index][rows]}
        for index, rows in enumerate(kept)
    ]


def table(
    found: Sequence[Mapping[str, Tensor]], *, rows: int, first_class: int
) -> Float[Tensor, "N D 6"]:
    """Return torchvision's detections, which are sorted by score, as one tensor."""
    shown = found[0]["boxes"].new_zeros(len(found), rows, 6)
    shown[..., 0] = BACKGROUND
    for index, image in enumerate(found):
        count = len(image["scores"])
        shown[index, :count, 0] = (image["labels"] - first_class).to(shown.dtype)
        shown[index, :count, 1] = image["scores"].to(shown.dtype)
        shown[index, :count, 2:] = image["boxes"]
    return shown


def agnostic(
    found: Sequence[Mapping[str, Tensor]], threshold: float
) -> Sequence[Mapping[str, Tensor]]:
    """Return the detections without those that overlap a better one, whatever its class."""
    nms: Any = importlib.import_module("torchvision.ops").nms
    kept = [nms(image["boxes"], image["scores"], threshold) for image in found]
    return [
        {name: values[rows] for name, values in image.items()}
        for image, rows in zip(found, kept, strict=True)
    ]


def _image_list(
    like: Tensor, count: int, image_size: tuple[int, int], size: tuple[int, int]
) -> Any:
    """Return torchvision's list of images; only the size of its tensor is ever read."""
    kind: Any = importlib.import_module("torchvision.models.detection.image_list").ImageList
    return kind(like.new_zeros(()).expand(count, 1, *size), [image_size] * count)


def _on_grids(
    levels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "h w K 4"], ...]:
    return tuple(anchors.view(*size, -1, 4) for anchors, size in zip(levels, sizes, strict=True))


def _at_least_float(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class _ReturnMatches:
    """Stands in for a head whose `compute_loss` is called with the matches of the anchors."""

    def compute_loss(
        self, _targets: Examples, _outputs: Any, _anchors: Any, matches: list[Tensor]
    ) -> list[Tensor]:
        return matches


class DenseOutput:
    """What a head gives for every location or anchor; an `interface.DenseDetectorOutput`.

    Anchors, losses and detections are computed when they are asked for, in float32 or more.
    """

    first_class: ClassVar[int] = 0
    """Number of the library's first class: 1 where column 0 is background."""

    def __init__(
        self,
        network: "DenseDetector",
        outputs: Mapping[str, Tensor],
        maps: Sequence[Tensor],
        *,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
    ) -> None:
        self.image_size = image_size
        self.level_sizes = tuple((level.shape[2], level.shape[3]) for level in maps)
        self.boxes_per_location = tuple(network.anchor_generator.num_anchors_per_location())
        self.outputs = {name: _at_least_float(values) for name, values in outputs.items()}
        self.box_deltas = self.outputs["bbox_regression"]
        centerness = self.outputs.get("bbox_ctrness")
        self.centerness = None if centerness is None else centerness.squeeze(2)
        self.box_distributions = self.outputs.get("bbox_distribution")
        self._network: Any = network
        self._padded_size = padded_size

    @property
    def logits(self) -> Float[Tensor, "N K L"]:
        """Return the logits of the classes, without a background."""
        return self.outputs["cls_logits"][..., self.first_class :].transpose(1, 2)

    @property
    def boxes_per_level(self) -> list[int]:
        """Return how many locations or anchors each level has."""
        sizes = zip(self.level_sizes, self.boxes_per_location, strict=True)
        return [height * width * count for (height, width), count in sizes]

    def anchors(self) -> list[Tensor]:
        """Return the anchors [L, 4] of each image, which are the same for all."""
        deltas = self.box_deltas
        images = _image_list(deltas, len(deltas), self.image_size, self._padded_size)
        # Their sizes alone are read, and the type of number that anchors are to have.
        maps = [deltas.new_zeros(()).expand(1, 1, *size) for size in self.level_sizes]
        # A copy, because it keeps the tensors of its last call, which may be those of a trace.
        generator = copy.copy(self._network.anchor_generator)
        anchors: list[Tensor] = generator(images, maps)
        return anchors

    def losses(self, targets: Float[Tensor, "N M 7"]) -> dict[str, Tensor]:
        """Return the library's losses by their names there."""
        given, anchors = self._examples(targets), self.anchors()
        return self._losses(given, anchors, self._matches(given, anchors))

    def assigned(self, targets: Float[Tensor, "N M 7"]) -> Int[Tensor, "N L"]:
        """Return the class that each location learns: -1 is background, -2 is ignored."""
        given = self._examples(targets)
        classes = []
        for example, matches in zip(given, self._matches(given, self.anchors()), strict=True):
            # One more, so that there is something to look up in an image without boxes.
            labels = torch.cat([example["labels"] - self.first_class, matches.new_zeros(1)])
            classes.append(torch.where(matches >= 0, labels[matches.clamp(min=0)], matches))
        return torch.stack(classes)

    @torch.no_grad()
    def detections(self) -> Float[Tensor, "N D 6"]:
        """Return class, score, x1, y1, x2, y2, sorted by score; padding has class -1."""
        sizes = [self.image_size] * len(self.box_deltas)
        found = self._detected(self.anchors(), sizes)
        if self._network.agnostic_nms:
            found = agnostic(found, self._network.nms_thresh)
        rows = self._network.detections_per_img
        return table(found, rows=rows, first_class=self.first_class)

    def scores(self) -> Float[Tensor, "N L K"]:
        """Return the score of each class at each location, 0 to 1, as the library computes it."""
        return self.outputs["cls_logits"].sigmoid()

    def boxes_from(self, anchors: Float[Tensor, "L 4"]) -> Float[Tensor, "N L 4"]:
        """Return the boxes x1, y1, x2, y2 in pixels, cut off at the image's border.

        `anchors` are those of one image, given so that a graph can hold them as constants.
        """
        height, width = self.image_size
        x1, y1, x2, y2 = self._boxes(anchors).unbind(-1)
        sides = (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height))
        return torch.stack(sides, dim=-1)

    def _boxes(self, anchors: Tensor) -> Tensor:
        deltas = self.box_deltas
        rows = anchors.expand(deltas.shape[0], -1, -1).flatten(0, 1)
        decoded: Tensor = self._network.box_coder.decode_single(deltas.flatten(0, 1), rows)
        return decoded.view_as(deltas)

    def _examples(self, targets: Tensor) -> Examples:
        return examples(targets, first_class=self.first_class, dtype=self.box_deltas.dtype)

    def _matches(self, given: Examples, anchors: list[Tensor]) -> list[Tensor]:
        """Return the box that each anchor learns, per image; negative where there is none."""
        raise NotImplementedError

    def _losses(
        self, given: Examples, anchors: list[Tensor], matches: list[Tensor]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self._network.head.compute_loss(
            given, self.outputs, anchors, matches
        )
        return losses

    def _detected(
        self, anchors: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Sequence[Mapping[str, Tensor]]:
        counts = self.boxes_per_level
        outputs = {
            name: list(torch.split(one, counts, dim=1)) for name, one in self.outputs.items()
        }
        split = [list(torch.split(one, counts)) for one in anchors]
        found: Sequence[Mapping[str, Tensor]] = self._network.postprocess_detections(
            outputs, split, sizes
        )
        return found


class AnchorOutput(DenseOutput):
    """Boxes are coded by anchors; an `interface.AnchoredDetectorOutput`."""

    def level_anchors(self) -> tuple[Float[Tensor, "h w K 4"], ...]:
        """Return the anchors of each level, finest first: x1, y1, x2, y2 in pixels."""
        levels = torch.split(self.anchors()[0], self.boxes_per_level)
        return _on_grids(levels, self.level_sizes)


class BranchedOutput(DenseOutput):
    """Both branches of the head are convolutions; an `interface.BranchedDetectorOutput`."""

    @property
    def head_convs(self) -> int:
        """Return how many convolutions each branch has before its last layer."""
        return branches.depth(self._network.head.classification_head)

    def predicted_boxes(self) -> Float[Tensor, "N L 4"]:
        """Return the box of each location: x1, y1, x2, y2 in pixels."""
        return self._decoded(self.box_deltas)

    def branch_maps(
        self, levels: Sequence[Tensor], convs: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of both branches after so many convolutions, before an activation."""
        head = self._network.head
        return (
            branches.before(head.classification_head, levels, convs),
            branches.before(head.regression_head, levels, convs),
        )

    def predict_from(
        self, class_maps: Sequence[Tensor], box_maps: Sequence[Tensor], convs: int
    ) -> interface.HeadPrediction:
        """Return what the rest of this head says of maps such as `branch_maps` returns."""
        head = self._network.head
        logits = branches.after(head.classification_head, class_maps, convs)
        deltas = self._deltas(branches.after(head.regression_head, box_maps, convs))
        return interface.HeadPrediction(logits.transpose(1, 2), self._decoded(deltas))

    def _deltas(self, output: Any) -> Tensor:
        """Return the deltas [N, L, 4] in what the branch for boxes gives."""
        deltas: Tensor = output
        return deltas

    def _decoded(self, deltas: Tensor) -> Tensor:
        raise NotImplementedError


class FCOSOutput(BranchedOutput):
    """One box per location, with its centerness."""

    def _deltas(self, output: Any) -> Tensor:
        deltas: Tensor = output[0]  # behind it stands the centerness
        is_distribution = self.box_distributions is not None
        return distribution_head.mean_distances(deltas) if is_distribution else deltas

    def _decoded(self, deltas: Tensor) -> Tensor:
        boxes: Tensor = self._network.head.box_coder.decode(deltas, torch.stack(self.anchors()))
        return boxes

    def scores(self) -> Float[Tensor, "N L K"]:
        """Return the geometric mean of class and centerness."""
        centerness = self.outputs["bbox_ctrness"]
        return (self.outputs["cls_logits"].sigmoid() * centerness.sigmoid()).sqrt()

    def _boxes(self, anchors: Tensor) -> Tensor:
        rows = anchors.expand(self.box_deltas.shape[0], -1, -1)
        boxes: Tensor = self._network.box_coder.decode(self.box_deltas, rows)
        return boxes

    def _matches(self, given: Examples, anchors: list[Tensor]) -> list[Tensor]:
        # The library matches inside of its loss, which ends by handing the matches to the head.
        stand_in = SimpleNamespace(
            center_sampling_radius=self._network.center_sampling_radius, head=_ReturnMatches()
        )
        library: Any = importlib.import_module("torchvision.models.detection.fcos").FCOS
        matches: list[Tensor] = library.compute_loss(
            stand_in, given, self.outputs, anchors, self.boxes_per_level
        )
        return matches


class RetinaNetOutput(AnchorOutput, BranchedOutput):
    """Several anchors per location; those that half fit a box are ignored."""

    def _decoded(self, deltas: Tensor) -> Tensor:
        coder = self._network.head.regression_head.box_coder
        flat = coder.decode_single(deltas.flatten(0, 1), torch.cat(self.anchors()))
        boxes: Tensor = flat.view_as(deltas)
        return boxes

    def _matches(self, given: Examples, anchors: list[Tensor]) -> list[Tensor]:
        stand_in = SimpleNamespace(
            proposal_matcher=self._network.proposal_matcher, head=_ReturnMatches()
        )
        library: Any = importlib.import_module("torchvision.models.detection.retinanet").RetinaNet
        matches: list[Tensor] = library.compute_loss(stand_in, given, self.outputs, anchors)
        return matches


class SSDOutput(AnchorOutput):
    """Several anchors per location, and a softmax whose first column is background."""

    first_class = 1

    def scores(self) -> Float[Tensor, "N L K"]:
        """Return the softmax over the classes and the background, without the background."""
        return self.outputs["cls_logits"].softmax(-1)[..., self.first_class :]

    def _matches(self, given: Examples, anchors: list[Tensor]) -> list[Tensor]:
        overlap: Any = importlib.import_module("torchvision.ops").box_iou
        return [
            self._network.proposal_matcher(overlap(example["boxes"], boxes))
            if len(example["boxes"])
            else example["labels"].new_full((len(boxes),), BACKGROUND)
            for example, boxes in zip(given, anchors, strict=True)
        ]

    def _losses(
        self, given: Examples, anchors: list[Tensor], matches: list[Tensor]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self._network.compute_loss(
            given, self.outputs, anchors, matches
        )
        return losses

    def _detected(
        self, anchors: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Sequence[Mapping[str, Tensor]]:
        found: Sequence[Mapping[str, Tensor]] = self._network.postprocess_detections(
            self.outputs, anchors, sizes
        )
        return found


@dataclass(frozen=True)
class _Sampled:
    """Proposals drawn for a batch's targets, and what the network says of them."""

    targets: Tensor
    proposals: interface.Proposals
    labels: list[Tensor]
    box_targets: Any
    logits: Tensor
    deltas: Tensor
    proposal_losses: dict[str, Tensor]


class TwoStageOutput:
    """Maps from which proposals are drawn and classified; an `interface.TwoStageDetectorOutput`.

    Proposals, losses and detections are computed when they are asked for, in float32 or more.
    """

    def __init__(
        self,
        network: "TwoStageDetector",
        maps: Mapping[str, Tensor],
        *,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
    ) -> None:
        self.image_size = image_size
        self._maps = {name: _at_least_float(level) for name, level in maps.items()}
        self._network: Any = network
        first = next(iter(self._maps.values()))
        self._images = len(first)
        self._list = functools.partial(_image_list, first, len(first), image_size, padded_size)
        self._sampled: _Sampled | None = None

    def losses(self, targets: Float[Tensor, "N M 7"]) -> dict[str, Tensor]:
        """Return the library's losses by their names there; raises outside of training mode."""
        sampled = self._sample(targets)
        library: Any = importlib.import_module("torchvision.models.detection.roi_heads")
        classes, boxes = library.fastrcnn_loss(
            sampled.logits, sampled.deltas, sampled.labels, sampled.box_targets
        )
        return {"loss_classifier": classes, "loss_box_reg": boxes, **sampled.proposal_losses}

    def sample_proposals(self, targets: Float[Tensor, "N M 7"]) -> interface.Proposals:
        """Return the proposals that `losses` learns from with equal targets; drawn once a batch."""
        return self._sample(targets).proposals

    def roi_logits(self, proposals: interface.Proposals) -> Float[Tensor, "R C"]:
        """Return logits of K + 1 classes, background last, on this network's own maps."""
        if self._sampled is not None and proposals is self._sampled.proposals:
            logits = self._sampled.logits
        else:
            logits = self._classified(self._own(proposals))[0]
        return torch.cat([logits[:, 1:], logits[:, :1]], dim=1)

    def level_anchors(self) -> tuple[Float[Tensor, "h w K 4"], ...]:
        """Return the anchors of proposals at each level, finest first, in pixels."""
        maps = list(self._maps.values())
        # A copy, as it keeps the tensors of its last call.
        generator = copy.copy(self._network.rpn.anchor_generator)
        (anchors, *_) = generator(self._list(), maps)
        sizes = [(level.shape[2], level.shape[3]) for level in maps]
        per_location = generator.num_anchors_per_location()
        counts = [h * w * count for (h, w), count in zip(sizes, per_location, strict=True)]
        return _on_grids(anchors.split(counts), sizes)

    @torch.no_grad()
    def detections(self) -> Float[Tensor, "N D 6"]:
        """Return class, score, x1, y1, x2, y2, sorted by score; padding has class -1.

        They are those of evaluation mode, except for layers that have already run.
        """
        parts = (self._network.rpn, self._network.roi_heads)
        was_training = [part.training for part in parts]
        try:
            for part in parts:
                part.eval()
            proposals, _ = self._network.rpn(self._list(), self._maps)
            found, _ = self._network.roi_heads(self._maps, proposals, self._sizes())
        finally:
            for part, mode in zip(parts, was_training, strict=True):
                part.train(mode)
        heads = self._network.roi_heads
        if self._network.agnostic_nms:
            found = agnostic(found, heads.nms_thresh)
        return table(found, rows=heads.detections_per_img, first_class=1)

    def _sample(self, targets: Tensor) -> _Sampled:
        kept = self._sampled
        if kept is not None and (kept.targets is targets or torch.equal(kept.targets, targets)):
            return kept
        network = self._network
        if not network.training:
            raise RuntimeError(
                f"{type(network).__name__} samples what it learns from in training mode only; call "
                "train() before observe()"
            )
        dtype = next(iter(self._maps.values())).dtype
        given = examples(targets, first_class=1, dtype=dtype)
        proposed, proposal_losses = network.rpn(self._list(), self._maps, given)
        boxes, _, labels, box_targets = network.roi_heads.select_training_samples(proposed, given)
        logits, deltas = self._classified(boxes)
        numbers = torch.cat(labels) - 1
        # The library's background is its first class; here it comes after the last one.
        shown = torch.where(numbers < 0, logits.shape[1] - 1, numbers)
        self._sampled = _Sampled(
            targets,
            interface.Proposals(tuple(boxes), shown, self.image_size),
            labels,
            box_targets,
            logits,
            deltas,
            proposal_losses,
        )
        return self._sampled

    def _classified(self, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        heads = self._network.roi_heads
        regions = region_pooling.pool(heads.box_roi_pool, self._maps, boxes, self._sizes())
        logits, deltas = heads.box_predictor(heads.box_head(regions))
        return logits, deltas

    def _own(self, proposals: interface.Proposals) -> list[Tensor]:
        """Return the proposals in the pixels of this network's images."""
        (height, width), (own_height, own_width) = proposals.image_size, self.image_size
        if (height, width) == (own_height, own_width):
            return list(proposals.boxes)
        factors = (own_width / width, own_height / height)
        return [boxes * boxes.new_tensor(factors * 2) for boxes in proposals.boxes]

    def _sizes(self) -> list[tuple[int, int]]:
        return [self.image_size] * self._images


class Detector(interface.Network):
    """Mixin for a torchvision class: `observe`, and `forward` with the detections alone."""

    task = "detection"
    agnostic_nms: bool = False
    """Whether boxes suppress each other across classes, after they did so within each class."""
    backbone: nn.Module
    transform: nn.Module

    @property
    def detections_per_image(self) -> int:
        """Return the most detections that an image gets."""
        raise NotImplementedError

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N D 6"]:
        """Return the detections: class, score, x1, y1, x2, y2; padding has class -1."""
        detections: Tensor = self._output(images)[0].detections()
        return detections

    def _output(self, images: Tensor) -> tuple[Any, Mapping[str, Tensor]]:
        """Return the detector's output and the maps of its pyramid, finest first."""
        raise NotImplementedError

    def _maps(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
        """Return the pyramid's maps by name, and the sizes of the images before and after."""
        multiple: Any = self.transform.size_divisible
        larger = padded(images, multiple)
        sizes = {
            "image_size": (images.shape[2], images.shape[3]),
            "padded_size": (larger.shape[2], larger.shape[3]),
        }
        return self.backbone(larger), sizes

    def _features(
        self,
        logits: Tensor | None,
        maps: Mapping[str, Tensor],
        output: interface.DetectorOutput | None,
    ) -> interface.Features:
        stages = tuple(maps.values())
        if logits is None:
            # Empty, but part of the graph, as logits are.
            logits = stages[-1].flatten(2)[:, :1, :0].expand(-1, self.classes, -1)
        return interface.Features(
            logits=logits,
            pooled=stages[-1].mean(dim=(2, 3)),
            stages=stages,
            final=stages[-1],
            detector=output,
        )

    def current_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's tensors under today's names; torchvision 0.12 and before differ."""
        return {_renamed(name, FORMER_NAMES): tensor for name, tensor in state.items()}


class DenseDetector(Detector):
    """Mixin for classes with a head over all maps."""

    head: nn.Module
    anchor_generator: Any
    detections_per_img: int
    output_kind: ClassVar[type[DenseOutput]]
    runs_head: bool = True
    """Whether `observe` computes what the head says; `forward` always does."""

    @property
    def detections_per_image(self) -> int:
        """Return the most detections that an image gets."""
        return self.detections_per_img

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return the logits of all locations or anchors, the pyramid's maps, and the rest."""
        if not self.runs_head:
            return self._features(None, self._maps(images)[0], None)
        output, maps = self._output(images)
        return self._features(output.logits, maps, output)

    def skip_features(self, unused: Collection[str]) -> None:
        """Leave out the head where nobody reads what it says; then there are no logits."""
        self.runs_head = "locations" not in unused

    def _output(self, images: Tensor) -> tuple[DenseOutput, Mapping[str, Tensor]]:
        maps, sizes = self._maps(images)
        levels = list(maps.values())
        return self.output_kind(self, self.head(levels), levels, **sizes), maps


class FCOSDetector(DenseDetector):
    """Mixin for `FCOS`."""

    output_kind = FCOSOutput


class RetinaNetDetector(DenseDetector):
    """Mixin for `RetinaNet`."""

    output_kind = RetinaNetOutput

    def current_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's tensors under today's names; torchvision 0.12 and before differ."""
        found = super().current_names(state)
        return {_renamed(name, FORMER_RETINANET): tensor for name, tensor in found.items()}


class SSDDetector(DenseDetector):
    """Mixin for `SSD`."""

    output_kind = SSDOutput


class TwoStageDetector(Detector):
    """Mixin for `FasterRCNN`."""

    rpn: nn.Module
    roi_heads: Any

    @property
    def detections_per_image(self) -> int:
        """Return the most detections that an image gets."""
        rows: int = self.roi_heads.detections_per_img
        return rows

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return the pyramid's maps, from which the rest is computed when it is asked for."""
        output, maps = self._output(images)
        return self._features(None, maps, output)

    def _output(self, images: Tensor) -> tuple[TwoStageOutput, Mapping[str, Tensor]]:
        maps, sizes = self._maps(images)
        return TwoStageOutput(self, maps, **sizes), maps


Renaming = tuple[re.Pattern[str], str]

FORMER_NAMES: tuple[Renaming, ...] = (
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
FORMER_RETINANET: tuple[Renaming, ...] = tuple(
    (
        re.compile(rf"(head\.(?:class|regress)\w+\.conv)\.{2 * index}\.(weight|bias)$"),
        rf"\1.{index}.0.\2",
    )
    for index in range(4)
)

KINDS: dict[str, type[Detector]] = {
    "FCOS": FCOSDetector,
    "RetinaNet": RetinaNetDetector,
    "SSD": SSDDetector,
    "FasterRCNN": TwoStageDetector,
}
"""Mixins by the name of torchvision's class."""


@functools.cache
def names() -> tuple[str, ...]:
    """Return the detectors that torchvision offers and that learn from boxes, sorted."""
    models = importlib.import_module("torchvision.models")
    listed = models.list_models(module=models.detection)
    return tuple(sorted(name for name in listed if not name.startswith(OTHER_HEADS)))


def smallest_batch(name: str) -> int:
    """Return the least number of images that a detector of torchvision can be trained on."""
    # Its last maps are of one pixel, and each has a batch norm.
    return 2 if name.startswith("ssdlite") else 1


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raise `ValueError` for images of a height and width that a network cannot take."""
    fixed = FIXED_SIZES.get(name)
    if fixed is not None and size != fixed:
        raise ValueError(
            f"it takes images of {fixed[0]}x{fixed[1]} only, got {size[0]}x{size[1]}; choose "
            "another network or that size"
        )


def keywords(name: str, given: Mapping[str, Any]) -> dict[str, Any]:  # Any: of the library
    """Return keyword arguments for torchvision; raises `ValueError` for unsupported ones."""
    for argument in given:
        if argument not in ACCEPTED:
            raise ValueError(f"it has no argument {argument!r}; it accepts {', '.join(ACCEPTED)}")
    box = "box_" if name.startswith("fasterrcnn") else ""
    renamed = {"detections_per_image": "detections_per_img", "score_threshold": "score_thresh"}
    # The backbone's own weights would be fetched.
    return {
        "weights_backbone": None,
        **{f"{box}{renamed[argument]}": value for argument, value in given.items()},
    }


def plain_transform(network: Detector, size: tuple[int, int], channels: int) -> str:
    """Return, in Python, the transform for images of a size that are normalised already.

    It changes nothing but the padding.
    """
    height, width = size
    return (
        "torchvision.models.detection.transform.GeneralizedRCNNTransform("
        f"{min(size)}, {max(size)}, [0.0] * {channels}, [1.0] * {channels}, "
        f"size_divisible={network.transform.size_divisible}, fixed_size=({width}, {height}))"
    )


def library_classes(name: str, classes: int) -> int:
    """Return the number of classes that torchvision counts: some heads have one for background."""
    return classes if name.startswith(("fcos", "retinanet")) else classes + 1


def adopt(module: nn.Module, *, classes: int, channels: int, size: tuple[int, int]) -> Detector:
    """Turn a network of torchvision into one of ours, in place; its parameters keep their names.

    `size` is the height and width of its images.
    """
    # Any: assigning a widened class is legal for ordinary objects but unknown to the type checker.
    widened: Any = module
    widened.__class__ = _widened(widened.__class__)
    network: Detector = widened
    if isinstance(network, TwoStageDetector):
        region_proposals.adopt(network.rpn)
    network.classes = classes
    # Unlike a pyramid, the last layers of SSD do not take all sizes.
    probed = size if isinstance(network, SSDDetector) else (meta.PROBE_SIDE, meta.PROBE_SIDE)
    maps = meta.maps(network.backbone, channels, probed)
    network.stages_info = tuple(meta.stage(found, probed[0]) for found in maps.values())
    network.pooled_width = network.stages_info[-1].channels
    return network


@functools.cache
def _widened(kind: Any) -> type[nn.Module]:  # Any: a class, which mypy holds for unhashable
    return type(kind.__name__, (KINDS[kind.__name__], kind), {"__module__": __name__})


def _renamed(name: str, renamings: Sequence[Renaming]) -> str:
    for former, current in renamings:
        name = former.sub(current, name)
    return name
