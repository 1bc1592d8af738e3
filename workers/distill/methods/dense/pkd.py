"""Distillation through the Pearson correlation of maps.

Each class's map of logits becomes z-scores over all positions of the batch, and the student matches
the teacher's: patterns count, magnitudes do not. With `patch`, maps are cut, and z-scores are those
within a patch.

Source: Cao et al., NeurIPS 2022, arXiv:2207.02039.
Differs: the paper compares the maps of a detector's pyramid; a segmenter's classes take their place
here, since they alone are equally many in both networks. Weight 10 is the authors' for RetinaNet.
Checked against: Klayand/PCKA, released code (values without patches; with them that code does not
cut the maps).
"""

from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional import patches, standardization
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import DenseMethod
from workers.distill.methods.parameters import PatchSide, Weight
from workers.distill.networks.interface import Features


class PKD(DenseMethod):
    """Correlate the student's maps with the teacher's."""

    name = "pkd"
    title = "Distillation by Pearson correlation"
    source = Source(
        "PKD: General Distillation Framework for Object Detectors via Pearson Correlation "
        "Coefficient",
        venue="NeurIPS 2022",
        arxiv="2207.02039",
    )

    class Params(DenseMethod.Params):
        """A weight, and how maps are cut."""

        pkd_weight: Weight = Field(10.0, description="Weight of the difference of z-scores.")
        patch: PatchSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the difference of z-scores."""
        params = self.params
        pair = self.class_maps(student, teacher)
        if params.patch is None:
            one, other = (each.transpose(0, 1).flatten(1) for each in pair)
            loss = standardization.z_score_gap(one, other)
        else:
            loss = patches.standardized(*patches.pair_rows(*pair, side=params.patch))
        return {**self.task(student, batch), "pkd": params.pkd_weight * loss}
