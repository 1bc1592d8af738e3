from pathlib import Path

import pytest
import torch

from workers.distill import errors
from workers.distill.networks import backbones, catalog, weights
from workers.distill.networks.interface import Network
from workers.distill.networks.readings import Choice

OWN = ["retort/resnet8", "retort/vgg8", "retort/mobilenetv2", "retort/mlp", "retort/convnet"]
FOREIGN = {
    "timm/resnet10t": {},
    "timm/vit_tiny_patch16_224": {"patch_size": 8, "depth": 2},
    "torchvision/mobilenet_v3_small": {},
}
SIDE = 32


def build(reference: str, classes: int) -> Network:
    torch.manual_seed(0)
    return catalog.build(
        reference,
        classes=classes,
        channels=3,
        height=SIDE,
        width=SIDE,
        arguments=FOREIGN.get(reference, {}),
    ).eval()


@torch.no_grad()
def answers(network: Network) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return network(images), network.observe(images).pooled


class TestBackbone:
    @pytest.mark.parametrize("reference", [*OWN, *FOREIGN])
    def test_answers_with_the_embedding_of_the_same_network(self, reference: str) -> None:
        whole, backbone = build(reference, 5), build(reference, 0)
        path = backbones.classifier_path(whole)
        assert backbone.removed_classifier == path
        kept = {k: v for k, v in whole.state_dict().items() if not k.startswith(f"{path}.")}
        backbone.load_state_dict(kept)  # strictly: nothing but the classifier is gone
        embedding, pooled = answers(backbone)
        assert torch.equal(embedding, pooled)
        assert torch.allclose(embedding, answers(whole)[1], atol=1e-6)
        assert embedding.shape == (2, backbone.pooled_width)
        assert (backbone.task, backbone.classes, backbone.pooled_classifier()) == (
            "embedding",
            0,
            None,
        )

    def test_shows_its_maps(self) -> None:
        images = torch.zeros(1, 3, SIDE, SIDE)
        assert len(build("timm/vit_tiny_patch16_224", 0).observe(images).stages) == 2

    def test_is_built_by_its_library_as_its_file_has_it(self) -> None:
        import timm

        backbone = build("timm/vit_tiny_patch16_224", 0)
        call = backbone.library_call
        assert call is not None
        plain = timm.create_model(call.name, **call.keywords)
        for path in call.replaced:
            plain.set_submodule(path, torch.nn.Identity())
        plain.load_state_dict(backbone.state_dict())

    def test_takes_the_file_of_a_network_of_timm_without_classes(self, tmp_path: Path) -> None:
        import timm

        plain = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=SIDE, patch_size=8, depth=2
        )
        torch.save(plain.state_dict(), tmp_path / "dino.pth")
        backbone = build("timm/vit_tiny_patch16_224", 0)
        assert weights.load_into(backbone, tmp_path / "dino.pth").warnings == ()
        images = torch.randn(2, 3, SIDE, SIDE)
        assert torch.allclose(backbone(images), plain.eval()(images), atol=1e-5)

    def test_a_network_without_a_linear_classifier_is_refused(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="retort/fcn has no linear classifier"):
            build("retort/fcn", 0)


class TestWrongFiles:
    def save(self, folder: Path, classes: int) -> Path:
        path = folder / "network.safetensors"
        weights.save_student(path, build("retort/resnet8", classes), {"format": "pt"})
        return path

    def test_a_classifier_as_a_backbone_is_told_what_to_do(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, 5)
        with pytest.raises(errors.KeysMismatch, match="said to have none: register it as task"):
            weights.load_into(build("retort/resnet8", 0), path)
        loaded = weights.load_into(build("retort/resnet8", 0), path, choice=Choice(strict=False))
        assert "left aside: fc" in loaded.warnings[0]

    def test_a_backbone_as_a_classifier_is_told_what_to_do(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, 0)
        with pytest.raises(errors.KeysMismatch, match="register it as task embedding, without"):
            weights.load_into(build("retort/resnet8", 5), path)
