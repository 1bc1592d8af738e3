"""A head for FCOS that predicts a distribution over the distance of each side of a box.

Instead of four distances a location has four rows of `reg_max + 1` logits, one for each whole
distance from 0 to `reg_max`; the distance is the mean of their softmax. The distribution also tells
how sure the network is of a side, which localisation distillation (`ld`) hands to a student.

Source: Li et al., NeurIPS 2020, arXiv:2006.04388, equations 3 to 6 (distribution focal loss).
Differs: classes keep FCOS's focal loss and centerness, where the paper joins both into one quality.
Distances are counted in the anchor size of a level, which is its stride in images of more than 128
pixels, as in the paper, and half of it in smaller ones. All locations that learn a box weigh alike;
the authors weigh them by their class score.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

DISTRIBUTION_WEIGHT = 0.25
SIDES = 4
LAST_SHARE = 0.01
"""Distances are cut to so much less than `reg_max`, so that there is a number above each."""


class DistributionBranch(nn.Module):
    """The regression branch of FCOS with a distribution in the place of each distance."""

    def __init__(self, plain: Any, reg_max: int) -> None:  # Any: torchvision's branch
        super().__init__()
        self.conv = plain.conv
        self.bbox_reg = nn.Conv2d(
            plain.bbox_reg.in_channels, SIDES * (reg_max + 1), kernel_size=3, padding=1
        )
        self.bbox_ctrness = plain.bbox_ctrness
        nn.init.normal_(self.bbox_reg.weight, std=0.01)
        nn.init.zeros_(self.bbox_reg.bias)  # type: ignore[arg-type]  # a layer may have none

    def forward(
        self, levels: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "N L 4 R"], Float[Tensor, "N L 1"]]:
        """Return the logits of all distances at all locations, and their centerness."""
        distributions, centerness = [], []
        for maps in levels:
            last = self.conv(maps)
            found = self.bbox_reg(last).flatten(2).transpose(1, 2)
            distributions.append(found.unflatten(2, (SIDES, -1)))
            centerness.append(self.bbox_ctrness(last).flatten(2).transpose(1, 2))
        return torch.cat(distributions, dim=1), torch.cat(centerness, dim=1)


class DistributionHead(nn.Module):
    """FCOS's head with distributions; takes the place of torchvision's."""

    def __init__(self, plain: Any, reg_max: int) -> None:  # Any: torchvision's head
        super().__init__()
        self.box_coder = plain.box_coder
        self.classification_head = plain.classification_head
        self.regression_head = DistributionBranch(plain.regression_head, reg_max)
        self._plain_loss = type(plain).compute_loss

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what torchvision's head returns, and `bbox_distribution` [N, L, 4, R]."""
        distributions, centerness = self.regression_head(levels)
        return {
            "cls_logits": self.classification_head(levels),
            "bbox_regression": mean_distances(distributions),
            "bbox_ctrness": centerness,
            "bbox_distribution": distributions,
        }

    def compute_loss(
        self,
        targets: Sequence[dict[str, Tensor]],
        outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matches: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return torchvision's losses, and `bbox_distribution`: that of the distances."""
        losses: dict[str, Tensor] = self._plain_loss(self, targets, outputs, anchors, matches)
        logits, distances = [], []
        for index, (target, matched) in enumerate(zip(targets, matches, strict=True)):
            learns = matched >= 0
            boxes = target["boxes"][matched[learns]]
            distances.append(self.box_coder.encode(anchors[index][learns], boxes))
            logits.append(outputs["bbox_distribution"][index][learns])
        count = max(1, sum(map(len, logits)))
        found = distribution_focal(torch.cat(logits), torch.cat(distances)).sum()
        return {**losses, "bbox_distribution": DISTRIBUTION_WEIGHT * found / (SIDES * count)}


def mean_distances(distributions: Float[Tensor, "*S R"]) -> Float[Tensor, "*S"]:
    """Return the mean of each distribution over the distances 0 to R - 1, from its logits."""
    bins = distributions.shape[-1]
    places = torch.arange(bins, dtype=distributions.dtype, device=distributions.device)
    return distributions.softmax(-1) @ places


def distribution_focal(
    logits: Float[Tensor, "*S R"], distances: Float[Tensor, "*S"]
) -> Float[Tensor, "*S"]:
    """Return the cross-entropy with the two whole numbers around a distance, by their nearness.

    Distances are cut to those that a distribution has, 0 to R - 1.
    """
    bins = logits.shape[-1]
    distances = distances.clamp(0, bins - 1 - LAST_SHARE)
    below = distances.long()
    share = distances - below
    chances = functional.log_softmax(logits, dim=-1)
    lower, upper = (chances.gather(-1, (below + step)[..., None])[..., 0] for step in (0, 1))
    return -(1 - share) * lower - share * upper
