import pytest
import torch
from torch import nn

from workers.distill.networks import conditional
from workers.distill.networks.conditional import LabelInput


def latent_generator(label_input: LabelInput = "onehot") -> conditional.LatentGenerator:
    return conditional.LatentGenerator(
        classes=10, noise_size=32, hidden_size=256, latent_size=32, label_input=label_input
    )


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


class TestLatentGenerator:
    def test_has_the_published_size(self) -> None:
        assert parameters(latent_generator()) == 19_744

    @pytest.mark.parametrize("label_input", ["onehot", "embedding"])
    def test_gives_another_latent_for_another_class_or_noise(self, label_input: LabelInput) -> None:
        network = latent_generator(label_input).eval()
        noise = torch.rand(1, 32).expand(3, -1)
        latents = network(noise, torch.tensor([0, 1, 0]))
        assert latents.shape == (3, 32)
        assert torch.equal(latents[0], latents[2])
        assert not torch.equal(latents[0], latents[1])
        assert not torch.equal(network(noise + 1, torch.tensor([0, 1, 0])), latents)

    def test_serves_many_clients_at_once(self) -> None:
        network = latent_generator().eval()
        noise, labels = torch.rand(4, 6, 32), torch.randint(10, (4, 6))
        together = torch.vmap(network)(noise, labels)
        alone = torch.stack([network(*each) for each in zip(noise, labels, strict=True)])
        assert torch.allclose(together, alone, atol=1e-6)


class TestImageNetworks:
    def test_generate_images_and_judge_them_by_class(self) -> None:
        generator = conditional.ImageGenerator(
            classes=3, noise_size=5, widths=(8, 16), image_shape=(1, 4, 6)
        )
        judge = conditional.ImageDiscriminator(classes=3, widths=(16, 8), image_shape=(1, 4, 6))
        labels = torch.tensor([0, 1, 2, 2])
        images = generator(torch.rand(4, 5), labels)
        assert images.shape == (4, 1, 4, 6)
        assert bool(((images > 0) & (images < 1)).all())
        logits = judge(images, labels)
        assert logits.shape == (4,)
        assert not torch.equal(logits, judge(images, labels.flip(0)))
        logits.sum().backward()
        assert all(value.grad is not None for value in generator.parameters())
