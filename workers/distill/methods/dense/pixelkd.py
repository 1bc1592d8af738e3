"""Knowledge distillation of every pixel.

Each pixel is a sample: the student imitates the teacher's softened probabilities of its classes.
Pixels without a label are left out, since the teacher learned nothing about them.

Source: Hinton et al., 2015, arXiv:1503.02531, equation 1, on the pixels of Liu et al., CVPR 2019,
arXiv:1903.04197.
Differs: averaged over pixels and images; Liu et al. divide by the pixels of one image alone, so
their weight of 10 belongs to a sum over the batch. The default weight and temperature are those of
winycg/CIRKD.
"""

from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import DenseMethod
from workers.distill.methods.parameters import KDWeight, Temperature
from workers.distill.networks.interface import Features


class PixelKD(DenseMethod):
    """Imitate the teacher's softened outputs at every pixel."""

    name = "pixelkd"
    title = "Knowledge distillation of pixels"
    source = Source(
        "Structured Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2019",
        arxiv="1903.04197",
    )

    class Params(DenseMethod.Params):
        """A weight, a temperature, and which pixels count."""

        pixelkd_weight: KDWeight = 1.0
        temperature: Temperature = 1.0
        only_labelled: bool = Field(
            True, description="Leave out pixels without a label; false compares all pixels."
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the imitation."""
        params = self.params
        loss = self.pixel_kl(
            student,
            teacher,
            batch,
            temperature=params.temperature,
            only_labelled=params.only_labelled,
        )
        return {**self.task(student, batch), "pixelkd": params.pixelkd_weight * loss}
