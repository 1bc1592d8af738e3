"""MobileNetV1 computes what is published, under the published names."""

from torch import Tensor

from tests.distill.networks import plain

HALVING = (2, 4, 6, 12)
STAGE_ENDS = (3, 5, 11, 13)


def second_time(layers: plain.Layers, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    maps = layers.norm("model.0.1", layers.conv("model.0.0", images, stride=2)).relu()
    stages, before = [], []
    for block in range(1, 14):
        stride = 2 if block in HALVING else 1
        filtered = layers.conv(f"model.{block}.0", maps, stride=stride, groups=maps.shape[1])
        hidden = layers.norm(f"model.{block}.1", filtered).relu()
        normed = layers.norm(f"model.{block}.4", layers.conv(f"model.{block}.3", hidden))
        maps = normed.relu()
        if block in STAGE_ENDS:
            before.append(normed)
            stages.append(maps)
    return layers.linear("fc", maps.mean(dim=(2, 3))), stages, before


class TestMobileNetV1:
    def test_computes_what_is_published(self) -> None:
        network = plain.build("retort/mobilenetv1", side=64, width_multiplier=0.125).eval()
        images = plain.pictures(64)
        logits, stages, before = second_time(plain.Layers(network.state_dict()), images)
        plain.check(network.observe(images), logits=logits, stages=stages, before=before)

    def test_names_its_parameters_as_published_checkpoints_do(self) -> None:
        expected = {"fc.weight", "fc.bias", "model.0.0.weight", *plain.norm_names("model.0.1")}
        for block in range(1, 14):
            for place in (0, 3):
                expected |= {f"model.{block}.{place}.weight"}
                expected |= plain.norm_names(f"model.{block}.{place + 1}")
        network = plain.build("retort/mobilenetv1", width_multiplier=0.1)
        assert plain.names(network) == expected
