"""What a step of synthesis shows, made up from logits or from tiny real networks."""

from collections.abc import Sequence

import torch
from torch import nn

from tests.distill import cases
from tests.distill.methods import scenes
from workers.distill.method import Batch
from workers.distill.networks.interface import Features, Network, NormInput, observe_norms
from workers.distill.synthesis import DataFreeMethod, Invented, Look, Stock

IMAGES = 6


def dense(logits: torch.Tensor) -> torch.Tensor:
    """Return four rows of logits as two images of 1x2 pixels."""
    return logits.view(2, 2, -1).transpose(1, 2)[:, :, None]


def norm() -> NormInput:
    """Return the scene of the batch norm's numeric cases."""
    received = (torch.arange(16, dtype=torch.float64) ** 1.5 / 10).view(2, 2, 2, 2)
    moments = (cases.tensor("bn_running_mean"), cases.tensor("bn_running_var"))
    return NormInput("bn", received, *moments)


def exhibit(
    teacher: torch.Tensor,
    student: torch.Tensor | None = None,
    *,
    pooled: torch.Tensor | None = None,
    norms: Sequence[NormInput] = (),
) -> Invented:
    """Return a step in which the networks show these logits; the images are black."""
    count, classes = teacher.shape[:2]
    images = torch.zeros(count, 1, 8, 8)
    return Invented(
        images=images,
        seen=images,
        targets=torch.arange(count) % classes,
        teacher=Look(scenes.features(teacher, pooled=_embedding(teacher, pooled)), tuple(norms)),
        student=None if student is None else Look(shown(student)),
        second=None,
        stock=Stock(0, torch.zeros(classes)),
        call=1,
    )


def _embedding(logits: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
    if pooled is not None:
        return pooled
    return logits.flatten(2).mean(2) if logits.dim() > 2 else logits


def shown(logits: torch.Tensor) -> Features:
    """Return features with these logits, of images or of pixels."""
    return scenes.features(logits, pooled=_embedding(logits, None))


def batch(count: int) -> Batch:
    """Return a batch of invented images, which are floats."""
    places = torch.arange(count)
    return Batch(images=torch.zeros(count, 1, 8, 8), labels=places % 3, index=places)


def gradients(method: DataFreeMethod, student: Network, teacher: Network) -> list[torch.Tensor]:
    """Return how the sum of a method's synthesis terms moves each parameter of its generator."""
    student.eval()
    generator = method.make_generator()
    images = generator(generator.draw(method.targets(IMAGES)))
    features, norms = observe_norms(teacher, images)
    step = Invented(
        images=images,
        seen=images,
        targets=torch.zeros(IMAGES, dtype=torch.int64),
        teacher=Look(features, norms if method.reads_norms else ()),
        student=Look(student.observe(images)) if method.competes else None,
        second=None,
        stock=Stock(0, torch.zeros(teacher.classes)),
        call=1,
    )
    total = torch.stack(list(method.synthesis_terms(step).values())).sum()
    return list(torch.autograd.grad(total, list(generator.parameters())))


class Plain(Network):
    """A network without a batch norm and without stages."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.reference, self.classes, self.image_shape = "test/plain", classes, (1, 8, 8)
        self.fc = nn.Linear(64, classes)

    def observe(self, images: torch.Tensor) -> Features:
        """Return logits and embedding."""
        pooled = images.flatten(1)
        return Features(logits=self.fc(pooled), pooled=pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.observe(images).logits
