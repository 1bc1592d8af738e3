"""Made-up steps of a synthesis call: looks at the guide's logits, and two tiny networks."""

from collections.abc import Sequence

import torch
from torch import nn

from tests.distill.cases import tensor
from workers.distill.methods.datafree.base import (
    BufferStats,
    DataFreeMethod,
    ForwardResult,
    SynthesisBatch,
)
from workers.distill.networks.interface import Features, Network, NormInput, observe_norms

TEACHER = tensor("inputs", "teacher_logits")
STUDENT = tensor("inputs", "student_logits")
TARGETS = tensor("random_targets").long()
EMPTY = BufferStats(images=0, class_shares=torch.zeros(3, dtype=torch.float64))
FILLED = BufferStats(images=8, class_shares=tensor("buffer_class_fraction"))
RECEIVED = ((torch.arange(16, dtype=torch.float64) ** 1.5) / 10).view(2, 2, 2, 2)
"""What the guide's batch norm receives."""


class Small(Network):
    """A batch norm over both channels of images of 2x2, and a linear layer on their means.

    Dense, the layer reads every position. `normed` False has no batch norm.
    """

    def __init__(self, *, classes: int = 3, dense: bool = False, normed: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2) if normed else None
        self.fc = nn.Linear(2, classes)
        self.dense = dense
        self.reference, self.classes, self.image_shape = "test/small", classes, (2, 2, 2)

    def observe(self, images: torch.Tensor) -> Features:
        """Return logits and their input."""
        maps = torch.tanh(images if self.norm is None else self.norm(images))
        pooled = maps.mean((2, 3))
        if self.dense:
            return Features(self.fc(maps.movedim(1, 3)).movedim(3, 1), pooled)
        return Features(self.fc(pooled), pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.observe(images).logits


def small(seed: int = 0, *, classes: int = 3, dense: bool = False, normed: bool = True) -> Small:
    """Return a frozen network in evaluation mode, with the guide's stored moments, in float64."""
    torch.manual_seed(seed)
    made = Small(classes=classes, dense=dense, normed=normed).double().eval().requires_grad_(False)
    if made.norm is not None:
        made.norm.running_mean = tensor("bn_running_mean")
        made.norm.running_var = tensor("bn_running_var")
    return made


def norm_input(received: torch.Tensor = RECEIVED) -> NormInput:
    """Return what the batch norm of `small` received, with the moments that it has stored."""
    moments = tensor("bn_running_mean"), tensor("bn_running_var")
    # A copy: some tests ask for its gradient.
    return NormInput("norm", received.clone(), *moments)


def with_moments(mean: Sequence[float], variance: Sequence[float]) -> torch.Tensor:
    """Return maps whose channels have just these moments."""
    middle = torch.tensor(mean, dtype=torch.float64)
    spread = torch.tensor(variance, dtype=torch.float64).sqrt()
    return torch.stack([middle - spread, middle + spread])[:, :, None, None]


def look(
    logits: torch.Tensor, *norms: NormInput, pooled: torch.Tensor | None = None
) -> ForwardResult:
    """Return a look that shows these logits, of images or of pixels."""
    embedding = logits.new_zeros(len(logits), 2) if pooled is None else pooled
    return ForwardResult(Features(logits, embedding), norms)


def features(logits: torch.Tensor) -> Features:
    """Return features with these logits, of images or of pixels."""
    return look(logits).features


def shown(
    teacher: ForwardResult,
    student: ForwardResult | None = None,
    *,
    second: ForwardResult | None = None,
    buffer: BufferStats = FILLED,
    targets: torch.Tensor = TARGETS,
    seen: torch.Tensor | None = None,
) -> SynthesisBatch:
    """Return a step that shows these looks."""
    images = torch.zeros(len(targets), 2, 2, 2, dtype=torch.float64)
    return SynthesisBatch(
        images=images,
        seen=images if seen is None else seen,
        targets=targets,
        teacher=teacher,
        student=student,
        second=second,
        buffer=buffer,
        call=1,
    )


def step(
    teacher: torch.Tensor,
    student: torch.Tensor | None = None,
    *,
    pooled: torch.Tensor | None = None,
    norms: Sequence[NormInput] = (),
) -> SynthesisBatch:
    """Return a step in which the networks show these logits; classes take turns as targets."""
    return shown(
        look(teacher, *norms, pooled=pooled),
        None if student is None else look(student),
        targets=torch.arange(len(teacher)) % teacher.shape[1],
    )


def dense(logits: torch.Tensor) -> torch.Tensor:
    """Return rows of logits as two images of two pixels each, in the guide's layout."""
    return logits.view(2, 2, 1, 3).permute(0, 3, 2, 1)


def examined(
    method: DataFreeMethod,
    images: torch.Tensor,
    teacher: Network,
    student: Network | None,
    *,
    buffer: BufferStats = FILLED,
) -> SynthesisBatch:
    """Return what networks show of images; a second view is made of their squares."""
    targets = torch.arange(len(images)) % teacher.classes
    return SynthesisBatch(
        images=images,
        seen=images,
        targets=targets,
        teacher=ForwardResult(*observe_norms(teacher, images)),
        student=None if student is None else ForwardResult(*observe_norms(student, images)),
        second=ForwardResult(*observe_norms(teacher, images**2))
        if method.uses_second_view
        else None,
        buffer=buffer,
        call=1,
    )


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Return random images for `small`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2, 2, 2, generator=generator, dtype=torch.float64)


def loss(method: DataFreeMethod, invented: SynthesisBatch) -> torch.Tensor:
    """Return the sum of a method's terms of synthesis."""
    return torch.stack(list(method.synthesis_terms(invented).values())).sum()


def gradients(method: DataFreeMethod, student: Network, teacher: Network) -> list[torch.Tensor]:
    """Return how the sum of a method's terms of synthesis moves what its generator is made of."""
    generator = method.make_generator()
    made = generator(generator.draw(method.targets(6)))
    learner = student.eval() if method.uses_student else None
    total = loss(method, examined(method, made, teacher, learner))
    return list(torch.autograd.grad(total, list(generator.parameters())))
