"""Patch-based centred kernel alignment.

Maps are cut into patches, and the kernel of similarities between patches, one for each channel, is
aligned with the teacher's. Made for dense tasks; in classification it helps where both networks are
of one family.

Source: Zhou et al., IJCAI 2024, arXiv:2401.11824 (the patch-based form, PCKA).
Differs: kernels are centred, as the definition says (`centered: false` as released), and the loss
is 1 - CKA, not -CKA. The connector for unequal channels is trained; the authors' variant for
classification draws a new random one in every step. Maps too small for several patches of 16x16 are
cut into quarters unless `patch` is given, and a stage that remains a single patch is refused: its
alignment is always 1. Where sizes differ, the smaller map is resized with the larger one.
Checked against: Klayand/PCKA, released code (published values).
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import maps, patches
from workers.distill.methods.base import FeatureName, Moment, RelationMethod, Source, Terms
from workers.distill.methods.parameters import Centered, Weight
from workers.distill.networks import shapes
from workers.distill.networks.interface import Features, Network

LAST = 0
"""Stands for the last stage of each network; as an index, one less, it is that stage."""
QUARTERS = 4


@dataclass(frozen=True)
class Level:
    """One stage of both networks, the size its maps get, and the side of a patch."""

    index: int
    size: tuple[int, int]
    side: int


class PCKA(RelationMethod):
    """Align the similarities between patches of a map."""

    name = "pcka"
    title = "Patch-based centred kernel alignment"
    source = Source(
        "Rethinking Centered Kernel Alignment in Knowledge Distillation",
        venue="IJCAI 2024",
        arxiv="2401.11824",
    )
    tasks = ("classification", "embedding")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("stages",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("stages",)

    class Params(RelationMethod.Params):
        """Two weights, and how maps are cut."""

        pcka_weight: Weight = Field(15.0, description="Weight of the patch term of every stage.")
        transposed_weight: Weight = Field(
            0.0,
            description="Weight of the same term with patches and their features exchanged.",
        )
        stages: list[Annotated[int, Field(ge=1, le=64)]] | None = Field(
            None,
            min_length=1,
            max_length=16,
            description="Stages of both networks that are compared, from 1; null takes the last "
            "of each.",
        )
        patch: int | None = Field(
            None,
            ge=1,
            le=1024,
            description="Pixels along the side of a patch; maps are resized up to a multiple of "
            "it. Null takes 16, or half a map's longer side where 16 leaves fewer than 4 patches.",
        )
        axis: patches.Axis = Field(
            "channel",
            description="What has its own kernels, over which alignments are averaged: each "
            "channel, each image of the batch, or each position in a patch.",
        )
        centered: Centered = True

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.levels: list[Level] = []
        self.connectors = nn.ModuleList()
        for stage in params.stages or [LAST]:
            given = self._shape(stage, "student", self.student_shapes)
            wanted = self._shape(stage, "teacher", self.teacher_shapes)
            self.levels.append(self._level(stage, given, wanted))
            connector: nn.Module = nn.Identity()
            if given[0] != wanted[0]:
                connector = nn.Conv2d(given[0], wanted[0], 1, bias=False)
            self.connectors.append(connector)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the alignment of patches both ways, summed over stages."""
        params, off = self.params, student.logits.new_zeros(())
        aligned, transposed = [off], [off]
        for level, connector in zip(self.levels, self.connectors, strict=True):
            student_map = connector(maps.at_least_float(student.stages[level.index]))
            teacher_map = maps.at_least_float(teacher.stages[level.index])
            rows = [
                patches.patch_rows(maps.resize(each, level.size), side=level.side, axis=params.axis)
                for each in (student_map, teacher_map)
            ]
            if params.pcka_weight:
                aligned.append(patches.alignment_gap(*rows, centered=params.centered))
            if params.transposed_weight:
                transposed.append(patches.transposed_gap(*rows, centered=params.centered))
        return {
            **self.task(student, batch),
            "pcka": params.pcka_weight * torch.stack(aligned).sum(),
            "pcka_transposed": params.transposed_weight * torch.stack(transposed).sum(),
        }

    def _shape(self, stage: int, role: str, measured: shapes.Shapes | None) -> shapes.Shape:
        stages = () if measured is None else measured.stages
        if stage > len(stages):
            raise errors.IncompatibleNetworks(
                f"method pcka compares stage {stage} (stages), and the {role} returns "
                f"{len(stages)} stages; choose smaller numbers",
                stage=stage,
                role=role,
            )
        return stages[stage - 1] if stage != LAST else stages[-1]

    def _level(self, stage: int, given: shapes.Shape, wanted: shapes.Shape) -> Level:
        for role, shape in (("student", given), ("teacher", wanted)):
            if shape[1] * shape[2] < 2:
                raise errors.IncompatibleNetworks(
                    f"method pcka compares patches of a map with each other, and the {role}'s "
                    f"map ({'the last stage' if stage == LAST else f'stage {stage}'}) is one "
                    "pixel; choose stages with larger maps",
                    stage=stage,
                    role=role,
                )
        height, width = (max(pair) for pair in zip(given[1:], wanted[1:], strict=True))
        side = self.params.patch or _fitting_side(height, width)
        grid = (math.ceil(height / side), math.ceil(width / side))
        least = 3 if self.params.centered else 2
        if math.prod(grid) < least:
            where = "the last stage" if stage == LAST else f"stage {stage}"
            raise errors.IncompatibleNetworks(
                f"method pcka compares patches with each other, and {where} of {height}x{width} "
                f"cut into patches of {side}x{side} gives {math.prod(grid)}, of at least {least} "
                "that alignment needs; choose stages with larger maps, or a smaller patch",
                stage=stage,
                height=height,
                width=width,
                patch=side,
            )
        return Level(stage - 1, (grid[0] * side, grid[1] * side), side)


def _fitting_side(height: int, width: int) -> int:
    side = patches.PUBLISHED_SIDE
    count = math.ceil(height / side) * math.ceil(width / side)
    return side if count >= QUARTERS else math.ceil(max(height, width) / 2)
