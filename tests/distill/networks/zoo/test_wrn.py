"""Wide residual networks compute what is published, under the published names."""

import torch
from torch import Tensor

from tests.distill.networks import plain

WIDTHS = [4, 4, 6, 8]


def second_time(layers: plain.Layers, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    maps = layers.conv("conv1", images)
    stages, before = [], []
    for stage in (1, 2, 3):
        for block in (0, 1):
            prefix = f"block{stage}.layer.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            normed = layers.norm(f"{prefix}bn1", maps)
            if stage > 1 and block == 0:
                before.append(normed)
            active = normed.relu()
            hidden = layers.conv(f"{prefix}conv1", active, stride=stride)
            added = layers.conv(f"{prefix}conv2", layers.norm(f"{prefix}bn2", hidden).relu())
            if layers.has(f"{prefix}convShortcut"):
                maps = layers.conv(f"{prefix}convShortcut", active, stride=stride)
            maps = maps + added
        stages.append(maps)
    before.append(layers.norm("bn1", maps))
    return layers.linear("fc", before[-1].relu().mean(dim=(2, 3))), stages, before


class TestWRN:
    def test_computes_what_is_published(self) -> None:
        network = plain.build("retort/wrn_16_1", widths=WIDTHS).eval()
        seen = network.observe(plain.pictures())
        logits, stages, before = second_time(plain.Layers(network.state_dict()), plain.pictures())
        plain.check(seen, logits=logits, stages=stages, before=before)

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        expected = {"conv1.weight", "fc.weight", "fc.bias", *plain.norm_names("bn1")}
        for stage in (1, 2, 3):
            for block in (0, 1):
                prefix = f"block{stage}.layer.{block}"
                for number in (1, 2):
                    expected |= {f"{prefix}.conv{number}.weight"}
                    expected |= plain.norm_names(f"{prefix}.bn{number}")
            if stage > 1:
                expected |= {f"block{stage}.layer.0.convShortcut.weight"}
        assert plain.names(plain.build("retort/wrn_16_1")) == expected

    def test_widening_the_first_stage_adds_a_projection(self) -> None:
        network = plain.build("retort/wrn_16_2")
        assert "block1.layer.0.convShortcut.weight" in network.state_dict()

    def test_the_norms_are_those_that_make_the_pre_activations(self) -> None:
        network = plain.build("retort/wrn_16_1", widths=WIDTHS).eval()
        seen = network.observe(plain.pictures())
        for norm, stage, before in zip(
            network.stage_norms(), seen.stages, seen.pre_activations, strict=True
        ):
            assert torch.equal(norm(stage), before)
