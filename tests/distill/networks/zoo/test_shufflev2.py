"""ShuffleNetV2 computes what is published, under the published names."""

import torch
from torch import Tensor

from tests.distill.networks import plain

WIDTHS = [8, 12, 16]
BLOCKS = (4, 8, 4)


def down(layers: plain.Layers, prefix: str, maps: Tensor) -> Tensor:
    left = layers.conv(f"{prefix}conv1", maps, stride=2, groups=maps.shape[1])
    left = layers.conv(f"{prefix}conv2", layers.norm(f"{prefix}bn1", left))
    right = layers.norm(f"{prefix}bn3", layers.conv(f"{prefix}conv3", maps)).relu()
    right = layers.conv(f"{prefix}conv4", right, stride=2, groups=right.shape[1])
    right = layers.conv(f"{prefix}conv5", layers.norm(f"{prefix}bn4", right))
    both = (layers.norm(f"{prefix}bn2", left), layers.norm(f"{prefix}bn5", right))
    return plain.shuffled(torch.cat(both, dim=1).relu(), 2)


def second_time(layers: plain.Layers, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    maps = layers.norm("bn1", layers.conv("conv1", images)).relu()
    stages, before = [], []
    for stage, count in enumerate(BLOCKS, start=1):
        maps = down(layers, f"layer{stage}.0.", maps)
        for block in range(1, count):
            prefix = f"layer{stage}.{block}."
            half = maps.shape[1] // 2
            hidden = layers.conv(f"{prefix}conv1", maps[:, half:])
            hidden = layers.norm(f"{prefix}bn1", hidden).relu()
            hidden = layers.conv(f"{prefix}conv2", hidden, groups=half)
            hidden = layers.conv(f"{prefix}conv3", layers.norm(f"{prefix}bn2", hidden))
            made = layers.norm(f"{prefix}bn3", hidden)
            kept = maps[:, :half]
            total = plain.shuffled(torch.cat([kept, made], dim=1), 2)
            maps = plain.shuffled(torch.cat([kept, made.relu()], dim=1), 2)
        before.append(total)
        stages.append(maps)
    last = layers.norm("bn2", layers.conv("conv2", maps)).relu()
    return layers.linear("linear", last.mean(dim=(2, 3))), stages, before


class TestShuffleV2:
    def test_computes_what_is_published(self) -> None:
        network = plain.build("retort/shufflev2", widths=WIDTHS, last_width=20).eval()
        logits, stages, before = second_time(plain.Layers(network.state_dict()), plain.pictures())
        plain.check(network.observe(plain.pictures()), logits=logits, stages=stages, before=before)

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        expected = {"linear.weight", "linear.bias"}
        for number in (1, 2):
            expected |= {f"conv{number}.weight"} | plain.norm_names(f"bn{number}")
        for stage, count in enumerate(BLOCKS, start=1):
            for block in range(count):
                for number in range(1, 4 if block else 6):
                    expected |= {f"layer{stage}.{block}.conv{number}.weight"}
                    expected |= plain.norm_names(f"layer{stage}.{block}.bn{number}")
        assert plain.names(plain.build("retort/shufflev2", widths=WIDTHS)) == expected
