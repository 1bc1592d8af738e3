"""The MobileNetV2 for 64x64 images computes what is published, under the published names."""

import torch
from torch import Tensor
from torch.nn import functional

from tests.distill.networks import plain

COUNTS = {2: 2, 3: 3, 4: 4, 5: 3, 6: 3}
STRIDES = {2: 2, 3: 2, 4: 2}


def bottleneck(layers: plain.Layers, prefix: str, maps: Tensor, stride: int) -> Tensor:
    wide = functional.relu6(layers.norm(f"{prefix}1", layers.conv(f"{prefix}0", maps)))
    filtered = layers.norm(
        f"{prefix}4", layers.conv(f"{prefix}3", wide, stride=stride, groups=wide.shape[1])
    )
    projected = layers.norm(f"{prefix}7", layers.conv(f"{prefix}6", functional.relu6(filtered)))
    return maps + projected if maps.shape == projected.shape else projected


def second_time(layers: plain.Layers, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    bordered = functional.pad(images, (1, 1, 1, 1))
    maps = functional.relu6(layers.norm("pre.1", layers.conv("pre.0", bordered)))
    maps = bottleneck(layers, "stage1.residual.", maps, 1)
    stages = []
    for group, count in COUNTS.items():
        for block in range(count):
            stride = STRIDES.get(group, 1) if block == 0 else 1
            maps = bottleneck(layers, f"stage{group}.{block}.residual.", maps, stride)
        if group < 5:
            stages.append(maps)
    maps = bottleneck(layers, "stage7.residual.", maps, 1)
    stages.append(functional.relu6(layers.norm("conv1.1", layers.conv("conv1.0", maps))))
    return layers.linear("conv2", stages[-1].mean(dim=(2, 3))), stages


class TestTinyMobileNetV2:
    def test_computes_what_is_published(self) -> None:
        network = plain.build("retort/tiny_mobilenetv2", width_multiplier=0.25).eval()
        logits, stages = second_time(plain.Layers(network.state_dict()), plain.pictures())
        plain.check(network.observe(plain.pictures()), logits=logits, stages=stages, before=[])

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        blocks = {"stage1", "stage7"}
        blocks |= {f"stage{group}.{block}" for group in COUNTS for block in range(COUNTS[group])}
        expected = {"conv2.weight", "conv2.bias"}
        for name in ("pre", "conv1"):
            expected |= {f"{name}.0.weight", f"{name}.0.bias"} | plain.norm_names(f"{name}.1")
        for block in blocks:
            for place in (0, 3, 6):
                prefix = f"{block}.residual.{place}"
                expected |= {f"{prefix}.weight", f"{prefix}.bias"}
                expected |= plain.norm_names(f"{block}.residual.{place + 1}")
        assert plain.names(plain.build("retort/tiny_mobilenetv2", width_multiplier=0.1)) == expected

    def test_its_classifier_equals_the_published_convolution(self) -> None:
        network = plain.build("retort/tiny_mobilenetv2", width_multiplier=0.1).eval()
        seen = network.observe(plain.pictures())
        weight = network.state_dict()["conv2.weight"][:, :, None, None]
        convolved = functional.conv2d(
            seen.pooled[:, :, None, None], weight, network.state_dict()["conv2.bias"]
        )
        torch.testing.assert_close(convolved.flatten(1), seen.logits)
