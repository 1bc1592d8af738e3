"""Cross-image relational distillation.

The student matches how similar each position of its last map is to the positions of every image of
the batch, its own among them, and to memories of earlier images: of single positions and of regions
(the mean of a class in an image), of every class. Besides, it imitates each pixel's probabilities.
Memories hold the teacher's vectors; a trained projector brings the student's to its width.

Source: Yang et al., CVPR 2022, arXiv:2204.06986, equations 3 to 14.
Differs: pixels without a label are left out of the imitation, and of what meets the memories; with
`training.class_weights` a pixel counts in the imitation what its class does in the loss of the
labels. Maps are pooled (average) by 2, as the authors' code can, or by more where more than 256
positions would remain: memory grows with the square of batch and positions. The authors meet the
memories with maps that are not pooled. Their memory of positions is 20,000 a class; as a checkpoint
holds it, 2,000 is the default here, still more than are compared in a step.
Checked against: winycg/CIRKD, losses/cirkd_mini_batch.py and losses/cirkd_memory.py (projector,
what enters the memories, what is drawn from them).
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import adapters, class_queues, relations
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense import base
from workers.distill.methods.parameters import Count, PoolSide, Temperature, Weight
from workers.distill.networks.interface import Features, Network

MOST_POSITIONS = 256
PIXELS_OF_A_CLASS = 16
"""Positions of a class in an image that enter the memory at a step."""
COMPARED_PIXELS, COMPARED_REGIONS = 4096, 1024
"""Vectors of all classes together that are drawn from a memory at a step."""
MOST_BYTES = 1 << 30


class CIRKD(base.DenseFeatureMethod):
    """Match the similarities between the positions of all images, and to those of earlier ones."""

    name = "cirkd"
    weighs_classes = True
    title = "Cross-image relational distillation"
    source = Source(
        "Cross-Image Relational Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2022",
        arxiv="2204.06986",
        equations="3-14",
    )

    class Params(base.DenseFeatureMethod.Params):
        """Four weights, two temperatures, how maps are pooled, and how long memories are."""

        pixel_weight: Weight = Field(
            1.0, description="Weight of the imitation of each pixel's probabilities."
        )
        relation_weight: Weight = Field(
            1.0, description="Weight of the similarities between the positions of all images."
        )
        memory_pixel_weight: Weight = Field(
            0.1, description="Weight of the similarities to positions of earlier images."
        )
        memory_region_weight: Weight = Field(
            0.1, description="Weight of the similarities to regions of earlier images."
        )
        temperature: Temperature = 1.0
        relation_temperature: float = Field(
            0.1, gt=0, le=1e4, description="Divides similarities before softmax."
        )
        pool: PoolSide = None
        pixel_memory: Count = Field(2000, description="Positions of each class that are kept.")
        region_memory: Count = Field(2000, description="Regions of each class that are kept.")

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.projector: nn.Module | None = None
        self.pixels: class_queues.ClassQueues | None = None
        self.regions: class_queues.ClassQueues | None = None
        given, wanted = self.student_shapes.final, self.teacher_shapes.final
        if given is None or wanted is None:
            raise ValueError("method cirkd was not shown the last maps of both networks")
        self._classes, width = student.classes, wanted[0]
        if params.memory_pixel_weight:
            self.pixels = self._queues("pixel_memory", params.pixel_memory, width)
        if params.memory_region_weight:
            self.regions = self._queues("region_memory", params.region_memory, width)
        if self.pixels is not None or self.regions is not None:
            self.projector = nn.Sequential(
                *adapters.projection(given[0], width),
                nn.ReLU(),
                nn.Conv2d(width, width, 1, bias=False),
            )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the imitation of pixels, and those of similarities."""
        params = self.params
        pixels = similar = student.logits.new_zeros(())
        if params.pixel_weight:
            pixels = self.pixel_kl(student, teacher, batch, temperature=params.temperature)
        final = self.final_maps(student, teacher)
        side = base.pool_side(params.pool, final[0], most=MOST_POSITIONS)
        ours, theirs = (F.avg_pool2d(each, side, ceil_mode=True) for each in final)
        if params.relation_weight:
            similar = relations.cross_image_kl(
                ours, theirs, temperature=params.relation_temperature
            )
        to_pixels, to_regions = self._to_memories(ours, theirs, batch)
        return {
            **self.task(student, batch),
            "cirkd_pixels": params.pixel_weight * pixels,
            "cirkd_relations": params.relation_weight * similar,
            "cirkd_memory_pixels": params.memory_pixel_weight * to_pixels,
            "cirkd_memory_regions": params.memory_region_weight * to_regions,
        }

    def _to_memories(
        self, student: Float[Tensor, "N c h w"], teacher: Float[Tensor, "N d h w"], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the distances of similarities to both memories, which get this batch first."""
        off = student.new_zeros(())
        if self.projector is None:
            return off, off
        labels, known = self.pixel_labels(batch, teacher)
        classes = torch.where(known, labels, class_queues.UNKNOWN).flatten(1)
        features = F.normalize(teacher.detach().flatten(2).mT, dim=2)
        if self.training:
            self._remember(features, classes)
        projected = self.projector(student).flatten(2).mT
        counted = known.flatten(1)
        ours, theirs = projected[counted], features[counted]
        found = []
        for queues, most in ((self.pixels, COMPARED_PIXELS), (self.regions, COMPARED_REGIONS)):
            if queues is None:
                found.append(off)
                continue
            memory = queues.draw(most // self._classes + 1)
            temperature = self.params.relation_temperature
            found.append(relations.memory_kl(ours, theirs, memory, temperature=temperature))
        return found[0], found[1]

    def _remember(self, features: Float[Tensor, "N P d"], classes: Tensor) -> None:
        if self.regions is not None:
            self.regions.push(*class_queues.region_means(features, classes, self._classes))
        if self.pixels is not None:
            chosen = class_queues.some_of_each(classes, self._classes, most=PIXELS_OF_A_CLASS)
            self.pixels.push(features[chosen], classes[chosen])

    def _queues(self, field: str, length: int, width: int) -> class_queues.ClassQueues:
        vector_bytes = 4 * self._classes * width
        if length * vector_bytes > MOST_BYTES:
            raise errors.IncompatibleNetworks(
                f"method cirkd would keep {length} vectors of {width} numbers for each of "
                f"{self._classes} classes ({field}), {length * vector_bytes >> 20} MiB, and may "
                f"keep {MOST_BYTES >> 20} MiB; lower {field} to {MOST_BYTES // vector_bytes}",
                field=f"method/{field}",
            )
        return class_queues.ClassQueues(classes=self._classes, length=length, width=width)
