"""Generators: from latent values to images with pixels in 0..1.

Four architectures that upsample a small map to an image, all of convolutions, batch norms and leaky
ReLUs with a sigmoid at the end. They use the statistics of the batch (training mode).

Source: Fang et al., IJCAI 2021, arXiv:2105.08584 (small, large); Radford et al., ICLR 2016,
arXiv:1511.06434 (dcgan); Fang et al., AAAI 2022, arXiv:2112.06253 (deep).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.synthesis import GENERATOR_STRIDES, GeneratorName

FIRST: dict[GeneratorName, int] = {"small": 2, "large": 4, "dcgan": 8, "deep": 2}
"""Channels of the first map, over those of the last block."""
STD = 0.02
SLOPE = 0.2


class Generator(nn.Module):
    """Base of all generators."""

    latent_shape: tuple[int, ...] = ()
    """Shape of the latent values of one image."""

    def sample_latent(self, targets: Int[Tensor, " N"]) -> Float[Tensor, "N *z"]:
        """Return latent values for images of these classes, drawn from torch's random numbers.

        They are N(0, 1) whatever the class, on the generator's device.
        """
        like = next(self.parameters())
        shape = (len(targets), *self.latent_shape)
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    def start_round(self) -> None:
        """Reset what belongs to one synthesis call; most generators have nothing."""

    def reset_parameters(self) -> None:
        """Draw all weights anew: N(0, 0.02), of norms N(1, 0.02); biases become 0."""
        redraw(self)

    def reset_first_layer(self) -> None:
        """Draw the first layer and the first batch norm anew, as Fast-DFKD does once.

        Weights are N(0, 0.02), also those of the norm, and biases 0.
        """
        _draw(next(_layers(self)))
        _draw(next(_norms(self)))

    def __call__(self, latent: Tensor) -> Tensor:
        """Return the images (typed here because `nn.Module.__call__` is not)."""
        images: Tensor = super().__call__(latent)
        return images


@dataclass(frozen=True)
class Parts:
    """Modules of a generator, with fresh weights.

    `start` turns latent values into a small map, each of `blocks` doubles its sides, and `pixels`
    is the convolution before the sigmoid.
    """

    latent_shape: tuple[int, ...]
    start: nn.Sequential
    blocks: tuple[nn.Sequential, ...]
    pixels: nn.Conv2d


class Convolutional(Generator):
    """A small map that is upsampled block by block."""

    def __init__(self, made_of: Parts) -> None:
        super().__init__()
        self.latent_shape = made_of.latent_shape
        self.start = made_of.start
        self.blocks = nn.ModuleList(made_of.blocks)
        self.pixels = made_of.pixels

    def forward(self, latent: Float[Tensor, "N *z"]) -> Float[Tensor, "N c h w"]:
        """Return images with pixels in 0..1."""
        grown = self.between(self.start(latent), 0)
        for place, block in enumerate(self.blocks, start=1):
            grown = self.between(block(grown), place)
        pixels: Tensor = self.pixels(grown)
        return pixels.sigmoid()

    def between(self, grown: Float[Tensor, "N k i j"], place: int) -> Float[Tensor, "N k i j"]:
        """Return the maps after the start (place 0) or a block (1, 2, ...), for the next one.

        Subclasses may change them; here they are unchanged.
        """
        return grown


def build(
    name: GeneratorName, *, image_shape: tuple[int, int, int], latent_size: int, width: int
) -> Generator:
    """Return a generator with fresh weights; raises `BadRecipe` for sides that it cannot generate.

    dcgan is initialised with N(0, 0.02), the others as PyTorch initialises its layers.
    """
    return Convolutional(parts(name, image_shape=image_shape, latent_size=latent_size, width=width))


def parts(
    name: GeneratorName, *, image_shape: tuple[int, int, int], latent_size: int, width: int
) -> Parts:
    """Return the parts of a generator; raises `BadRecipe` for sides it cannot make."""
    check(name, image_shape)
    channels, *sides = image_shape
    rows, columns = (side // GENERATOR_STRIDES[name] for side in sides)
    pixels = nn.Conv2d(width, channels, 3, padding=1)
    first = FIRST[name] * width
    if name == "deep":
        widths = [first, first, width, width, width]
        start = nn.Sequential(*_convolved(latent_size, first))
        blocks = tuple(_enlarged(*pair) for pair in itertools.pairwise(widths))
        return Parts((latent_size, rows, columns), start, blocks, pixels)
    start = nn.Sequential(
        nn.Linear(latent_size, first * rows * columns),
        nn.Unflatten(1, (first, rows, columns)),
        nn.BatchNorm2d(first),
    )
    if name == "dcgan":
        widths = [first, 4 * width, 2 * width, width, width]
        blocks = tuple(_transposed(*pair) for pair in itertools.pairwise(widths))
        for part in (start, *blocks, pixels):
            redraw(part)
    else:
        blocks = (_enlarged(first, 2 * width), _enlarged(2 * width, width))
    return Parts((latent_size,), start, blocks, pixels)


def check(name: GeneratorName, image_shape: tuple[int, int, int]) -> None:
    """Raise `BadRecipe` unless the generator's stride divides both sides of the image."""
    _, height, width = image_shape
    errors.refuse(rules.generator_and_sides(name, (height, width)))


def redraw(network: nn.Module) -> None:
    """Draw all weights anew: N(0, 0.02), of norms N(1, 0.02); biases become 0."""
    for layer in _layers(network):
        _draw(layer)
    for norm in _norms(network):
        _draw(norm, around=1.0)


def _enlarged(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), *_convolved(before, after))


def _convolved(before: int, after: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.LeakyReLU(SLOPE)]


def _transposed(before: int, after: int) -> nn.Sequential:
    convolution = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(SLOPE))


Layer: TypeAlias = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


def _layers(network: nn.Module) -> Iterator[Layer]:
    return (part for part in network.modules() if isinstance(part, Layer))


def _norms(network: nn.Module) -> Iterator[nn.BatchNorm1d | nn.BatchNorm2d]:
    kinds = nn.BatchNorm1d | nn.BatchNorm2d
    return (part for part in network.modules() if isinstance(part, kinds))


def _draw(part: Layer | nn.BatchNorm1d | nn.BatchNorm2d, *, around: float = 0.0) -> None:
    nn.init.normal_(part.weight, around, STD)
    if part.bias is not None:
        nn.init.zeros_(part.bias)
    if not isinstance(part, Layer):
        part.reset_running_stats()
