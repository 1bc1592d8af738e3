"""Logits as rows: one per image, or one per pixel in dense tasks."""

from jaxtyping import Float
from torch import Tensor


def rows(logits: Float[Tensor, "N C *S"]) -> Float[Tensor, "R C"]:
    """Return the logits of every image and position as rows, images first."""
    return logits if logits.dim() == 2 else logits.flatten(2).transpose(1, 2).flatten(0, 1)


def per_image(values: Float[Tensor, " R"], images: int) -> Float[Tensor, " N"]:
    """Return the mean over an image's positions of values that belong to `rows`."""
    return values if len(values) == images else values.view(images, -1).mean(1)
