"""Channel-wise distillation.

Each class's map of logits is softened into a distribution over positions, and the student imitates
the teacher's: where a class is matters, not how large its logits are. With `patch`, maps are cut,
and each class's values within a patch are a distribution of their own.

Source: Shu et al., ICCV 2021, arXiv:2011.13256; Zhou et al., IJCAI 2024,
arXiv:2401.11824, for patches.
Differs: weight and temperature are those of MMRazor's published configuration for Cityscapes, not
the paper's (3 and 4). With patches the divergence is averaged over patches; the authors' code sums
it for this loss and averages it for their KL loss, which else is the same.
"""

from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional import divergences, patches
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import DenseMethod
from workers.distill.methods.parameters import PatchSide, Temperature, Weight
from workers.distill.networks.interface import Features


class CWD(DenseMethod):
    """Imitate where the teacher sees each class."""

    name = "cwd"
    title = "Channel-wise distillation"
    source = Source(
        "Channel-wise Knowledge Distillation for Dense Prediction",
        venue="ICCV 2021",
        arxiv="2011.13256",
    )

    class Params(DenseMethod.Params):
        """A weight, a temperature, and how maps are cut."""

        cwd_weight: Weight = Field(5.0, description="Weight of the imitation of the teacher.")
        temperature: Temperature = 1.0
        patch: PatchSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the divergence of the classes' maps."""
        params = self.params
        pair = self.class_maps(student, teacher)
        if params.patch is None:
            loss = divergences.channel_kl(*pair, temperature=params.temperature)
        else:
            cut = patches.pair_rows(*pair, side=params.patch)
            loss = patches.softened(*cut, temperature=params.temperature)
        return {**self.task(student, batch), "cwd": params.cwd_weight * loss}
