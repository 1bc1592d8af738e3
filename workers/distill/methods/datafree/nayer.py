"""Data-free distillation with noisy layers.

A generator whose input is noise alone must learn each class before its images are useful. Here the
input is a fixed code of the class. Images of one class differ by a randomly initialised linear
layer behind the code, which is drawn anew for each call and trained with the generator. Each cycle
through the classes has a layer of its own.

Source: Tran et al., CVPR 2024, arXiv:2310.00258.
Differs: codes are fixed random orthonormal vectors, or unit vectors where there are more classes
than a code is long; the authors take CLIP embeddings of the classes' names, in which similar
classes have similar codes. The classes of a last, incomplete cycle are all different: one class
twice in a cycle would give one image twice. Moments are smoothed as in Fast-DFKD, as in the
authors' code. The student's steps follow each call, where that code makes both calls of an epoch
first.
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
from workers.distill.functional import adversaries, entropies
from workers.distill.methods import parameters
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.datafree.base import SmoothedInversionMethod, SynthesisBatch
from workers.distill.networks import generators

CODES_SEED = 20_240


def class_codes(classes: int, size: int) -> Float[Tensor, "C D"]:
    """Return a fixed unit vector for each class; orthogonal if there are at most `size`."""
    drawn = torch.randn(
        classes, size, generator=torch.Generator().manual_seed(CODES_SEED), dtype=torch.float64
    )
    if classes > size:
        return normalize(drawn, dim=1).float()
    columns: Tensor = torch.linalg.qr(drawn.T).Q
    return columns.T.contiguous().float()


class NoisyLayers(nn.Module):
    """Randomly initialised linear layers; each `group` rows in turn go through the next one."""

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
        """Return the layers' outputs; at most `group` rows for each layer."""
        groups = math.ceil(len(codes) / self.group)
        filled = pad(codes, (0, 0, 0, groups * self.group - len(codes)))
        grouped = filled.view(groups, self.group, -1)
        noisy = torch.baddbmm(self.bias[:groups], grouped, self.weight[:groups])
        return noisy.flatten(0, 1)[: len(codes)]


class NoisyGenerator(generators.Generator):
    """A generator on class codes, normalised over the batch, behind noisy linear layers."""

    codes: Tensor

    def __init__(
        self,
        make: Callable[[], generators.Generator],
        codes: Float[Tensor, "C D"],
        noise: NoisyLayers,
    ) -> None:
        super().__init__()
        self.latent_shape = (codes.shape[1],)
        # Saved, so that a resumed job has the same codes on whatever machine.
        self.register_buffer("codes", codes)
        self.norm = nn.BatchNorm1d(codes.shape[1])
        self.noise = noise
        self._make = make
        self.images = make()

    def sample_latent(self, targets: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Return the codes of the classes, without randomness."""
        return self.codes[targets.to(self.codes.device)]

    def forward(self, latent: Float[Tensor, "N D"]) -> Float[Tensor, "N c h w"]:
        """Return images with pixels in 0..1 for codes in the order of their targets."""
        return self.images(self.noise(self.norm(latent)))

    def start_round(self) -> None:
        """Draw the noisy layers anew."""
        self.noise.draw()

    def reset_parameters(self) -> None:
        """Draw all weights anew with PyTorch's initialisation, as the authors' code does."""
        self.norm.reset_parameters()
        self.images.load_state_dict(self._make().state_dict())
        self.start_round()

    def reset_first_layer(self) -> None:
        """Draw the first layer behind the noisy layers and its batch norm anew."""
        self.images.reset_first_layer()


class NAYER(SmoothedInversionMethod):
    """Distil on images generated from class codes behind noisy layers."""

    name = "nayer"
    title = "Noisy layers behind class codes"
    source = Source(
        "NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge "
        "Distillation",
        venue="CVPR 2024",
        arxiv="2310.00258",
    )
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    image_weights = ("bn_weight", "onehot_weight")
    adversarial_weights = ("adversarial_weight",)
    norm_weights = ("bn_weight",)

    class Params(SmoothedInversionMethod.Params):
        """Weights and smoothing of synthesis, the generator's reset interval and codes."""

        temperature: parameters.SoftTargetTemperature = 20.0
        bn_weight: parameters.BNWeight = 10.0
        onehot_weight: parameters.OneHotWeight = 0.5
        adversarial_weight: parameters.AdversarialWeight = 1.33
        masked: parameters.Masked = True
        bn_momentum: parameters.BNMomentum = 0.9
        code_size: parameters.Width = Field(512, description="Length of a class's code.")
        life_epochs: parameters.Count = Field(
            10,
            description="Epochs after which the generator is initialised anew.",
        )
        warmup_life_calls: parameters.Count = Field(
            100,
            description="Calls after which the generator is initialised anew during warm-up.",
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
            description=f"{parameters.ROUND_BUDGET} `latent_size` is the width of the noisy "
            "layers; codes are constant where `latent_learning_rate` is 0.",
        )

    params: Params

    def make_generator(self) -> NoisyGenerator:
        """Return a new generator with one noisy layer for each cycle through the classes."""
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
        """Whether the generator is initialised anew before this call."""
        params = self.params
        later = call - 1 - params.synthesis.warmup_calls
        if later < 0:
            return (call - 1) % params.warmup_life_calls == 0
        return later % (params.life_epochs * params.synthesis.calls_per_epoch) == 0

    def targets(self, count: int) -> Int[Tensor, " N"]:
        """Return all classes in turn, cycle after cycle, and random different ones for the rest."""
        cycles, rest = divmod(count, self.classes)
        whole = torch.arange(self.classes).repeat(cycles)
        return torch.cat([whole, torch.randperm(self.classes)[:rest]])

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return moment distance, cross-entropy and the negative divergence."""
        params, logits = self.params, batch.teacher.features.logits
        return {
            "bn": batch.term(params.bn_weight, self.memory.distance, batch.teacher.norms),
            "onehot": batch.term(
                params.onehot_weight, entropies.mean_cross_entropy, logits, batch.targets
            ),
            "adversarial": batch.student_term(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
        }
