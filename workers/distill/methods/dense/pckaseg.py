"""Centred kernel alignment of a segmenter's logits (PCKA for segmentation).

The map of logits is cut into patches, and the kernel of similarities between patches, one for each
class, is aligned with the teacher's. A second term aligns the features of patches in the same way,
and a third one (RCKA's) the classes, by their logits at every pixel of the batch.

Source: Zhou et al., IJCAI 2024, arXiv:2401.11824.
Differs: the authors' code for segmentation compares whole images, of which a batch has too few, and
a kernel of all logits of an image with each other, which no memory holds; here classes are the
channels of the patch-based loss. Losses are 1 - CKA, not -CKA. Patches are smaller than 16x16 where
maps are too small for 16 of them, since few patches are alike whatever the features are; maps of
fewer than 2 patches (3 if centred) give 0. A class whose logits are 0 everywhere counts as not
aligned, without a gradient, where the released code divides 0 by 0.
Checked against: Klayand/PCKA, released code (published values of the patch-based loss).
"""

from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional import kernels, patches
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import DenseMethod
from workers.distill.methods.parameters import Centered, Weight
from workers.distill.networks.interface import Features


class PCKASeg(DenseMethod):
    """Align the similarities between patches of the classes' maps."""

    name = "pckaseg"
    title = "Patch-based centred kernel alignment of logits"
    source = Source(
        "Rethinking Centered Kernel Alignment in Knowledge Distillation",
        venue="IJCAI 2024",
        arxiv="2401.11824",
    )

    class Params(DenseMethod.Params):
        """Three weights, and how maps are cut."""

        pcka_weight: Weight = Field(10.0, description="Weight of the similarities of patches.")
        transposed_weight: Weight = Field(
            10.0,
            description="Weight of the same term with patches and their features exchanged.",
        )
        classes_weight: Weight = Field(
            0.0, description="Weight of the similarities between classes (RCKA's class term)."
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
            "class, each image of the batch, or each position in a patch.",
        )
        centered: Centered = False

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the alignment of patches both ways, and that of classes."""
        params, centered = self.params, self.params.centered
        pair = self.class_maps(student, teacher)
        side = params.patch or patches.fitting_side(pair[0].shape[2], pair[0].shape[3])
        cut = patches.pair_rows(*pair, side=side, axis=params.axis)
        aligned = transposed = classes = student.logits.new_zeros(())
        if params.pcka_weight:
            aligned = patches.alignment_gap(*cut, centered=centered)
        if params.transposed_weight:
            transposed = patches.transposed_gap(*cut, centered=centered)
        if params.classes_weight:
            one, other = (each.transpose(0, 1).flatten(1) for each in pair)
            classes = kernels.cka_gap(one, other, centered=centered)
        return {
            **self.task(student, batch),
            "pcka": params.pcka_weight * aligned,
            "pcka_transposed": params.transposed_weight * transposed,
            "rcka_classes": params.classes_weight * classes,
        }
