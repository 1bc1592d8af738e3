"""The small MobileNetV2 computes what is published, under the published names."""

from torch import Tensor

from tests.distill.networks import plain

COUNTS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 1, 2, 2, 1, 2, 1)


def second_time(layers: plain.Layers, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    maps = layers.norm("conv1.1", layers.conv("conv1.0", images, stride=2)).relu()
    stages = []
    for group, (count, stride) in enumerate(zip(COUNTS, STRIDES, strict=True)):
        for block in range(count):
            prefix = f"blocks.{group}.{block}.conv."
            wide = layers.norm(f"{prefix}1", layers.conv(f"{prefix}0", maps)).relu()
            step = stride if block == 0 else 1
            filtered = layers.conv(f"{prefix}3", wide, stride=step, groups=wide.shape[1])
            projected = layers.norm(
                f"{prefix}7",
                layers.conv(f"{prefix}6", layers.norm(f"{prefix}4", filtered).relu()),
            )
            maps = maps + projected if maps.shape == projected.shape else projected
        if group in (1, 2, 4, 6):
            stages.append(maps)
    last = layers.norm("conv2.1", layers.conv("conv2.0", maps)).relu()
    return layers.linear("classifier.0", last.mean(dim=(2, 3))), stages


class TestMobileNetV2:
    def test_computes_what_is_published(self) -> None:
        network = plain.build("retort/mobilenetv2", width_multiplier=0.25).eval()
        logits, stages = second_time(plain.Layers(network.state_dict()), plain.pictures())
        plain.check(network.observe(plain.pictures()), logits=logits, stages=stages, before=[])

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        expected = {"classifier.0.weight", "classifier.0.bias"}
        for name in ("conv1", "conv2"):
            expected |= {f"{name}.0.weight"} | plain.norm_names(f"{name}.1")
        for group, count in enumerate(COUNTS):
            for block in range(count):
                prefix = f"blocks.{group}.{block}.conv"
                for place in (0, 3, 6):
                    expected |= {f"{prefix}.{place}.weight"}
                    expected |= plain.norm_names(f"{prefix}.{place + 1}")
        assert plain.names(plain.build("retort/mobilenetv2")) == expected

    def test_only_wider_networks_widen_the_last_convolution(self) -> None:
        assert plain.build("retort/mobilenetv2", width_multiplier=0.1).pooled_width == 1280
        assert plain.build("retort/mobilenetv2", width_multiplier=1.5).pooled_width == 1920
