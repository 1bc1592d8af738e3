"""Patch-based centred kernel alignment of dense maps (PCKA for detection and segmentation).

The maps of a detector's pyramid, or a segmenter's logits, are cut into patches, and the kernel of
similarities between patches, one for each channel or class, is aligned with the teacher's. A second
term aligns the features of patches in the same way, and a third one (RCKA's) the channels or
classes, by their values at every position of the batch. The card of a run says how many patches
each level has.

Source: Zhou et al., IJCAI 2024, arXiv:2401.11824.
Differs: pyramids of different channels get a trained 1x1 convolution without the batch norms that
the authors have for YOLO. The authors' code for segmentation compares whole images, of which a
batch has too few, and a kernel of all logits of an image with each other, which no memory holds;
here classes are the channels of the patch-based loss. Losses are 1 - CKA, not -CKA. Patches are
smaller than 16x16 where maps are too small for 16 of them, since few patches are alike whatever the
features are; maps of fewer than 2 patches (3 if centred) give 0. A class whose logits are 0
everywhere counts as not aligned, without a gradient, where the released code divides 0 by 0. On a
segmenter's logits the defaults did harm where they were measured (docs/measurements.md): a kernel
for each class does not tell images apart; `axis` batch, `centered` and a `transposed_weight` of 0
helped.
Checked against: Klayand/PCKA, released code (published values of the patch-based loss).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import kernels, patches
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import MapsMethod
from workers.distill.methods.parameters import Centered, Weight
from workers.distill.networks.interface import Features, Network

TRANSPOSED_WEIGHT = 10.0


class DensePCKA(MapsMethod):
    """Align the similarities between patches of maps."""

    name = "densepcka"
    title = "Patch-based centred kernel alignment of dense maps"
    source = Source(
        "Rethinking Centered Kernel Alignment in Knowledge Distillation",
        venue="IJCAI 2024",
        arxiv="2401.11824",
    )

    class Params(MapsMethod.Params):
        """Three weights, and how maps are cut."""

        pcka_weight: Weight = Field(10.0, description="Weight of the similarities of patches.")
        transposed_weight: Weight | None = Field(
            None,
            description="Weight of the same term with patches and their features exchanged. Null "
            "takes the authors': 0 for detectors with one stage, 10 for all others.",
        )
        classes_weight: Weight = Field(
            0.0,
            description="Weight of the similarities between classes (RCKA's class term), or "
            "between a pyramid's channels.",
        )
        patch: int | None = Field(
            None,
            ge=1,
            le=1024,
            description="Pixels along the side of a patch; maps are resized up to a multiple of "
            "it. Null takes 16, or a quarter of a map's shorter side where that is less.",
        )
        axis: patches.Axis = Field(
            "channel",
            description="What has its own kernels, over which alignments are averaged: each "
            "channel or class, each image of the batch, or each position in a patch.",
        )
        centered: Centered = False

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        shapes = self.student_shapes
        has_one_stage = shapes is not None and shapes.locations is not None
        usual = 0.0 if has_one_stage else TRANSPOSED_WEIGHT
        chosen = params.transposed_weight
        self.transposed_weight = usual if chosen is None else chosen
        if self.levels is not None:
            self._check_patches(self.levels.sizes)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the alignment of patches both ways, and that of classes."""
        params, centered = self.params, self.params.centered
        off = student.pooled.new_zeros(())
        aligned, transposed, classes = [off], [off], [off]
        for pair in self.map_pairs(student, teacher):
            side = self._side(pair[0].shape[2], pair[0].shape[3])
            cut = patches.pair_rows(*pair, side=side, axis=params.axis)
            if params.pcka_weight:
                aligned.append(patches.alignment_gap(*cut, centered=centered))
            if self.transposed_weight and cut[0].shape[1] > 1:
                transposed.append(patches.transposed_gap(*cut, centered=centered))
            if params.classes_weight:
                one, other = (each.transpose(0, 1).flatten(1) for each in pair)
                classes.append(kernels.cka_gap(one, other, centered=centered))
        return {
            **self.task(student, batch),
            "pcka": params.pcka_weight * torch.stack(aligned).sum(),
            "pcka_transposed": self.transposed_weight * torch.stack(transposed).sum(),
            "rcka_classes": params.classes_weight * torch.stack(classes).sum(),
        }

    def facts(self) -> dict[str, Any]:
        """Return the number of patches of each level that is compared, finest first."""
        return {} if self.levels is None else {"patches": self._counts(self.levels.sizes)}

    def _side(self, height: int, width: int) -> int:
        return self.params.patch or patches.fitting_side(height, width)

    def _counts(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        sides = [self._side(*size) for size in sizes]
        return [
            math.ceil(height / side) * math.ceil(width / side)
            for (height, width), side in zip(sizes, sides, strict=True)
        ]

    def _check_patches(self, sizes: Sequence[tuple[int, int]]) -> None:
        counts = self._counts(sizes)
        least = 3 if self.params.centered else 2
        if max(counts) < least:
            raise errors.IncompatibleNetworks(
                "method densepcka compares patches with each other, and the pyramid's levels of "
                f"{', '.join(f'{height}x{width}' for height, width in sizes)} positions are cut "
                f"into {', '.join(map(str, counts))}, of at least {least} that alignment needs in "
                "one level; choose a smaller patch, finer levels or larger images",
                patches=counts,
            )
