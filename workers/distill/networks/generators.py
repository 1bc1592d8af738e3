"""Generators: from latent values to images with pixels in 0..1."""

from typing import Literal, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor, nn

Name: TypeAlias = Literal["small", "large", "dcgan", "deep"]


class Generator(nn.Module):
    """Base of all generators."""

    latent_shape: tuple[int, ...] = ()
    """Shape of the latent values of one image."""

    def draw(self, targets: Int[Tensor, " N"]) -> Float[Tensor, "N *z"]:
        """Return latent values for images of these classes, drawn from torch's random numbers."""
        raise NotImplementedError

    def renew(self) -> None:
        """Draw anew what belongs to one synthesis call alone; most generators have nothing."""

    def restart(self) -> None:
        """Draw all weights anew."""
        raise NotImplementedError

    def restart_start(self) -> None:
        """Draw the first layer and the first batch norm anew, as Fast-DFKD does once."""
        raise NotImplementedError


def build(
    name: Name, *, image_shape: tuple[int, int, int], latent_size: int, width: int
) -> Generator:
    """Return a generator with fresh weights; raises `BadRecipe` for sides it cannot make."""
    raise NotImplementedError
