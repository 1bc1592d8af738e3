"""Small networks that are conditioned on a class: generators and a discriminator of dense layers.

For federated distillation, where a server generates latents or images of a wanted class.

Source: Zhu et al., ICML 2021, arXiv:2105.10056 (latents); Jeong et al., 2018, arXiv:1811.11479
(images; the paper gives four layers, not their widths).
"""

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

LabelInput: TypeAlias = Literal["onehot", "embedding"]
SLOPE = 0.2


class LatentGenerator(nn.Module):
    """From noise and a class to what a network's classifier reads.

    Layers: noise and class, dense, batch norm, ReLU, dense; no activation at the end.
    """

    def __init__(
        self,
        *,
        classes: int,
        noise_size: int,
        hidden_size: int,
        latent_size: int,
        label_input: LabelInput = "onehot",
    ) -> None:
        super().__init__()
        self.classes, self.noise_size = classes, noise_size
        embedded = label_input == "embedding"
        self.embedding = nn.Embedding(classes, noise_size) if embedded else None
        entered = noise_size + (noise_size if embedded else classes)
        self.hidden = nn.Linear(entered, hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)
        self.latent = nn.Linear(hidden_size, latent_size)

    def forward(
        self, noise: Float[Tensor, "N E"], labels: Int[Tensor, " N"]
    ) -> Float[Tensor, "N D"]:
        """Return latents of these classes."""
        entered = onehot(labels, self.classes).to(noise)
        if self.embedding is not None:
            entered = self.embedding(labels)
        hidden = self.norm(self.hidden(torch.cat([noise, entered], dim=1)))
        latents: Tensor = self.latent(functional.relu(hidden))
        return latents

    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the latents (typed here because `nn.Module.__call__` is not)."""
        latents: Tensor = super().__call__(noise, labels)
        return latents


class ImageGenerator(nn.Module):
    """From noise and a class to an image with pixels in 0..1, by four dense layers."""

    def __init__(
        self,
        *,
        classes: int,
        noise_size: int,
        widths: tuple[int, int],
        image_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.classes, self.noise_size, self.image_shape = classes, noise_size, image_shape
        first, second = widths
        self.layers = nn.Sequential(
            nn.Linear(noise_size + classes, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, math.prod(image_shape)),
            nn.Sigmoid(),
        )

    def forward(
        self, noise: Float[Tensor, "N E"], labels: Int[Tensor, " N"]
    ) -> Float[Tensor, "N c h w"]:
        """Return images of these classes."""
        entered = torch.cat([noise, onehot(labels, self.classes).to(noise)], dim=1)
        pixels: Tensor = self.layers(entered)
        return pixels.view(len(noise), *self.image_shape)

    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the images (typed here because `nn.Module.__call__` is not)."""
        images: Tensor = super().__call__(noise, labels)
        return images


class ImageDiscriminator(nn.Module):
    """From an image and its class to the logit that it is real."""

    def __init__(
        self, *, classes: int, widths: tuple[int, int], image_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.classes = classes
        first, second = widths
        self.layers = nn.Sequential(
            nn.Linear(math.prod(image_shape) + classes, first),
            nn.LeakyReLU(SLOPE),
            nn.Linear(first, second),
            nn.LeakyReLU(SLOPE),
            nn.Linear(second, 1),
        )

    def forward(
        self, images: Float[Tensor, "N c h w"], labels: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Return one logit an image."""
        entered = torch.cat([images.flatten(1), onehot(labels, self.classes).to(images)], dim=1)
        logits: Tensor = self.layers(entered)
        return logits.squeeze(1)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (typed here because `nn.Module.__call__` is not)."""
        logits: Tensor = super().__call__(images, labels)
        return logits


def onehot(labels: Int[Tensor, " N"], classes: int) -> Int[Tensor, "N C"]:
    """Return 1 in the column of each label, else 0; unlike torch's own it works under `vmap`."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).long()
