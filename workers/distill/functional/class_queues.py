"""Memories of earlier vectors, a queue for each class, and which positions enter them."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

UNKNOWN = -1
"""The class of a position without one."""


class ClassQueues(nn.Module):
    """The newest unit vectors of each class; random ones until enough have come.

    All of it is in buffers, so a checkpoint holds it.
    """

    vectors: Float[Tensor, "C Q D"]
    oldest: Int[Tensor, " C"]

    def __init__(self, *, classes: int, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(torch.randn(classes, length, width), dim=2))
        self.register_buffer("oldest", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, vectors: Float[Tensor, "R D"], classes: Int[Tensor, " R"]) -> None:
        """Put vectors, scaled to unit length, in the places of the oldest of their classes."""
        count, length = self.vectors.shape[:2]
        members = F.one_hot(classes, count)
        sizes = members.sum(0)
        order = (members.cumsum(0) - 1).gather(1, classes[:, None]).squeeze(1)
        # Of more than a queue holds, the last ones stay.
        kept = order >= sizes[classes] - length
        places = (self.oldest[classes] + order) % length
        entries = F.normalize(vectors, dim=1).to(self.vectors.dtype)
        self.vectors[classes[kept], places[kept]] = entries[kept]
        self.oldest.copy_((self.oldest + sizes) % length)

    def draw(self, count: int) -> Float[Tensor, "M D"]:
        """Return so many vectors of each class, at places drawn at random; at most all."""
        length = self.vectors.shape[1]
        places = torch.randperm(length, device=self.vectors.device)[:count]
        return self.vectors[:, places].flatten(0, 1)


def region_means(
    features: Float[Tensor, "N P D"], classes: Int[Tensor, "N P"], count: int
) -> tuple[Float[Tensor, "R D"], Int[Tensor, " R"]]:
    """Return the mean of each class in each image, of those that are there, and their classes."""
    members = _members(classes, count).to(features.dtype)
    sizes = members.sum(1)
    images, found = sizes.nonzero(as_tuple=True)
    means = (members.mT @ features)[images, found] / sizes[images, found][:, None]
    return means, found


def some_of_each(classes: Int[Tensor, "N P"], count: int, *, most: int) -> Bool[Tensor, "N P"]:
    """Return up to `most` positions of each class in each image, drawn at random."""
    order = torch.rand(classes.shape, device=classes.device).argsort(1)
    members = _members(classes.gather(1, order), count)
    # A position without a class is a member of none.
    is_early = ((members.cumsum(1) <= most) & members.bool()).any(2)
    return torch.zeros_like(is_early).scatter_(1, order, is_early)


def _members(classes: Int[Tensor, "N P"], count: int) -> Int[Tensor, "N P C"]:
    return F.one_hot(classes + 1, count + 1)[..., 1:]
