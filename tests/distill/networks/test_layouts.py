"""Checkpoints of transformers load into the same network of timm, and give its answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.networks import catalog, interface, layouts, weights
from workers.distill.networks.readings import Choice

State = dict[str, Tensor]


def a_network(name: str, seed: int, side: int = 32, **arguments: Any) -> interface.Network:
    torch.manual_seed(seed)
    network = catalog.build(
        name, classes=3, channels=3, height=side, width=side, arguments=arguments
    )
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, -0.2, 0.2)
    return network


def as_transformers(network: interface.Network) -> State:
    """Return a network's weights under the names of transformers, as that library writes them."""
    own = network.state_dict()
    layout = next(
        layout
        for layout in layouts.candidates(own)
        if layout.title == "transformers" and all(layout.sources(key) for key in own)
    )
    state: State = {}
    for key, tensor in own.items():
        names = layout.sources(key) or ()
        parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor]
        state.update(zip(names, parts, strict=True))
    return state


class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("timm/test_vit", "vit.encoder.layer.5.attention.attention.value.bias"),
            ("timm/test_convnext", "convnext.encoder.stages.0.layers.0.layer_scale_parameter"),
            ("torchvision/resnet18", "resnet.encoder.stages.3.layers.1.layer.0.convolution.weight"),
        ],
    )
    def test_names_are_converted(self, tmp_path: Path, name: str, expected: str) -> None:
        trained = a_network(name, 1)
        state = as_transformers(trained)
        assert expected in state
        torch.save(state, tmp_path / "pytorch_model.bin")
        network = a_network(name, 2)
        told = weights.load_into(network, tmp_path / "pytorch_model.bin").warnings
        assert told == ("the names of transformers were converted",)
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(network.eval()(images), trained.eval()(images))

    def test_names_of_swin(self) -> None:
        own = layouts.candidates(["layers.0.blocks.0.attn.relative_position_bias_table"])
        _, swin = own
        for key, theirs in {
            "layers.1.downsample.norm.weight": "swin.encoder.layers.0.downsample.norm.weight",
            "layers.2.blocks.5.attn.qkv.bias": "swin.encoder.layers.2.blocks.5.attention.self."
            "query.bias",
            "head.fc.weight": "classifier.weight",
        }.items():
            assert (swin.sources(key) or ("",))[0] == theirs

    def test_another_network_of_theirs_says_what_to_do(self, tmp_path: Path) -> None:
        torch.save(as_transformers(a_network("timm/test_vit", 1)), tmp_path / "x")
        with pytest.raises(errors.KeysMismatch, match=r"names of transformers .vit.: choose the"):
            weights.load_into(a_network("timm/test_resnet", 2), tmp_path / "x")


class TestPositions:
    def test_another_size_is_named_and_interpolated_on_request(self, tmp_path: Path) -> None:
        torch.save(a_network("timm/test_vit", 1, side=64).state_dict(), tmp_path / "x")
        network = a_network("timm/test_vit", 2, side=32)
        with pytest.raises(errors.KeysMismatch, match="is for images of 64x64"):
            weights.load_into(network, tmp_path / "x")
        told = weights.load_into(network, tmp_path / "x", choice=Choice(resize_positions=True))
        assert "pos_embed was interpolated from [1, 17, 64] to [1, 5, 64]" in told.warnings[0]
