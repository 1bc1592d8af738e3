"""Non-maximum suppression of proposals that ends where no more of them are wanted.

Whether a box is kept depends on better ones alone, and a region proposal network keeps the best few
hundred of some thousand boxes, so most of the library's comparisons are of boxes that are then
thrown away. With images of 96 pixels a side that was a third of a training step on the CPU.
"""

import functools
import importlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

MOST_SHIFTED = 1000
"""Up to so many boxes the library shifts levels apart and suppresses once, which rounds them."""


def first_kept(
    boxes: Float[Tensor, "B 4"], scores: Float[Tensor, " B"], threshold: float, *, most: int
) -> Int[Tensor, " K"]:
    """Return the first `most` rows that suppression keeps, of boxes sorted by falling score."""
    nms: Any = importlib.import_module("torchvision.ops").nms
    looked = 2 * most
    while True:
        kept: Tensor = nms(boxes[:looked], scores[:looked], threshold)
        if len(kept) >= most or looked >= len(boxes):
            return kept[:most]
        looked *= 2


class _Proposals(nn.Module):
    """Mixin for torchvision's `RegionProposalNetwork`: the same proposals, sooner on a CPU."""

    def filter_proposals(
        self,
        proposals: Float[Tensor, "N A 4"],
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return boxes and scores of each image as the library does, best first."""
        library: Any = super()
        if proposals.device.type != "cpu":
            # There suppression is parallel, and each look at a count would wait for it.
            found: tuple[list[Tensor], list[Tensor]] = library.filter_proposals(
                proposals, objectness, image_shapes, num_anchors_per_level
            )
            return found
        this: Any = self
        logits = objectness.detach().reshape(len(proposals), -1)
        levels = torch.repeat_interleave(
            torch.arange(len(num_anchors_per_level)), torch.tensor(num_anchors_per_level)
        )
        best = this._get_top_n_idx(logits, num_anchors_per_level)
        images = zip(proposals, logits.sigmoid(), best, image_shapes, strict=True)
        kept = [
            self._kept(boxes[rows], scores[rows], levels[rows], size)
            for boxes, scores, rows, size in images
        ]
        return [boxes for boxes, _ in kept], [scores for _, scores in kept]

    def _kept(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the proposals of one image; `levels` rise, and within one scores fall."""
        ops: Any = importlib.import_module("torchvision.ops.boxes")
        this: Any = self
        most = this.post_nms_top_n()
        boxes = ops.clip_boxes_to_image(boxes, size)
        large = ops.remove_small_boxes(boxes, this.min_size)
        rows = large[scores[large] >= this.score_thresh]
        boxes, scores, levels = boxes[rows], scores[rows], levels[rows]
        if len(boxes) <= MOST_SHIFTED:
            kept = ops.batched_nms(boxes, scores, levels, this.nms_thresh)
        else:
            counts = torch.bincount(levels).tolist()
            starts = [sum(counts[:level]) for level in range(len(counts))]
            kept = torch.cat(
                [
                    first_kept(boxes[place], scores[place], this.nms_thresh, most=most)
                    .sort()
                    .values
                    + place.start
                    for start, count in zip(starts, counts, strict=True)
                    if count and (place := slice(start, start + count))
                ]
            )
            kept = kept[scores[kept].sort(descending=True)[1]]
        return boxes[kept[:most]], scores[kept[:most]]


def adopt(network: nn.Module) -> None:
    """Let a region proposal network of torchvision end suppression early, in place."""
    # Any: assigning a widened class is legal for ordinary objects but unknown to the type checker.
    widened: Any = network
    widened.__class__ = _widened(widened.__class__)


@functools.cache
def _widened(kind: Any) -> type[nn.Module]:  # Any: a class, which mypy holds for unhashable
    return type(kind.__name__, (_Proposals, kind), {"__module__": __name__})
