"""Knowledge review.

The student's deep stages are fused into its shallow ones: from the embedding down, each level is
combined with the result of the deeper levels by learned attention, and compared with the teacher's
maps at several resolutions. Of detectors the levels of their pyramids are fused, from the coarsest
down, and compared without activations and without a warm-up, as the authors of DKD do.

Source: Chen et al., CVPR 2021, arXiv:2104.09044.
Differs: shapes come from one forward pass instead of a table for each pair, and maps need not be
square. The teacher is compared before activations and the student gives maps after them, as the
authors do for CIFAR-100; `student_maps: pre` is their choice for ImageNet. Where the networks have
different numbers of stages, each of the fewer is paired with the one closest in size, in order. The
attention layer starts as layers do by default, the other convolutions uniform with a = 1, as in the
authors' code.
Checked against: megvii-research/mdistiller, mdistiller/distillers/ReviewKD.py (published values).
"""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config import chosen, rules
from workers.distill.config.descriptions import ChosenFeature, Condition, NetworkDescription
from workers.distill.config.job import Task
from workers.distill.data.types import Batch
from workers.distill.functional import adapters, map_distances, maps
from workers.distill.methods.base import FeatureMethod, Moment, Source, Terms
from workers.distill.methods.parameters import WARMUP_SHARE, Weight
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Shape, Shapes

Maps: TypeAlias = Literal["post", "pre"]
MOST_CHANNELS = 512
"""Channels in which levels are fused, unless the embedding has fewer."""


class Fusion(nn.Module):
    """Attention-based fusion of one level's maps with the result of the deeper levels."""

    def __init__(self, channels: int, middle: int, wanted: int, size: maps.Size, *, deepest: bool):
        super().__init__()
        self.size = size
        self.enter = adapters.projection(channels, middle)
        self.attention = None if deepest else nn.Linear(2 * middle, 2)
        self.leave = nn.Sequential(
            nn.Conv2d(middle, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted)
        )
        for layers in (self.enter, self.leave):
            nn.init.kaiming_uniform_(layers.get_parameter("0.weight"), a=1)

    def forward(
        self, given: Float[Tensor, "N c h w"], deeper: Float[Tensor, "N m i j"] | None
    ) -> tuple[Float[Tensor, "N d a b"], Float[Tensor, "N m a b"]]:
        """Return maps to compare with the teacher, and the input of the next level."""
        fused: Tensor = self.enter(given)
        if self.attention is not None and deeper is not None:
            size = (fused.shape[2], fused.shape[3])
            # The layer's input is both maps; computed separately, the deeper part stays small.
            ours, theirs = self.attention.weight.chunk(2, dim=1)
            bias = self.attention.bias[:, None, None]
            scores = _mix(fused, ours) + _nearest(_mix(deeper, theirs), size) + bias
            shares = scores.sigmoid()
            fused = fused * shares[:, :1] + _nearest(deeper, size) * shares[:, 1:]
        fused = _nearest(fused, self.size)
        return self.leave(fused), fused


def _mix(given: Float[Tensor, "N c h w"], weight: Float[Tensor, "d c"]) -> Float[Tensor, "N d h w"]:
    # A 1x1 convolution, which takes far longer for so few channels.
    mixed = torch.bmm(weight.expand(len(given), -1, -1), given.flatten(2))
    return mixed.reshape(len(given), -1, *given.shape[2:])


def _nearest(given: Float[Tensor, "N c h w"], size: maps.Size) -> Float[Tensor, "N c i j"]:
    return given if given.shape[2:] == size else F.interpolate(given, size, mode="nearest")


class ReviewKD(FeatureMethod):
    """Match fused maps of shallow and deep stages."""

    name = "reviewkd"
    title = "Knowledge review"
    source = Source(
        "Distilling Knowledge via Knowledge Review", venue="CVPR 2021", arxiv="2104.09044"
    )
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "detection", "embedding")
    chosen_features: ClassVar[tuple[ChosenFeature, ...]] = tuple(
        ChosenFeature(
            role=role,
            feature="pre_activations",
            when=Condition(field=f"{role}_maps", comparison="==", value="pre"),
        )
        for role in ("student", "teacher")
    )
    smallest_batch = 2
    """One embedding has no batch statistics."""

    class Params(FeatureMethod.Params):
        """A weight, a warm-up, and which maps of both networks are compared."""

        reviewkd_weight: Weight = Field(
            1.0,
            description="Weight of the review; the authors use 0.6 to 8 by pair, 5 for "
            "resnet32x4 to resnet8x4.",
        )
        warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
            None,
            description="Epochs over which the weight of the term rises, as "
            "min(epoch / warmup_epochs, 1); 0 starts at full weight. Null takes the published "
            "share of `epochs`, 20 of 240, rounded up, and 0 for detectors.",
            json_schema_extra={
                chosen.SHARE: WARMUP_SHARE,
                chosen.SHARE_TASKS: ["classification"],
            },
        )
        student_maps: Maps = Field(
            "post",
            description="Whether the student's maps are taken before or after its activations; the "
            "authors take post for CIFAR-100, pre for ImageNet.",
        )
        teacher_maps: Maps | None = Field(
            None,
            description="Whether the teacher is compared before or after its activations; post "
            "suits networks that return no maps before them. Null takes pre, or post where the "
            "teacher has no activation at the end of its stages, as detectors' pyramids have none; "
            "the result's `method` then says so.",
        )

    params: Params
    student_shapes: Shapes
    teacher_shapes: Shapes

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        is_detector = student.task == "detection"
        if teacher is not None and params.teacher_maps != "post" and not is_detector:
            teacher.enable_features(["pre_activations"])
        if params.student_maps == "pre":
            student.enable_features(["pre_activations"])
        super().__init__(params, student, teacher)
        shown: Maps = "pre" if self.teacher_shapes.pre_activations else "post"
        self.teacher_maps: Maps = params.teacher_maps or ("post" if is_detector else shown)
        if self.teacher_maps == "pre":
            self.teacher_features = (*self.teacher_features, "pre_activations")
        fades_in = not is_detector or params.warmup_epochs is not None
        self.warmup_epochs = params.warmup_epochs if fades_in else 0
        given = self._maps_of(params.student_maps, "student", self.student_shapes, student)
        wanted = self._maps_of(self.teacher_maps, "teacher", self.teacher_shapes, teacher)
        self.pairs = maps.pair_by_size(given, wanted)
        ours, theirs = self.student_shapes.pooled, self.teacher_shapes.pooled
        middle = min(MOST_CHANNELS, ours)
        self.fuses_embedding = not is_detector
        levels = [((ours, 1, 1), (theirs, 1, 1))] if self.fuses_embedding else []
        levels += [(given[one], wanted[other]) for one, other in reversed(self.pairs)]
        self.fusions = nn.ModuleList(
            Fusion(one[0], middle, other[0], other[1:], deepest=level == 0)
            for level, (one, other) in enumerate(levels)
        )

    def _maps_of(
        self, which: Maps, role: str, measured: Shapes, network: Network | None
    ) -> tuple[Shape, ...]:
        """Return the shapes of the maps that are compared. Raises: errors.IncompatibleNetworks."""
        if which == "post":
            return measured.stages
        if not measured.pre_activations and network is not None:
            reference = network.reference or type(network).__name__
            lacking = NetworkDescription(reference, shows=frozenset(), limits=network.limits)
            errors.refuse(
                rules.of_chosen_features(self.describe(), self.params.model_dump(), role, lacking),
                errors.IncompatibleNetworks,
                missing="pre_activations",
                **{role: reference},
            )
        return measured.pre_activations

    def facts(self) -> dict[str, Any]:
        """Return that the teacher is compared after its activations, where that was not asked."""
        unusual = self.fuses_embedding and self.params.teacher_maps is None
        return {"teacher_maps": "post"} if unusual and self.teacher_maps == "post" else {}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the review term, with its warm-up."""
        params = self.params
        ours = student.pre_activations if params.student_maps == "pre" else student.stages
        theirs = teacher.pre_activations if self.teacher_maps == "pre" else teacher.stages
        levels = []
        if self.fuses_embedding:
            levels.append((student.pooled[:, :, None, None], teacher.pooled[:, :, None, None]))
        levels += [(ours[one], theirs[other]) for one, other in reversed(self.pairs)]
        reviewed, deeper = [], None
        for fusion, (given, _) in zip(self.fusions, levels, strict=True):
            output, deeper = fusion(maps.at_least_float(given), deeper)
            reviewed.append(output)
        loss = map_distances.multiscale_square(
            reviewed, [maps.at_least_float(wanted) for _, wanted in levels]
        )
        warmup = moment.given_or_share(self.warmup_epochs, WARMUP_SHARE)
        weight = params.reviewkd_weight * moment.ramp(warmup)
        return {**self.task(student, batch), "reviewkd": weight * loss}
