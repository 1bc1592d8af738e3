"""Data-free distillation with noisy layers.

A generator that begins from noise alone must learn what each class is before its images are of any
use. This one begins from a code of the class, which says that much already; what makes the images
of one class differ is a linear layer of noise behind the code, which is drawn anew for each call
and moved with the generator. Each cycle through the classes has a layer of its own.

Source: Tran et al., CVPR 2024, arXiv:2310.00258.
Differs: codes are fixed random orthonormal vectors, or unit vectors where there are more classes
than a code is long; the authors take embeddings of the classes' names by CLIP, which say which
classes are alike. The classes of a last, incomplete cycle are all different: one class twice in a
cycle would give one image twice. The memory of moments is Fast-DFKD's, as in the authors' code.
Student's steps follow each call, where that code makes both calls of an epoch first.
Checked against: tmtuan1307/NAYER, datafree/synthesis/nayer.py (weights and schedule).
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from workers.distill.config.job import Task
from workers.distill.config.synthesis import LatentSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, entropies
from workers.distill.functional.statistics import MomentMemory
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks import generators
from workers.distill.networks.interface import Features, Network, batch_norms

CODES_SEED = 20_240


def class_codes(classes: int, size: int) -> Float[Tensor, "C D"]:
    """Return a fixed unit vector for each class, at right angles while size allows it."""
    drawn = torch.randn(
        classes, size, generator=torch.Generator().manual_seed(CODES_SEED), dtype=torch.float64
    )
    if classes > size:
        return normalize(drawn, dim=1).float()
    columns: Tensor = torch.linalg.qr(drawn.T).Q
    return columns.T.contiguous().float()


class NoisyLayers(nn.Module):
    """Linear layers of noise, of which each `group` rows in turn go through another."""

    def __init__(self, layers: int, group: int, before: int, after: int) -> None:
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.empty(layers, before, after))
        self.bias = nn.Parameter(torch.empty(layers, 1, after))
        self.draw()

    def draw(self) -> None:
        """Draw weights from N(0, 1); biases become 0."""
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, codes: Float[Tensor, "N D"]) -> Float[Tensor, "N z"]:
        """Return what comes out; there may be no more rows than `group` for each layer."""
        groups = math.ceil(len(codes) / self.group)
        filled = pad(codes, (0, 0, 0, groups * self.group - len(codes)))
        grouped = filled.view(groups, self.group, -1)
        noisy = torch.baddbmm(self.bias[:groups], grouped, self.weight[:groups])
        return noisy.flatten(0, 1)[: len(codes)]


class NoisyGenerator(generators.Generator):
    """A generator that begins from class codes, normalised over the batch, and layers of noise."""

    codes: Tensor

    def __init__(
        self,
        make: Callable[[], generators.Generator],
        codes: Float[Tensor, "C D"],
        noise: NoisyLayers,
    ) -> None:
        super().__init__()
        self.latent_shape = (codes.shape[1],)
        # Saved: a resumed job goes on with the very same codes, whatever machine computes them.
        self.register_buffer("codes", codes)
        self.norm = nn.BatchNorm1d(codes.shape[1])
        self.noise = noise
        self._make = make
        self.images = make()

    def draw(self, targets: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Return the codes of the classes; nothing about them is random."""
        return self.codes[targets.to(self.codes.device)]

    def forward(self, latent: Float[Tensor, "N D"]) -> Float[Tensor, "N c h w"]:
        """Return images with pixels in 0..1 for codes in the order of their targets."""
        return self.images(self.noise(self.norm(latent)))

    def renew(self) -> None:
        """Draw the layers of noise."""
        self.noise.draw()

    def restart(self) -> None:
        """Become as a new generator is, with PyTorch's first weights, as the authors' code does."""
        self.norm.reset_parameters()
        self.images.load_state_dict(self._make().state_dict())
        self.renew()

    def restart_start(self) -> None:
        """Draw the first layer behind the noise and its batch norm anew."""
        self.images.restart_start()


class NAYER(DataFreeMethod):
    """Learn from images that begin as class codes behind layers of noise."""

    name = "nayer"
    title = "Noisy layers behind class codes"
    source = Source(
        "NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge "
        "Distillation",
        venue="CVPR 2024",
        arxiv="2310.00258",
    )
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)

    class Params(DataFreeMethod.Params):
        """Three weights of synthesis, its memory, the generator's life and codes."""

        temperature: float = Field(
            20.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        bn_weight: float = Field(
            10.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms. At 0 "
            "the teacher needs none.",
        )
        onehot_weight: float = Field(
            0.5,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with the class that an image is to "
            "show.",
        )
        adversarial_weight: float = Field(
            1.33,
            ge=0,
            le=1e6,
            description="Weight of the divergence of the student from the teacher, which images "
            "are to raise.",
        )
        masked: bool = Field(
            True,
            description="Count the divergence only where both networks decide for the same class.",
        )
        bn_momentum: float = Field(
            0.9,
            ge=0,
            lt=1,
            description="Share of the moments that is remembered from earlier calls; 0 compares "
            "those of the batch alone.",
        )
        code_size: int = Field(512, ge=1, le=65_536, description="Length of a class's code.")
        life_epochs: int = Field(
            10,
            ge=1,
            le=1_000_000,
            description="Epochs after which the generator is drawn anew.",
        )
        warmup_life_calls: int = Field(
            100,
            ge=1,
            le=1_000_000,
            description="Calls after which the generator is drawn anew before the first epoch.",
        )
        synthesis: LatentSynthesis = Field(
            LatentSynthesis(
                steps=30,
                batch_size=400,
                student_steps=200,
                calls_per_epoch=2,
                warmup_calls=200,
                latent_size=1000,
                learning_rate=4e-3,
                latent_learning_rate=0,
            ),
            description="How images are invented: budget, generator, buffer. `latent_size` is the "
            "width of the noisy layers; codes stay as they are where `latent_learning_rate` is 0.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        known = batch_norms(teacher) if teacher is not None and self.uses_bn_statistics else {}
        self.memory = MomentMemory(known, rate=params.bn_momentum)

    @property
    def uses_bn_statistics(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return self.params.bn_weight > 0

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
        return self.params.adversarial_weight > 0

    def make_generator(self) -> NoisyGenerator:
        """Return a new generator whose layers of noise each serve one cycle through the classes."""
        budget = self.params.synthesis
        group = min(self.classes, budget.batch_size)
        layers = math.ceil(budget.batch_size / group)
        make = functools.partial(
            generators.build,
            budget.generator,
            image_shape=self.image_shape,
            latent_size=budget.latent_size,
            width=budget.width,
        )
        codes = class_codes(self.classes, self.params.code_size)
        noise = NoisyLayers(layers, group, self.params.code_size, budget.latent_size)
        return NoisyGenerator(make, codes, noise)

    def renews_at(self, call: int) -> bool:
        """Whether the generator's life of some epochs, or of some calls in warm-up, is over."""
        params = self.params
        later = call - 1 - params.synthesis.warmup_calls
        if later < 0:
            return (call - 1) % params.warmup_life_calls == 0
        return later % (params.life_epochs * params.synthesis.calls_per_epoch) == 0

    def targets(self, count: int) -> Int[Tensor, " N"]:
        """Return all classes in turn, cycle after cycle, and some others for the rest."""
        cycles, rest = divmod(count, self.classes)
        whole = torch.arange(self.classes).repeat(cycles)
        return torch.cat([whole, torch.randperm(self.classes)[:rest]])

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return distance of moments, cross-entropy, and the divergence taken off."""
        params, logits = self.params, shown.teacher.features.logits
        return {
            "bn": shown.term(params.bn_weight, self.memory.distance, shown.teacher.norms),
            "onehot": shown.term(
                params.onehot_weight, entropies.mean_cross_entropy, logits, shown.targets
            ),
            "adversarial": shown.against_student(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
        }

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Remember the moments of the call's last step."""
        if self.uses_bn_statistics:
            self.memory.remember(last.teacher.norms)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, in nats times temperature^2."""
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}
