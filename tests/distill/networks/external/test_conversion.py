"""Files of a network's twin in the other library are read if both give the same logits."""

from pathlib import Path

import pytest
import torch

from workers.distill import errors
from workers.distill.networks import catalog, interface, weights
from workers.distill.networks.external import conversion


def a_network(reference: str, seed: int) -> interface.Network:
    torch.manual_seed(seed)
    network = catalog.build(reference, classes=3, channels=3, height=32, width=32, arguments={})
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


class TestTwins:
    @pytest.mark.parametrize(
        ("of_file", "wanted"),
        [
            ("torchvision/mnasnet0_5", "timm/mnasnet_050"),
            ("timm/mobilenetv2_100", "torchvision/mobilenet_v2"),
        ],
    )
    def test_the_same_network_of_the_other_library(
        self, tmp_path: Path, of_file: str, wanted: str
    ) -> None:
        trained, network = a_network(of_file, 1), a_network(wanted, 2)
        torch.save({"model": trained.state_dict()}, tmp_path / "x")
        told = weights.load_into(network, tmp_path / "x").warnings
        assert f"the names of {of_file}, which is the same network, were converted" in told
        images = torch.rand(1, 3, 32, 32)
        assert torch.allclose(network(images), trained(images), rtol=1e-3, atol=1e-4)

    def test_one_that_computes_something_else_is_named(self, tmp_path: Path) -> None:
        trained = a_network("torchvision/mobilenet_v3_small", 1)
        for key, tensor in trained.state_dict().items():
            if key.endswith("running_var"):
                tensor.fill_(1e-3)  # as large as the epsilon of one, which the other has not
        torch.save(trained.state_dict(), tmp_path / "x")
        with pytest.raises(errors.KeysMismatch, match="choose that network") as caught:
            weights.load_into(a_network("timm/mobilenetv3_small_100", 2), tmp_path / "x")
        assert "those of torchvision/mobilenet_v3_small" in caught.value.message

    def test_all_twins_exist(self) -> None:
        known = catalog.foreign()
        assert set(conversion.TWINS) <= set(known["torchvision"])
        assert set(conversion.TWINS.values()) <= set(known["timm"])


class TestFilters:
    def test_names_of_the_first_authors_are_those_that_timm_converts(self, tmp_path: Path) -> None:
        trained = a_network("timm/test_convnext", 1)
        state = {}
        for key, tensor in trained.state_dict().items():
            name = key.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
            for own, theirs in (
                ("conv_dw", "dwconv"),
                ("mlp.fc1", "pwconv1"),
                ("mlp.fc2", "pwconv2"),
                ("head.fc", "head"),
                ("head.norm", "norm"),
            ):
                name = name.replace(own, theirs)
            for stage in range(4):
                name = name.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
            state[name] = tensor
        torch.save({"model": state}, tmp_path / "x")
        network = a_network("timm/test_convnext", 2)
        told = weights.load_into(network, tmp_path / "x").warnings
        assert "the names of the files that timm converts were converted" in told
        images = torch.rand(1, 3, 32, 32)
        assert torch.equal(network(images), trained(images))
