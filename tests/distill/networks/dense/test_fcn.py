"""The small segmentation network computes what it says, for every pixel."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.distill.networks import plain
from workers.distill import errors
from workers.distill.networks import catalog, interface, shapes

WIDTHS = [4, 6, 3]


def second_time(layers: plain.Layers, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    maps, stages, before = images, [], []
    for index in range(len(WIDTHS)):
        before.append(
            layers.norm(f"layers.{index}.1", layers.conv(f"layers.{index}.0", maps)),
        )
        maps = functional.relu(before[-1])
        stages.append(maps)
    return layers.conv("classifier", maps), stages, before


class TestFCN:
    def test_computes_what_it_says(self) -> None:
        network = plain.build("retort/fcn", widths=WIDTHS).eval()
        logits, stages, before = second_time(plain.Layers(network.state_dict()), plain.pictures())
        seen = network.observe(plain.pictures())
        plain.check(seen, logits=logits, stages=stages, before=before)
        assert torch.equal(seen.logits, network(plain.pictures()))
        assert seen.logits.shape == (2, 5, 32, 32)

    def test_its_embedding_is_the_average_of_its_last_map(self) -> None:
        network = plain.build("retort/fcn", widths=WIDTHS).eval()
        seen = network.observe(plain.pictures())
        assert seen.final is not None
        assert torch.equal(seen.pooled, seen.final.mean(dim=(2, 3)))
        assert seen.pooled.shape == (2, network.pooled_width)

    def test_is_for_segmentation_and_has_no_linear_classifier(self) -> None:
        network = plain.build("retort/fcn", widths=WIDTHS)
        assert network.task == "segmentation"
        assert network.pooled_classifier() is None
        assert [norm.num_features for norm in network.stage_norms()] == WIDTHS

    def test_a_pixel_depends_on_its_neighbourhood_alone(self) -> None:
        network = plain.build("retort/fcn", widths=WIDTHS).eval()
        images = plain.pictures()
        changed = images.clone()
        changed[:, :, 16, 16] += 1
        moved = (network(changed) - network(images)).abs().sum(dim=(0, 1)) > 0
        rows, columns = moved.nonzero(as_tuple=True)
        # Three layers see three pixels to each side.
        assert (int(rows.min()), int(rows.max())) == (13, 19)
        assert (int(columns.min()), int(columns.max())) == (13, 19)

    @pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 21)])
    def test_takes_images_of_any_size_from_eight(self, height: int, width: int) -> None:
        network = catalog.build(
            "retort/fcn", classes=2, channels=1, height=height, width=width, arguments={}
        ).eval()
        assert network(torch.zeros(1, 1, height, width)).shape == (1, 2, height, width)
        measured = shapes.measure(network)
        assert measured.stages == tuple((channels, height, width) for channels in (32, 32, 64))
        assert network.stages_info == tuple(interface.StageInfo(c, 1) for c in (32, 32, 64))

    def test_gradients_reach_every_parameter(self) -> None:
        network = plain.build("retort/fcn", widths=WIDTHS).train()
        network.observe(plain.pictures()).logits.square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_has_as_many_parameters_as_the_table_says(self) -> None:
        network = catalog.build(
            "retort/fcn", classes=100, channels=3, height=8, width=8, arguments={}
        )
        count = sum(parameter.numel() for parameter in network.parameters())
        assert catalog.NETWORKS["retort/fcn"].parameters_100 == count

    @pytest.mark.parametrize("widths", [[], [0], [4] * 17, "wide"])
    def test_bad_widths_are_named(self, widths: object) -> None:
        with pytest.raises(errors.UnknownNetwork, match="argument 'widths'"):
            catalog.build(
                "retort/fcn",
                classes=2,
                channels=1,
                height=8,
                width=8,
                arguments={"widths": widths},
            )
