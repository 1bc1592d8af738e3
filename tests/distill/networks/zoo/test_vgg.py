"""Plain convolutional networks compute what is published, under the published names."""

import pytest
from torch import Tensor
from torch.nn import functional

from tests.distill.networks import plain
from workers.distill.networks.zoo import vgg

WIDTHS = [4, 4, 6, 8, 10]


def second_time(
    layers: plain.Layers, images: Tensor, *, pools_last: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    maps, stages, before = images, [], []
    for stage, count in enumerate(vgg.LAYERS[11]):
        if stage in (1, 2, 3) or (stage == 4 and pools_last):
            maps = functional.max_pool2d(maps, 2)
        for layer in range(count):
            normed = layers.norm(
                f"block{stage}.{3 * layer + 1}", layers.conv(f"block{stage}.{3 * layer}", maps)
            )
            maps = normed.relu()
        before.append(normed)
        stages.append(maps)
    return layers.linear("classifier", maps.mean(dim=(2, 3))), stages[1:], before[1:]


class TestVGG:
    @pytest.mark.parametrize(("side", "pools_last"), [(32, False), (64, True)])
    def test_computes_what_is_published(self, side: int, pools_last: bool) -> None:
        network = plain.build("retort/vgg11", side=side, widths=WIDTHS).eval()
        images = plain.pictures(side)
        logits, stages, before = second_time(
            plain.Layers(network.state_dict()), images, pools_last=pools_last
        )
        plain.check(network.observe(images), logits=logits, stages=stages, before=before)

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        expected = {"classifier.weight", "classifier.bias"}
        for stage, count in enumerate((1, 1, 2, 2, 2)):
            for layer in range(count):
                expected |= {f"block{stage}.{3 * layer}.{part}" for part in ("weight", "bias")}
                expected |= plain.norm_names(f"block{stage}.{3 * layer + 1}")
        assert plain.names(plain.build("retort/vgg11", widths=WIDTHS)) == expected
