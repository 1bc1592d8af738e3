"""From stored images to a network's input: size, channels, normalisation."""

import copy

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Real
from torch import Tensor

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.job import Input


class Preprocessor:
    """How one network sees stored images: its size, its channels, its normalisation."""

    def __init__(self, role: str, expected: Input, stored: Input, device: torch.device) -> None:
        errors.refuse(
            rules.of_dataset_channels(role, expected.channels, stored.channels),
            errors.IncompatibleNetworks,
            expected_channels=expected.channels,
            dataset_channels=stored.channels,
        )
        self._size = (expected.height, expected.width)
        self._channels = expected.channels
        mean = torch.tensor(expected.mean, dtype=torch.float32, device=device)
        std = torch.tensor(expected.std, dtype=torch.float32, device=device)
        self._scale = (1 / (255 * std))[:, None, None]
        self._shift = (-mean / std)[:, None, None]

    def at_size(self, height: int, width: int) -> "Preprocessor":
        """Return the same with another size of the network's input."""
        other = copy.copy(self)
        other._size = (height, width)
        return other

    def __call__(self, images: Real[Tensor, "N c h w"]) -> Float[Tensor, "N C H W"]:
        """Return images with pixels of 0..255 as this network expects them, channels last.

        Gradients flow through it to images that are floats.
        """
        inputs = images.float()
        if inputs.shape[2:] != self._size:
            inputs = F.interpolate(
                inputs, size=self._size, mode="bilinear", antialias=True, align_corners=False
            )
        if inputs.shape[1] != self._channels:
            inputs = inputs.expand(-1, self._channels, -1, -1)
        inputs = torch.addcmul(self._shift, inputs, self._scale)
        return inputs.contiguous(memory_format=torch.channels_last)


class PixelsAsStored(Preprocessor):
    """For several teachers as one, each of which prepares the stored images for itself."""

    def __init__(self) -> None:
        # Nothing to know: neither size nor channels nor normalisation change.
        pass

    def __call__(self, images: Real[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        """Return images with pixels of 0..255 as floats."""
        return images.float()
