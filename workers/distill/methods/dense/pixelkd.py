"""Knowledge distillation of every pixel.

Each pixel is a sample: the student imitates the teacher's softened probabilities of its classes.
Pixels without a label are left out, since the teacher learned nothing about them. With `patch` the
map of each class is cut, and a class's values within a patch are the distribution that is imitated.

Source: Hinton et al., 2015, arXiv:1503.02531, equation 1, on the pixels of Liu et al., CVPR 2019,
arXiv:1903.04197; Zhou et al., IJCAI 2024, arXiv:2401.11824, for patches.
Differs: averaged over pixels and images; Liu et al. divide by the pixels of one image alone, so
their weight of 10 belongs to a sum over the batch. The default weight and temperature are those of
winycg/CIRKD. Where `training.class_weights` weigh the classes in the loss of the labels, a pixel
counts here what its class does there, else imitating the commonest class undoes what the weights
do; with `patch`, the maps of a class count so; a pixel without a label (`only_labelled` false)
counts what the teacher's probabilities of its classes come to. Without class weights all count
alike, as published.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import maps, patches
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import DenseMethod
from workers.distill.methods.parameters import KDWeight, PatchSide, Temperature
from workers.distill.networks.interface import Features


class PixelKD(DenseMethod):
    """Imitate the teacher's softened outputs at every pixel."""

    name = "pixelkd"
    weighs_classes = True
    title = "Knowledge distillation of pixels"
    source = Source(
        "Structured Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2019",
        arxiv="1903.04197",
    )

    class Params(DenseMethod.Params):
        """A weight, a temperature, which pixels count, and how maps are cut."""

        pixelkd_weight: KDWeight = 1.0
        temperature: Temperature = 1.0
        only_labelled: bool = Field(
            True, description="Leave out pixels without a label; false compares all pixels."
        )
        patch: PatchSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the imitation."""
        params = self.params
        if params.patch is not None:
            loss = self._patch_kl(student, teacher, batch, side=params.patch)
        else:
            loss = self.pixel_kl(
                student,
                teacher,
                batch,
                temperature=params.temperature,
                only_labelled=params.only_labelled,
            )
        return {**self.task(student, batch), "pixelkd": params.pixelkd_weight * loss}

    def _patch_kl(
        self, student: Features, teacher: Features, batch: Batch, *, side: int
    ) -> Float[Tensor, ""]:
        logits = self.class_maps(student, teacher)
        cut = patches.pair_rows(*logits, side=side)
        counted = None
        if self.params.only_labelled:
            _, known = self.pixel_labels(batch, logits[0])
            height, width = known.shape[1:]
            resized = maps.nearest(known.byte(), patches.padded_size(height, width, side=side))
            counted = patches.patch_rows(resized[:, None].float(), side=side) > 0
        return patches.softened(
            *cut,
            temperature=self.params.temperature,
            counted=counted,
            set_weights=batch.class_weights,
        )
