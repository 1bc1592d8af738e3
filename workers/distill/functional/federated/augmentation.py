"""Federated augmentation: which labels a client asks for, what that reveals, and how seeds grow.

A client sends a few samples of the labels that it lacks (targets) and of some others as camouflage
(redundant labels). The server enlarges these seeds and trains a conditional generator on them.

Source: Jeong et al., 2018, arXiv 1811.11479 (FAug).
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from torch import Tensor


def scarce_labels(counts: Sequence[int], *, share: float) -> list[int]:
    """Return the labels of which a client has less than `share` of its median count, in order.

    The median is over the labels that it has: over all of them it would be 0 for a client that
    lacks most. The paper gives no rule.
    """
    present = sorted(count for count in counts if count)
    if not present:
        return list(range(len(counts)))
    middle = (present[(len(present) - 1) // 2] + present[len(present) // 2]) / 2
    return [label for label, count in enumerate(counts) if count < share * middle]


def rarest_labels(counts: Sequence[int], *, number: int) -> list[int]:
    """Return the `number` labels with the fewest samples, in order; ties go to the first."""
    rarest = sorted(range(len(counts)), key=lambda label: counts[label])[:number]
    return sorted(rarest)


def redundant_labels(
    targets: Collection[int],
    candidates: Collection[int],
    *,
    number: int,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Return labels drawn from the candidates that are no targets, in order.

    Candidates are the labels that a client can send samples of. Raises `ValueError` where fewer
    than `number` remain.
    """
    remaining = sorted(set(candidates) - set(targets))
    if number > len(remaining):
        raise ValueError(
            f"redundant_labels is {number}, but only {len(remaining)} labels are no targets; ask "
            "for fewer"
        )
    drawn = torch.randperm(len(remaining), generator=generator)[:number].tolist()
    return sorted(remaining[place] for place in drawn)


def device_server_leakage(targets: Collection[int], redundant: Collection[int]) -> float:
    """Return |targets| / (|targets| + |redundant|): what the server learns of a client, 0 to 1.

    0 where nothing is sent.
    """
    sent = len(targets) + len(redundant)
    return len(targets) / sent if sent else 0.0


def inter_device_leakage(
    targets: Sequence[Collection[int]], redundant: Sequence[Collection[int]]
) -> list[float]:
    """Return what the other clients learn of each, 0 to 1: its targets over all requested labels.

    The generator shows them the union of all labels that were sent, not by whom.
    """
    union: set[int] = set()
    for labels in (*targets, *redundant):
        union.update(labels)
    return [len(labels) / len(union) if union else 0.0 for labels in targets]


def missing_samples(counts: Sequence[int], targets: Collection[int]) -> dict[int, int]:
    """Return how many samples of each target label bring it to the client's largest count."""
    largest = max(counts)
    return {label: largest - counts[label] for label in sorted(targets)}


class Jitter(NamedTuple):
    """How far seeds are changed: pixels, degrees, factor of size around 1, noise of pixels."""

    shift: float = 1.0
    rotation: float = 10.0
    scale: float = 0.1
    noise: float = 0.05


def oversample(
    images: Float[Tensor, "N c h w"],
    labels: Int[Tensor, " N"],
    *,
    per_label: int,
    jitter: Jitter = Jitter(),  # noqa: B008 - it cannot be changed
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "M c h w"], Int[Tensor, " M"]]:
    """Return `per_label` changed copies of the seeds of each label, label by label.

    Pixels are in 0..1, before and after. Each copy is shifted, turned, scaled, and gets noise, all
    at random within the jitter; the seeds of a label take turns.
    """
    turns = []
    for label in sorted(set(labels.tolist())):
        seeds = (labels == label).nonzero().flatten()
        turns.append(seeds.repeat(-(-per_label // len(seeds)))[:per_label])
    places = torch.cat(turns)
    copies = _moved(images[places], jitter, generator)
    noise = torch.randn(copies.shape, dtype=images.dtype, generator=generator)
    return (copies + jitter.noise * noise.to(images.device)).clamp(0, 1), labels[places]


def _moved(
    images: Float[Tensor, "M c h w"], jitter: Jitter, generator: torch.Generator | None
) -> Float[Tensor, "M c h w"]:
    count, _, height, width = images.shape
    drawn = 2 * torch.rand(4, count, dtype=images.dtype, generator=generator) - 1
    drawn = drawn.to(images.device)
    angles, sizes = drawn[0] * math.radians(jitter.rotation), 1 + drawn[1] * jitter.scale
    # A grid in units of half a side: what is read where, so a larger image reads nearer points.
    cosine, sine = angles.cos() / sizes, angles.sin() / sizes
    aspect = height / width
    rows = [
        torch.stack([cosine, -sine * aspect, 2 * jitter.shift * drawn[2] / width], dim=1),
        torch.stack([sine / aspect, cosine, 2 * jitter.shift * drawn[3] / height], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class LabelGaussians(NamedTuple):
    """Mean and standard deviation of each pixel for each label: a cheap generator of images."""

    means: Float[Tensor, "C c h w"]
    stds: Float[Tensor, "C c h w"]


def label_gaussians(
    images: Float[Tensor, "N c h w"], labels: Int[Tensor, " N"], classes: int
) -> LabelGaussians:
    """Return the moments of each pixel for each label; labels without an image have NaN."""
    members = (labels[:, None] == torch.arange(classes, device=labels.device)).to(images.dtype)
    counts = members.sum(0)[:, None]
    flat = images.flatten(1)
    means = members.T @ flat / counts
    squares = members.T @ flat.square() / counts
    shape = (classes, *images.shape[1:])
    return LabelGaussians(
        means.view(shape), (squares - means.square()).clamp_min(0).sqrt().view(shape)
    )


def sample_gaussians(
    moments: LabelGaussians,
    labels: Int[Tensor, " N"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N c h w"]:
    """Return images drawn pixel by pixel, clamped to 0..1.

    Raises `ValueError` for labels that had no image.
    """
    unknown = sorted(set(labels[moments.means[labels].isnan().flatten(1).any(1)].tolist()))
    if unknown:
        raise ValueError(f"no seed of label {unknown[0]} was sent, so none can be generated")
    like = moments.means[labels]
    noise = torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)
    return (like + moments.stds[labels] * noise).clamp(0, 1)


def discriminator_loss(
    real: Float[Tensor, " N"], generated: Float[Tensor, " M"]
) -> Float[Tensor, ""]:
    """Return the sum of the mean binary cross-entropies of real and generated images' logits."""
    return F.softplus(-real).mean() + F.softplus(generated).mean()


def generator_loss(generated: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """Return the mean of -log(probability that a generated image is real): it does not saturate."""
    return F.softplus(-generated).mean()
