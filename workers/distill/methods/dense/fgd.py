"""Focal and global distillation.

The student imitates the levels of the teacher's pyramid where objects are and, with less weight,
where they are not, by how much the teacher attends to each position and channel; it imitates the
attention itself; and it imitates how positions relate to the whole, by a block of global context
that each network has for itself.

Source: Yang et al., CVPR 2022, arXiv:2111.11837, equations 1 to 12.
Differs: positions that a box covers are those that it touches; the authors' code also covers a row
and a column beyond it. Pyramids of different channels get a trained 1x1 convolution, and levels of
different sizes are averaged to the smaller one. The authors' weights vary by detector; these are
those of their code.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.data.types import Batch
from workers.distill.functional import box_masks, map_distances, maps
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import PyramidMethod
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network


class GlobalContext(nn.Module):
    """Add to each position what all positions together say, as a trained attention weighs them.

    Source: Cao et al., ICCV Workshops 2019, arXiv:1904.11492. It starts as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(channels // 2, 1)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, middle, 1),
            nn.LayerNorm([middle, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(middle, channels, 1),
        )
        nn.init.kaiming_normal_(self.mask.weight)
        nn.init.zeros_(self.mask.bias)  # type: ignore[arg-type]  # it has a bias
        nn.init.zeros_(self.transform.get_parameter("3.weight"))
        nn.init.zeros_(self.transform.get_parameter("3.bias"))

    def forward(self, given: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        """Return the maps with their global context."""
        shares = self.mask(given).flatten(2).softmax(2)
        context = (given.flatten(2) @ shares.mT)[..., None]
        found: Tensor = given + self.transform(context)
        return found


class FGD(PyramidMethod):
    """Imitate objects, background, attention and global relations, each with its weight."""

    name = "fgd"
    title = "Focal and global distillation"
    source = Source(
        "Focal and Global Knowledge Distillation for Detectors",
        venue="CVPR 2022",
        arxiv="2111.11837",
        equations="1-12",
    )

    needs = ("labels", "teacher")

    class Params(PyramidMethod.Params):
        """Four weights and a temperature."""

        foreground_weight: Weight = Field(
            1e-3, description="Weight of positions within boxes (the paper's alpha)."
        )
        background_weight: Weight = Field(5e-4, description="Weight of all other positions (beta).")
        attention_weight: Weight = Field(
            1e-3, description="Weight of the attention to positions and channels (gamma)."
        )
        relation_weight: Weight = Field(
            5e-6, description="Weight of the relations to the whole (lambda)."
        )
        temperature: float = Field(
            0.5, gt=0, le=1e4, description="Divides mean activations before they become attention."
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        channels = self.levels.channels
        self.student_contexts = nn.ModuleList(GlobalContext(count) for count in channels)
        self.teacher_contexts = nn.ModuleList(GlobalContext(count) for count in channels)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the four parts, each the sum over levels per image."""
        params, images = self.params, len(batch.labels)
        sums: dict[str, list[Tensor]] = {
            "foreground": [],
            "background": [],
            "attention": [],
            "relation": [],
        }
        for level, (ours, theirs) in enumerate(self.levels(student, teacher)):
            size = (ours.shape[2], ours.shape[3])
            weights = box_masks.scale_weights(*self.boxes_at(level, student, batch), size)
            spatial, channel = self._attention(theirs)
            attended = spatial[:, None] * channel[:, :, None, None]
            for name, weight in zip(("foreground", "background"), weights, strict=True):
                sums[name].append(
                    map_distances.sum_of_squares(ours, theirs, weight[:, None] * attended)
                )
            apart = [
                (one - other).abs().sum()
                for one, other in zip(self._attention(ours), (spatial, channel), strict=True)
            ]
            sums["attention"].append(torch.stack(apart).sum())
            related = (
                self.student_contexts[level](ours),
                self.teacher_contexts[level](theirs),
            )
            sums["relation"].append(map_distances.sum_of_squares(*related))
        return {
            **self.task(student, batch),
            **{
                f"fgd_{name}": getattr(params, f"{name}_weight") * torch.stack(parts).sum() / images
                for name, parts in sums.items()
            },
        }

    def _attention(
        self, features: Float[Tensor, "N c h w"]
    ) -> tuple[Float[Tensor, "N h w"], Float[Tensor, "N c"]]:
        temperature = self.params.temperature
        return (
            maps.spatial_attention(features, temperature=temperature),
            maps.channel_attention(features, temperature=temperature),
        )
