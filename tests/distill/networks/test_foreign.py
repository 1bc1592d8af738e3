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
