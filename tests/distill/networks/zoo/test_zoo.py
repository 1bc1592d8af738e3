"""Every network of our own has the published size and shapes, and shows what the table says."""

import functools

import pytest
import torch

from workers.distill.config.descriptions import DETECTORS, FEATURES, OF_EVERY_NETWORK
from workers.distill.networks import catalog, interface, shapes

Shape = tuple[int, int, int]


def maps(*sizes: tuple[int, int]) -> tuple[Shape, ...]:
    return tuple((channels, side, side) for channels, side in sizes)


NARROW = maps((16, 32), (16, 32), (32, 16), (64, 8))
FOUR_TIMES = maps((32, 32), (64, 32), (128, 16), (256, 8))
TWICE = maps((16, 32), (32, 32), (64, 16), (128, 8))
VGG = maps((64, 32), (128, 16), (256, 8), (512, 4), (512, 4))
LARGE_BASIC = maps((64, 112), (64, 56), (128, 28), (256, 14), (512, 7))

# The guide's table: parameters, stem and stages, width of the embedding; for 100 classes and
# images of 32x32 unless said.
TABLE = {
    "resnet8": (83_892, NARROW, 64),
    "resnet14": (181_108, NARROW, 64),
    "resnet20": (278_324, NARROW, 64),
    "resnet32": (472_756, NARROW, 64),
    "resnet44": (667_188, NARROW, 64),
    "resnet56": (861_620, NARROW, 64),
    "resnet110": (1_736_564, NARROW, 64),
    "resnet8x4": (1_233_540, FOUR_TIMES, 256),
    "resnet32x4": (7_433_860, FOUR_TIMES, 256),
    "wrn_16_1": (180_916, NARROW, 64),
    "wrn_16_2": (703_284, TWICE, 128),
    "wrn_40_1": (569_780, NARROW, 64),
    "wrn_40_2": (2_255_156, TWICE, 128),
    "vgg8": (3_965_028, VGG, 512),
    "vgg11": (9_277_284, VGG, 512),
    "vgg13": (9_462_180, VGG, 512),
    "vgg16": (14_774_436, VGG, 512),
    "vgg19": (20_086_692, VGG, 512),
    "mobilenetv2": (812_836, maps((16, 16), (12, 16), (16, 8), (48, 4), (160, 2)), 1280),
    "shufflev1": (949_258, maps((24, 32), (240, 16), (480, 8), (960, 4)), 960),
    "shufflev2": (1_355_528, maps((24, 32), (116, 16), (232, 8), (464, 4)), 1024),
    "resnet18": (11_220_132, maps((64, 32), (64, 32), (128, 16), (256, 8), (512, 4)), 512),
    "resnet50": (23_705_252, maps((64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)), 2048),
    "imagenet_resnet18": (11_689_512, LARGE_BASIC, 512),
    "imagenet_resnet34": (21_797_672, LARGE_BASIC, 512),
    "imagenet_resnet50": (
        25_557_032,
        maps((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)),
        2048,
    ),
    # Published without a stem: the first convolution is ours.
    "mobilenetv1": (
        4_231_976,
        maps((32, 112), (128, 56), (256, 28), (512, 14), (1024, 7)),
        1024,
    ),
    "tiny_mobilenetv2": (
        2_497_480,
        maps((32, 66), (24, 33), (32, 17), (64, 9), (1280, 9)),
        1280,
    ),
}
LARGE = {"imagenet_resnet18", "imagenet_resnet34", "imagenet_resnet50", "mobilenetv1"}
WITHOUT_PRE_ACTIVATIONS = {"mobilenetv2", "tiny_mobilenetv2"}
WITHOUT_NORMS = {*WITHOUT_PRE_ACTIVATIONS, "shufflev1", "shufflev2"}


@functools.cache
def without_weights(name: str, *, classes: int, side: int) -> interface.Network:
    """Build a network whose tensors have shapes only, which costs nothing."""
    with torch.device("meta"):
        return catalog.build(
            f"retort/{name}", classes=classes, channels=3, height=side, width=side, arguments={}
        )


def published(name: str) -> interface.Network:
    if name in LARGE:
        return without_weights(name, classes=1000, side=224)
    if name == "tiny_mobilenetv2":
        return without_weights(name, classes=200, side=64)
    return without_weights(name, classes=100, side=32)


@functools.cache
def measured(name: str) -> shapes.Shapes:
    return shapes.measure(published(name))


def count(network: interface.Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class TestTable:
    @pytest.mark.parametrize("name", TABLE)
    def test_has_the_published_number_of_parameters_and_shapes(self, name: str) -> None:
        parameters, (stem, *stages), pooled = TABLE[name]
        network = published(name)
        assert count(network) == parameters
        seen = measured(name)
        assert seen.stem == stem
        assert seen.stages == tuple(stages)
        assert seen.pooled == network.pooled_width == pooled
        assert seen.pre_activations == (() if name in WITHOUT_PRE_ACTIVATIONS else tuple(stages))
        assert [stage.channels for stage in network.stages_info] == [shape[0] for shape in stages]

    @pytest.mark.parametrize("name", TABLE)
    def test_shows_its_classifier_last_map_and_norms(self, name: str) -> None:
        network = published(name)
        seen = measured(name)
        assert seen.final is not None
        assert seen.final[0] == seen.pooled
        classifier = network.pooled_classifier()
        assert classifier is not None
        assert classifier.weight.shape == (network.classes, seen.pooled)
        widths = [norm.num_features for norm in network.stage_norms()]
        assert widths == ([] if name in WITHOUT_NORMS else [shape[0] for shape in seen.stages])

    @pytest.mark.parametrize("name", TABLE)
    def test_stages_are_as_much_smaller_as_they_say(self, name: str) -> None:
        network = published(name)
        side = network.image_shape[1]
        for stage, says in zip(measured(name).stages, network.stages_info, strict=True):
            # The border of one network's stem adds a pixel.
            assert stage[1] - side // says.stride in (0, 1)

    def test_one_network_serves_two_sizes_of_image(self) -> None:
        network = without_weights("resnet18", classes=200, side=64)
        assert count(network) == 11_271_432
        assert [stage[1] for stage in shapes.measure(network).stages] == [64, 32, 16, 8]

    def test_plain_networks_halve_large_images_once_more(self) -> None:
        network = without_weights("vgg8", classes=200, side=64)
        assert [stage[1] for stage in shapes.measure(network).stages] == [32, 16, 8, 4]
        assert network.stages_info[-1] == interface.StageInfo(512, 16)


class TestCatalog:
    def test_holds_the_whole_table(self) -> None:
        assert {f"retort/{name}" for name in TABLE} <= set(catalog.NETWORKS)

    @pytest.mark.parametrize("name", TABLE)
    def test_says_how_many_parameters_there_are_at_100_classes(self, name: str) -> None:
        network = published(name)
        spare = (network.classes - 100) * (network.pooled_width + 1)
        assert catalog.NETWORKS[f"retort/{name}"].parameters_100 == count(network) - spare

    @pytest.mark.parametrize("name", TABLE)
    def test_says_what_a_network_shows(self, name: str) -> None:
        network = published(name)
        seen = measured(name)
        shows = {
            "stages": bool(seen.stages),
            "pre_activations": bool(seen.pre_activations),
            "final": seen.final is not None,
            "norms": bool(network.stage_norms()),
            "classifier": network.pooled_classifier() is not None,
        }
        assert set(FEATURES) == {*shows, *DETECTORS, *OF_EVERY_NETWORK}
        features = tuple(word for word, there in shows.items() if there)
        assert catalog.NETWORKS[f"retort/{name}"].shows == features

    @pytest.mark.parametrize("name", TABLE)
    def test_takes_images_down_to_its_smallest_side(self, name: str) -> None:
        side = catalog.NETWORKS[f"retort/{name}"].smallest_side
        seen = shapes.measure(without_weights(name, classes=2, side=side))
        assert all(min(stage[1:]) >= 1 for stage in seen.stages)

    @pytest.mark.parametrize("name", [*TABLE, "mlp", "convnet"])
    def test_takes_images_of_another_size_where_the_catalog_says_so(self, name: str) -> None:
        network = without_weights(name, classes=2, side=32).eval()
        fits = True
        try:
            network(torch.zeros(1, 3, 40, 48, device="meta"))
        except RuntimeError:
            fits = False
        assert fits == catalog.NETWORKS[f"retort/{name}"].takes_any_size


# One of each family, as small as its arguments allow, at a size of image that is not the published.
SMALL: dict[str, tuple[int, dict[str, object]]] = {
    "resnet8": (20, {"widths": [4, 4, 6, 8]}),
    "resnet18": (20, {"widths": [4, 4, 6, 8, 10]}),
    "resnet50": (20, {"widths": [4, 4, 2, 3, 4]}),
    "wrn_16_1": (20, {"widths": [4, 4, 6, 8]}),
    "vgg11": (20, {"widths": [4, 4, 6, 8, 10]}),
    "mobilenetv2": (20, {"width_multiplier": 0.2, "expansion": 2}),
    "tiny_mobilenetv2": (20, {"width_multiplier": 0.2}),
    "shufflev1": (20, {"widths": [36, 48, 60]}),
    "shufflev2": (20, {"widths": [4, 6, 8], "last_width": 10}),
    "imagenet_resnet50": (48, {"widths": [4, 4, 2, 3, 4]}),
    "mobilenetv1": (48, {"width_multiplier": 0.1}),
}


def small(name: str) -> tuple[interface.Network, torch.Tensor]:
    side, arguments = SMALL[name]
    torch.manual_seed(0)
    network = catalog.build(
        f"retort/{name}", classes=5, channels=2, height=side, width=side, arguments=arguments
    ).double()
    images = torch.randn(
        3, 2, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return network, images


@pytest.mark.parametrize("name", SMALL)
class TestEveryFamily:
    @pytest.mark.parametrize("is_training", [True, False])
    def test_observes_the_logits_that_forward_gives(self, name: str, is_training: bool) -> None:
        network, images = small(name)
        network.train(is_training)
        assert torch.equal(network.observe(images).logits, network(images))

    def test_the_last_map_averages_to_the_embedding_and_that_classifies(self, name: str) -> None:
        network, images = small(name)
        seen = network.eval().observe(images)
        classifier = network.pooled_classifier()
        assert seen.final is not None
        assert classifier is not None
        torch.testing.assert_close(seen.final.mean(dim=(2, 3)), seen.pooled)
        torch.testing.assert_close(classifier(seen.pooled), seen.logits)

    def test_observing_updates_every_norm_once(self, name: str) -> None:
        network, images = small(name)
        network.train().observe(images)
        counters = [
            int(tensor)
            for key, tensor in network.state_dict().items()
            if key.endswith("num_batches_tracked")
        ]
        assert counters
        assert set(counters) == {1}

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        network, images = small(name)
        network.train().observe(images).logits.square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_stages_are_the_activated_pre_activations(self, name: str) -> None:
        network, images = small(name)
        seen = network.eval().observe(images)
        for before, stage in zip(seen.pre_activations, seen.stages, strict=False):
            assert (before < 0).any()
            if name.startswith("wrn"):
                # What stands before the activation there is the normed stage.
                assert (stage < 0).any()
            else:
                torch.testing.assert_close(stage, before.relu())
