"""Pairing of two networks' stages, resizing of their maps to a common size, and their attention.

Maps may be rectangular, such as the token grids of transformers.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Integer
from torch import Tensor

Size = tuple[int, int]
"""Height and width of a map."""
Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


def at_least_float(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return half-precision values in float32, others as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def average_to(maps: Float[Tensor, "N c h w"], size: Size) -> Float[Tensor, "N c i j"]:
    """Return the maps averaged over the cells of a grid of this size, or as they are if equal."""
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        # The same numbers as adaptive pooling, whose gradient is not reproducible on a GPU.
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    return F.adaptive_avg_pool2d(maps, size)


def pool_to_smaller(
    student: Float[Tensor, "N c h w"], teacher: Float[Tensor, "N d i j"]
) -> tuple[Float[Tensor, "N c a b"], Float[Tensor, "N d a b"]]:
    """Return both maps at the smaller of their heights and of their widths."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return average_to(student, size), average_to(teacher, size)


def resize(features: Float[Tensor, "N c h w"], size: Size) -> Float[Tensor, "N c i j"]:
    """Return the maps interpolated bilinearly to this size, or as they are if equal."""
    if features.shape[2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def nearest(labels: Integer[Tensor, "N h w"], size: Size) -> Integer[Tensor, "N i j"]:
    """Return the label under the centre of each cell of a grid of this size.

    Class numbers cannot be averaged.
    """
    height, width = labels.shape[1:]
    if (height, width) == size:
        return labels
    rows, columns = (
        # In integers: (index + 1/2) * given / wanted, rounded down.
        (2 * torch.arange(wanted, device=labels.device) + 1) * given // (2 * wanted)
        for given, wanted in ((height, size[0]), (width, size[1]))
    )
    return labels[:, rows][:, :, columns]


def attention(maps: Float[Tensor, "N c h w"], *, power: float) -> Float[Tensor, "N p"]:
    """Return attention maps: the mean of |values|^power over channels, with unit norm.

    Maps of zeros stay zeros.
    """
    return F.normalize(strength(maps, power=power).flatten(1), dim=1)


def strength(maps: Float[Tensor, "N c h w"], *, power: float) -> Float[Tensor, "N 1 h w"]:
    """Return the mean of |values|^power over channels."""
    powers = maps.square() if power == 2 else maps.abs().pow(power)
    return powers.mean(1, keepdim=True)


def spatial_attention(
    maps: Float[Tensor, "N c h w"], *, temperature: float
) -> Float[Tensor, "N h w"]:
    """Return the weight of each position: a softmax of its mean |value|, with mean 1.

    Source: Yang et al., CVPR 2022, arXiv:2111.11837 (FGD).
    """
    found = strength(maps, power=1.0).squeeze(1)
    shares = (found.flatten(1) / temperature).softmax(1)
    return (shares.shape[1] * shares).view_as(found)


def channel_attention(
    maps: Float[Tensor, "N c h w"], *, temperature: float
) -> Float[Tensor, "N c"]:
    """Return the weight of each channel: a softmax of its mean |value|, with mean 1.

    Source: Yang et al., CVPR 2022, arXiv:2111.11837 (FGD).
    """
    found = maps.abs().mean((2, 3))
    return found.shape[1] * (found / temperature).softmax(1)


def pair_by_size(
    students: Sequence[Shape], teachers: Sequence[Shape]
) -> tuple[tuple[int, int], ...]:
    """Return pairs of indices of the student's and the teacher's stages, shallow to deep.

    Every stage of the network with fewer stages is paired, in order: the choice with the smallest
    sum of size ratios (in octaves), the shallower one where several are equal. Networks with
    equally many stages are therefore paired one by one.
    """
    if len(students) > len(teachers):
        return tuple((one, other) for other, one in pair_by_size(teachers, students))

    def distance(chosen: tuple[int, ...]) -> float:
        shapes = zip(students, (teachers[index] for index in chosen), strict=True)
        return sum(_octaves(one, other) for one, other in shapes)

    choices = itertools.combinations(range(len(teachers)), len(students))
    best = min(choices, key=distance)
    return tuple(enumerate(best))


def _octaves(one: Shape, other: Shape) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(one[1:], other[1:], strict=True))
