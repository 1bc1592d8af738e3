"""Small made-up scenes for tests of methods: features, a batch, and tiny real networks."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from torch import nn

from workers.distill.data.types import Batch
from workers.distill.methods.base import Method, Moment, Terms
from workers.distill.networks import catalog
from workers.distill.networks.interface import Features, Network

MOMENT = Moment(epoch=1, step=1, steps_per_epoch=1)
WIDTHS = (4, 4, 6, 8)
OTHER_WIDTHS = (3, 5, 7, 9)


def features(
    logits: torch.Tensor | None = None,
    *,
    pooled: torch.Tensor | None = None,
    stages: Sequence[torch.Tensor] = (),
    pre_activations: Sequence[torch.Tensor] = (),
    final: torch.Tensor | None = None,
    stem: torch.Tensor | None = None,
) -> Features:
    """Return features; what is left out follows from what is given.

    Logits are zeros for 3 classes, `pooled` is the average of `final` (or of the last stage), or
    the logits where there is no map at all.
    """
    maps = final if final is not None else next(reversed((*stages, *pre_activations)), None)
    if pooled is None:
        pooled = maps.mean(dim=(2, 3)) if maps is not None else logits
    if pooled is None:
        raise ValueError("give logits, pooled features or maps")
    return Features(
        logits=pooled.new_zeros(len(pooled), 3) if logits is None else logits,
        pooled=pooled,
        stem=stem,
        stages=tuple(stages),
        pre_activations=tuple(pre_activations),
        final=final,
    )


def batch(labels: torch.Tensor | Sequence[int]) -> Batch:
    """Return a batch of black 8x8 pictures, numbered from 0."""
    wanted = torch.as_tensor(labels)
    pictures = torch.zeros(len(wanted), 1, 8, 8, dtype=torch.uint8)
    return Batch(images=pictures, labels=wanted, index=torch.arange(len(wanted)))


def network(
    seed: int = 1,
    *,
    widths: Sequence[int] = WIDTHS,
    classes: int = 3,
    size: tuple[int, int] = (8, 8),
    reference: str = "retort/resnet8",
) -> Network:
    """Return a tiny residual network: three stages, at 8x8 with sides 8, 4 and 2."""
    torch.manual_seed(seed)
    return catalog.build(
        reference,
        classes=classes,
        channels=1,
        height=size[0],
        width=size[1],
        arguments={"widths": list(widths)},
    )


def other_network(seed: int = 2, *, classes: int = 3, size: tuple[int, int] = (8, 8)) -> Network:
    """Return a network whose widths all differ from those of `network`, as a teacher."""
    built = network(seed, widths=OTHER_WIDTHS, classes=classes, size=size)
    return built.eval().requires_grad_(False)


def pictures(count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> torch.Tensor:
    """Return random images for the networks of this file."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, *size, generator=generator)


def observed(student: Network, teacher: Network, images: torch.Tensor) -> tuple[Features, Features]:
    """Return what both networks show of the same images, the teacher without a gradient."""
    with torch.no_grad():
        teacher_out = teacher.observe(images)
    return student.observe(images), teacher_out


def terms_of(
    method: Method,
    student: Network,
    teacher: Network,
    images: torch.Tensor,
    moment: Moment = MOMENT,
) -> Terms:
    """Return a method's terms for images, with labels that count through the classes."""
    student_out, teacher_out = observed(student, teacher, images)
    labels = batch(torch.arange(len(images)) % student.classes)
    return method.terms(student_out, teacher_out, labels, moment)


class Pyramid(Network):
    """A network with stages of any shapes.

    It shows maps before its activations, and the norms that make them, only when told to.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int]],
        *,
        classes: int = 3,
        shows_before: bool = False,
    ) -> None:
        super().__init__()
        widths = [1, *(channels for channels, _, _ in stages)]
        self.sizes = [stage[1:] for stage in stages]
        self.shows_before = shows_before
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.fc = nn.Linear(widths[-1], classes)
        self.reference, self.classes, self.image_shape = "test/pyramid", classes, (1, 8, 8)

    def observe(self, images: torch.Tensor) -> Features:
        """Return logits, embedding and stages."""
        maps, stages, pre_activations = images, [], []
        for layer, norm, size in zip(self.layers, self.norms, self.sizes, strict=True):
            pre_activations.append(norm(layer(F.adaptive_avg_pool2d(maps, size))))
            maps = F.relu(pre_activations[-1])
            stages.append(maps)
        pooled = maps.mean(dim=(2, 3))
        return Features(
            logits=self.fc(pooled),
            pooled=pooled,
            stages=tuple(stages),
            pre_activations=tuple(pre_activations) if self.shows_before else (),
            final=maps,
        )

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the norm of each stage, or nothing."""
        norms = self.norms if self.shows_before else ()
        return tuple(norm for norm in norms if isinstance(norm, nn.BatchNorm2d))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.observe(images).logits
