"""Small batches of a synthesis call: the golden logits, and a tiny network."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from tests.distill.golden import CASES
from workers.distill.methods.datafree.base import (
    BufferStats,
    DataFreeMethod,
    ForwardResult,
    SynthesisBatch,
)
from workers.distill.networks.interface import Features, Network, NormInput, observe_norms

TEACHER = CASES.tensor("inputs", "teacher_logits")
STUDENT = CASES.tensor("inputs", "student_logits")
TARGETS = CASES.tensor("random_targets").long()
EMPTY = BufferStats(images=0, class_shares=torch.zeros(3, dtype=torch.float64))
FILLED = BufferStats(images=8, class_shares=CASES.tensor("buffer_class_fraction"))
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
        self.pooled_width = 2

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
        made.norm.running_mean = CASES.tensor("bn_running_mean")
        made.norm.running_var = CASES.tensor("bn_running_var")
    return made


def norm_input(received: torch.Tensor = RECEIVED) -> NormInput:
    """Return what the batch norm of `small` received, with the moments that it has stored."""
    moments = CASES.tensor("bn_running_mean"), CASES.tensor("bn_running_var")
    # A copy: some tests ask for its gradient.
    return NormInput("norm", received.clone(), *moments)


def with_moments(mean: Sequence[float], variance: Sequence[float]) -> torch.Tensor:
    """Return maps whose channels have just these moments."""
    middle = torch.tensor(mean, dtype=torch.float64)
    spread = torch.tensor(variance, dtype=torch.float64).sqrt()
    return torch.stack([middle - spread, middle + spread])[:, :, None, None]


def outputs(
    logits: torch.Tensor, *norms: NormInput, pooled: torch.Tensor | None = None
) -> ForwardResult:
    """Return outputs with these logits, of images or of pixels."""
    embedding = logits.new_zeros(len(logits), 2) if pooled is None else pooled
    return ForwardResult(Features(logits, embedding), norms)


def features(logits: torch.Tensor) -> Features:
    """Return features with these logits, of images or of pixels."""
    return outputs(logits).features


def batch(
    teacher: ForwardResult,
    student: ForwardResult | None = None,
    *,
    second_view: ForwardResult | None = None,
    buffer: BufferStats = FILLED,
    targets: torch.Tensor = TARGETS,
    inputs: torch.Tensor | None = None,
) -> SynthesisBatch:
    """Return a batch with these outputs."""
    images = torch.zeros(len(targets), 2, 2, 2, dtype=torch.float64)
    return SynthesisBatch(
        images=images,
        inputs=images if inputs is None else inputs,
        targets=targets,
        teacher=teacher,
        student=student,
        second_view=second_view,
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
    """Return a batch with these logits; classes take turns as targets."""
    return batch(
        outputs(teacher, *norms, pooled=pooled),
        None if student is None else outputs(student),
        targets=torch.arange(len(teacher)) % teacher.shape[1],
    )


def dense(logits: torch.Tensor) -> torch.Tensor:
    """Return rows of logits as two images of two pixels each, in the guide's layout."""
    return logits.view(2, 2, 1, 3).permute(0, 3, 2, 1)


def forward(
    method: DataFreeMethod,
    images: torch.Tensor,
    teacher: Network,
    student: Network | None,
    *,
    buffer: BufferStats = FILLED,
) -> SynthesisBatch:
    """Return a batch with networks' outputs for images; the second view is their squares."""
    targets = torch.arange(len(images)) % teacher.classes
    return SynthesisBatch(
        images=images,
        inputs=images,
        targets=targets,
        teacher=ForwardResult(*observe_norms(teacher, images)),
        student=None if student is None else ForwardResult(*observe_norms(student, images)),
        second_view=ForwardResult(*observe_norms(teacher, images**2))
        if method.uses_second_view
        else None,
        buffer=buffer,
        call=1,
    )


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Return random images for `small`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2, 2, 2, generator=generator, dtype=torch.float64)


def loss(method: DataFreeMethod, given: SynthesisBatch) -> torch.Tensor:
    """Return the sum of a method's terms of synthesis."""
    return torch.stack(list(method.synthesis_terms(given).values())).sum()


def gradients(method: DataFreeMethod, student: Network, teacher: Network) -> list[torch.Tensor]:
    """Return the gradients of the synthesis loss for the generator's parameters."""
    generator = method.make_generator()
    made = generator(generator.sample_latent(method.targets(6)))
    learner = student.eval() if method.uses_student else None
    total = loss(method, forward(method, made, teacher, learner))
    return list(torch.autograd.grad(total, list(generator.parameters())))


# The terms that generators of dfq and mad share, of the numeric cases.
ADVERSARIAL_INVERSION = {
    "adversarial": CASES.case("adv_loss_plain"),
    "bn": CASES.case("bn_loss_l2norm_var"),
    "onehot": CASES.case("dafl_onehot"),
}


def check_terms(
    method: DataFreeMethod,
    shape: Callable[[torch.Tensor], torch.Tensor],
    wanted: Mapping[str, float],
    tolerance: float = CASES.tolerance,
) -> None:
    """Check a method's terms for the generator on the logits and moments of the numeric cases."""
    terms = method.synthesis_terms(step(shape(TEACHER), shape(STUDENT), norms=[norm_input()]))
    assert list(terms) == list(wanted)
    for name, value in wanted.items():
        assert abs(terms[name] - value) < tolerance
