"""Networks of timm and torchvision show their features and keep their own parameter names."""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.networks import catalog, interface
from workers.distill.networks.external import observation, planning

SMALL = [
    "timm/resnet10t",
    "timm/vit_tiny_patch16_224",
    "timm/mobilenetv3_small_050",
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/squeezenet1_1",
]


def build(
    reference: str, *, classes: int = 5, channels: int = 3, side: int = 32, **arguments: Any
) -> interface.Network:
    torch.manual_seed(0)
    return catalog.build(
        reference,
        classes=classes,
        channels=channels,
        height=side,
        width=side,
        arguments=arguments,
    )


def pictures(channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


class Plain(nn.Module):
    """Convolutions as torchvision writes its VGG, with activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            nn.MaxPool2d(2),
            *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
            nn.MaxPool2d(2),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(images)).flatten(1))
        return logits


class PoolingHead(nn.Module):
    """Averages maps whose channels come last, as some of timm's heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.fc(maps.mean(dim=(1, 2)))
        return logits


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2))
        self.head = PoolingHead()

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(images).permute(0, 2, 3, 1))
        return logits


class TestBuild:
    @pytest.mark.parametrize("reference", SMALL)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_observes_the_logits_that_forward_gives(self, reference: str, channels: int) -> None:
        network, images = build(reference, channels=channels).eval(), pictures(channels)
        seen = network.observe(images)
        assert seen.logits.shape == (2, 5)
        assert torch.equal(seen.logits, network(images))
        assert seen.pooled.shape == (2, network.pooled_width)
        assert len(seen.stages) >= 3
        assert [stage.shape[1] for stage in seen.stages] == [
            stage.channels for stage in network.stages_info
        ]

    def test_timm_checkpoints_load_as_they_are_and_students_load_into_plain_timm(self) -> None:
        plain = timm.create_model("resnet10t", pretrained=False, num_classes=5).eval()
        network = build("timm/resnet10t").eval()
        network.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(network(pictures()), plain(pictures()))
        fresh = timm.create_model("resnet10t", pretrained=False, num_classes=5)
        fresh.load_state_dict(network.state_dict(), strict=True)

    def test_torchvision_checkpoints_load_as_they_are(self) -> None:
        plain = torchvision.models.resnet18(weights=None, num_classes=5).eval()
        network = build("torchvision/resnet18").eval()
        network.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(network(pictures()), plain(pictures()))
        assert [name for name, _ in network.named_parameters()] == [
            name for name, _ in plain.named_parameters()
        ]

    def test_residual_stages_leave_the_stem_out(self) -> None:
        for reference in ("timm/resnet10t", "torchvision/resnet18"):
            network = build(reference).eval()
            assert network.stages_info == tuple(
                interface.StageInfo(channels, stride)
                for channels, stride in ((64, 4), (128, 8), (256, 16), (512, 32))
            )
            seen = network.observe(pictures())
            assert seen.stem is not None
            assert seen.stem.shape[1:] == (64, 16, 16)
            assert [stage.shape[2] for stage in seen.stages] == [8, 4, 2, 1]

    def test_transformer_takes_the_size_of_the_pictures_and_shows_four_blocks(self) -> None:
        network = build("timm/vit_tiny_patch16_224", side=64).eval()
        seen = network.observe(pictures(side=64))
        assert [tuple(stage.shape[1:]) for stage in seen.stages] == [(192, 4, 4)] * 4

    def test_named_taps_are_the_stages(self) -> None:
        network = build("torchvision/resnet18", taps=["layer1.0", "layer3"]).eval()
        seen = network.observe(pictures())
        assert [tuple(stage.shape[1:]) for stage in seen.stages] == [(64, 8, 8), (256, 2, 2)]
        assert torch.equal(seen.logits, network(pictures()))

    def test_tapped_tokens_become_maps(self) -> None:
        network = build("timm/vit_tiny_patch16_224", side=64, taps=["blocks.0"]).eval()
        assert network.observe(pictures(side=64)).stages[0].shape == (2, 192, 4, 4)

    def test_unknown_tap_comes_with_the_nearest_module(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="did you mean 'layer1'"):
            build("torchvision/resnet18", taps=["layer1x"])

    def test_no_hooks_stay_behind(self) -> None:
        network = build("torchvision/resnet18", taps=["layer1"]).eval()
        network.observe(pictures())
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())

    def test_gradients_reach_every_parameter_through_observe(self) -> None:
        network = build("timm/resnet10t").train()
        network.observe(pictures(side=64)).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_copies_are_independent(self) -> None:
        network = build("torchvision/squeezenet1_1").eval()
        twin = copy.deepcopy(network)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert network(pictures()).abs().sum() > 0
        assert torch.equal(twin.observe(pictures()).logits, torch.zeros(2, 5))

    def test_auxiliary_logits_are_dropped_in_training(self) -> None:
        network = build("torchvision/googlenet", side=64).train()
        assert isinstance(network(pictures(side=64)), Tensor)

    def test_arguments_reach_the_library(self) -> None:
        network = build("timm/resnet10t", drop_rate=0.5).train()
        assert network.drop_rate == 0.5
        images = pictures(side=64)
        assert not torch.equal(network.observe(images).logits, network.observe(images).logits)

    @pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "weights", "features_only"])
    def test_arguments_that_fetch_or_read_files_are_refused(self, name: str) -> None:
        with pytest.raises(errors.UnknownNetwork, match=f"no argument '{name}'"):
            build("timm/resnet10t", **{name: True})

    def test_argument_of_another_network_is_refused_in_the_librarys_words(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="patch_size"):
            build("torchvision/resnet18", patch_size=4)

    def test_size_that_a_network_cannot_take_is_refused(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="images of 3x32x32"):
            build("torchvision/alexnet")

    def test_a_foreign_network_is_still_the_foreign_class(self) -> None:
        network: nn.Module = build("torchvision/resnet18")
        assert isinstance(network, torchvision.models.ResNet)
        assert isinstance(network, interface.Network)


class TestShows:
    """What is found by trial beyond logits and stages."""

    # Where the last map is pooled and a linear layer follows.
    @pytest.mark.parametrize(
        ("reference", "arguments"),
        [
            ("timm/resnet10t", {}),
            ("timm/test_efficientnet", {}),
            ("timm/test_byobnet", {}),
            ("timm/test_nfnet", {}),
            ("timm/swin_tiny_patch4_window7_224", {"embed_dim": 24}),
            ("torchvision/resnet18", {}),
            ("torchvision/mnasnet0_5", {}),
            ("torchvision/shufflenet_v2_x0_5", {}),
        ],
    )
    def test_the_last_map_averages_to_the_embedding(
        self, reference: str, arguments: dict[str, Any]
    ) -> None:
        network = build(reference, side=64, **arguments).eval()
        seen = network.observe(pictures(side=64))
        classifier = network.pooled_classifier()
        assert seen.final is not None
        assert seen.final.shape[1:] == (network.pooled_width, 2, 2)
        assert classifier is not None
        for mine, theirs in (
            (seen.final.mean(dim=(2, 3)), seen.pooled),
            (classifier(seen.pooled), seen.logits),
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)

    # A class token, a norm or a layer after pooling.
    @pytest.mark.parametrize(
        "reference",
        ["timm/vit_tiny_patch16_224", "timm/test_convnext", "timm/mobilenetv3_small_050"],
    )
    def test_no_map_is_made_up_where_the_embedding_is_no_average(self, reference: str) -> None:
        network = build(reference, side=64).eval()
        assert network.observe(pictures(side=64)).final is None
        assert network.pooled_classifier() is not None

    @pytest.mark.parametrize(
        "reference", ["torchvision/squeezenet1_1", "timm/deit_tiny_distilled_patch16_224"]
    )
    def test_other_classifiers_are_not_passed_off_as_linear(self, reference: str) -> None:
        assert build(reference, side=64).pooled_classifier() is None

    def test_classifier_that_starts_with_zeros_is_found(self) -> None:
        network = build("timm/test_vit", side=64, global_pool="avg")
        classifier = network.pooled_classifier()
        assert isinstance(classifier, nn.Linear)
        assert classifier.out_features == 5

    @pytest.mark.parametrize(
        ("reference", "norms"),
        [
            ("torchvision/resnet18", [f"layer{stage}.1.bn2" for stage in (1, 2, 3, 4)]),
            ("timm/resnet10t", [f"layer{stage}.0.bn2" for stage in (1, 2, 3, 4)]),
        ],
    )
    def test_residual_stages_show_what_stood_before_their_activation(
        self, reference: str, norms: list[str]
    ) -> None:
        network = build(reference, side=64).eval()
        network.enable_features(["pre_activations"])
        with torch.no_grad():
            # timm starts these at zero, where a block is nothing but its shortcut.
            for norm in network.stage_norms():
                norm.weight.fill_(1)
        for is_training in (False, True):
            seen = network.train(is_training).observe(pictures(side=64))
            for before, stage in zip(seen.pre_activations, seen.stages, strict=True):
                assert (before < 0).any()
                assert torch.equal(stage, before.relu())
        assert list(network.stage_norms()) == [network.get_submodule(name) for name in norms]

    def test_plain_stages_show_what_stood_before_their_activation(self) -> None:
        module = Plain()
        plan = planning.make_plan(
            module, classes=5, images=observation.picture(3, 32, 32), taps=None
        )
        seen = observation.trial(module, plan, pictures())
        assert [stage.shape[1] for stage in seen.stages] == [6, 8]
        for before, stage in zip(seen.pre_activations, seen.stages, strict=True):
            assert (before < 0).any()
            assert torch.equal(stage, before.relu())
        assert plan.norms == ("features.5", "features.9")
        assert seen.final is seen.stages[-1]

    def test_hooks_of_timm_wait_until_they_are_wanted(self) -> None:
        network = build("timm/resnet10t", side=64).eval()
        assert network.observe(pictures(side=64)).pre_activations == ()
        network.enable_features(["stages"])
        assert network.observe(pictures(side=64)).pre_activations == ()

    @pytest.mark.parametrize(
        "reference", ["timm/vit_tiny_patch16_224", "timm/test_convnext", "timm/test_efficientnet"]
    )
    def test_stages_that_end_otherwise_show_nothing_before(self, reference: str) -> None:
        network = build(reference, side=64).eval()
        network.enable_features(["pre_activations"])
        assert network.observe(pictures(side=64)).pre_activations == ()
        assert network.stage_norms() == ()

    def test_gradients_pass_through_what_is_shown(self) -> None:
        network = build("torchvision/resnet18", side=64).train()
        seen = network.observe(pictures(side=64))
        assert seen.final is not None
        total = seen.final.square().sum() + sum(
            before.square().sum() for before in seen.pre_activations
        )
        total.backward()
        assert network.get_submodule("conv1").weight.grad is not None

    def test_heads_that_pool_channels_last_maps_are_looked_into(self) -> None:
        module = ChannelsLast()
        plan = planning.make_plan(
            module, classes=5, images=observation.picture(3, 32, 32), taps=None
        )
        seen = observation.trial(module, plan, pictures())
        assert plan.classifier == "head.fc"
        assert plan.is_linear
        assert seen.final is not None
        torch.testing.assert_close(seen.pooled, seen.final.mean(dim=(2, 3)))

    def test_tokens_of_torchvision_become_maps_without_the_class_token(self) -> None:
        encoder = torchvision.models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=4, num_heads=2, hidden_dim=8, mlp_dim=8
        )
        plan = planning.make_plan(
            encoder, classes=1000, images=observation.picture(3, 64, 64), taps=None
        )
        seen = observation.trial(encoder, plan, pictures(side=64))
        assert [tuple(stage.shape[1:]) for stage in seen.stages] == [(8, 4, 4)] * 4
        assert seen.final is None
        assert plan.is_linear
