from typing import Any

import numpy as np
import pytest
import torch

from tests.distill.networks.dense import scenes
from workers.distill import errors
from workers.distill.networks import catalog
from workers.distill.networks.dense import distribution_head


def fcos(size: int = 64, **arguments: object) -> Any:
    torch.manual_seed(0)
    small = {"width": 4, "blocks": 1, "fpn_channels": 32, "head_convs": 1}
    return catalog.build(
        "retort/fcos",
        classes=3,
        channels=3,
        height=size,
        width=size,
        arguments={**small, **arguments},
    )


class TestMeanDistances:
    def test_is_the_mean_of_the_softmax(self) -> None:
        logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, -50.0, -50.0], [0.0, 0.0, np.log(2.0)]])
        found = distribution_head.mean_distances(logits.double())
        assert found.tolist() == pytest.approx([1.0, 0.0, 1.25], abs=1e-12)


class TestDistributionFocal:
    def test_is_the_cross_entropy_of_both_neighbours(self) -> None:
        logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        distances, given = torch.tensor([0.25, 2.0, 9.0], dtype=torch.float64), logits.numpy()
        chances = np.log(np.exp(given) / np.exp(given).sum(1, keepdims=True))
        wanted = [
            -0.75 * chances[0, 0] - 0.25 * chances[0, 1],
            -chances[1, 2],
            -0.01 * chances[2, 3] - 0.99 * chances[2, 4],
        ]
        found = distribution_head.distribution_focal(logits, distances)
        assert found.tolist() == pytest.approx(wanted, rel=1e-9)

    def test_gradient_is_right(self) -> None:
        logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        distances = torch.tensor([0.25, 2.0, 3.5], dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda given: distribution_head.distribution_focal(given, distances),
            (logits.requires_grad_(),),
        )


class TestDistributionHead:
    def test_a_detector_learns_with_it(self) -> None:
        network = fcos(reg_max=16)
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        totals = []
        for _ in range(20):
            losses = network.train().observe(scenes.pictures()).detector.losses(scenes.two_boxes())
            total = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(float(total.detach()))
        assert set(losses) == {
            "classification",
            "bbox_regression",
            "bbox_ctrness",
            "bbox_distribution",
        }
        assert totals[-1] < 0.8 * totals[0]

    def test_boxes_are_those_of_its_mean_distances(self) -> None:
        network = fcos(reg_max=16).eval()
        output = network.observe(scenes.pictures()).detector
        distances = output.box_distributions.softmax(-1) @ torch.arange(17.0)
        anchors = output.anchors()[0]
        middle, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        wanted = torch.cat(
            [middle - distances[0, :, :2] * size, middle + distances[0, :, 2:] * size], dim=1
        )
        assert torch.allclose(output.predicted_boxes()[0], wanted, atol=1e-3)

    def test_an_image_without_boxes_gives_a_finite_loss(self) -> None:
        network = fcos(reg_max=16).train()
        losses = network.observe(scenes.pictures()).detector.losses(0 * scenes.two_boxes() - 1)
        assert all(loss.isfinite() for loss in losses.values())
        assert float(losses["bbox_distribution"].detach()) == 0

    def test_refuses_distances_that_do_not_reach_the_border(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match=r"'reg_max': 4 .* set reg_max to 8 or"):
            fcos(reg_max=4)

    def test_shows_distributions_only_with_the_argument(self) -> None:
        plain, rich = (
            catalog.described("retort/fcos", arguments) for arguments in ({}, {"reg_max": 16})
        )
        assert rich.shows == (plain.shows or frozenset()) | {"distributions"}
