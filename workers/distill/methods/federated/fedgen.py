"""Data-free distillation by a generator of latents that the server trains.

The server learns, from the clients' classifiers and label counts alone, to generate latents of a
class; clients train their classifiers on such latents too, and so learn of labels that they lack.

Source: Zhu et al., ICML 2021, arXiv 2105.10056, equations 4 and 5, algorithm 1.
Differs: clients get the generator after the first round, when it has been trained; before, they
train on their own images alone, as in the released code. Labels are counted over a client's images,
not over its steps. A label that no client had so far is never generated.
Checked against: zhuangdizhu/FedGen, by way of the values that its rules give (`generator_loss`
weighted, `noise` uniform, `labels` uniform, `least_count` 1, `teacher_weight`, `decay` 0.98).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from workers.distill import errors
from workers.distill.config.descriptions import Condition, Contradiction
from workers.distill.data.types import Batch
from workers.distill.functional.federated import (
    averaging,
    latent_generation,
    schedules,
)
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import Delivers, FederatedMethod, Tensors
from workers.distill.networks.conditional import LabelInput, LatentGenerator
from workers.distill.networks.interface import Features, Network

LEAST_WEIGHT = 1e-4
"""Below this a weight does not decay further, as in the released code."""


class FedGen(FederatedMethod):
    """Train clients on latents of a generator that the server learns from their classifiers."""

    name = "fedgen"
    title = "Data-free distillation for heterogeneous federated learning"
    source = Source(
        "Data-Free Knowledge Distillation for Heterogeneous Federated Learning",
        venue="ICML 2021",
        arxiv="2105.10056",
        equations="4 and 5, algorithm 1",
    )
    required_student_features = ("classifier",)
    sends: ClassVar[tuple[str, ...]] = ("label_counts", "weights")
    receives: ClassVar[tuple[str, ...]] = ("generator", "label_counts", "weights")
    shares_weights = True

    class Params(FederatedMethod.Params):
        """The federation, the clients' two terms, and how the generator is trained."""

        sharing: Literal["all", "classifier"] = Field(
            "all",
            description="Weights that travel: all, or those of the classifier alone; then clients "
            "keep the rest for themselves, and the best of them is delivered.",
        )
        weighting: base.Weighting = Field(
            "uniform",
            description="How clients count in the mean of weights: alike, as in the paper, or by "
            "their numbers of images, as in the released code.",
        )
        latent_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of a client's cross-entropy on generated latents. Released code: "
            "10, for learning rate 0.01; weight times rate above 0.1 is unstable.",
        )
        teacher_weight: float = Field(
            0.0,
            ge=0,
            le=1e6,
            description="Weight of KL between a client's predictions for its images and its own "
            "for generated latents of their labels. Not in the paper; released code: 10, or 1.",
        )
        decay: float = Field(
            1.0,
            gt=0,
            le=1,
            description="Factor of both weights each round, down to 0.0001. Released code: 0.98.",
        )
        labels: Literal["prior", "uniform"] = Field(
            "prior",
            description="Labels of generated latents: in proportion to the clients' images of them "
            "in the round, or evenly among those that any client has had, as in the released code.",
        )
        noise: Literal["normal", "uniform"] = Field(
            "normal", description="Noise that enters the generator. Released code: uniform, 0..1."
        )
        generator_loss: Literal["mean", "weighted"] = Field(
            "mean",
            description="mean: cross-entropy of the clients' mean scores (equation 4). weighted: "
            "the sum of each client's own, weighted by its share of the label (released code).",
        )
        least_count: int = Field(
            0,
            ge=0,
            le=1000,
            description="Added to each client's count of each label before shares are taken; of "
            "weighted. Released code: 1.",
        )
        diversity_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of exp(-mean of noise distance times latent distance).",
        )
        student_weight: float = Field(
            0.0,
            ge=0,
            le=1e6,
            description="Weight of the KL between the clients' scores and those of their mean "
            "classifier, which the generator maximises. Released code: 0.",
        )
        generator_steps: int = Field(
            50, ge=1, le=100_000, description="Steps of the generator after each round."
        )
        generator_batch: int = Field(
            32, ge=2, le=65_536, description="Latents in a step of the generator."
        )
        generator_rate: float = Field(
            3e-4,
            gt=0,
            le=1,
            description="Learning rate of its Adam. Released code: 3e-4; EMNIST 1e-4.",
        )
        generator_rate_decay: float = Field(
            0.98, gt=0, le=1, description="Factor of that rate each round."
        )
        generator_decay: float = Field(1e-2, ge=0, le=1, description="Weight decay of its Adam.")
        hidden_size: int = Field(
            256, ge=1, le=65_536, description="Width of its hidden layer. CelebA: 128."
        )
        noise_size: int = Field(32, ge=1, le=65_536, description="Values of noise for a latent.")
        label_input: LabelInput = Field(
            "onehot", description="How the class enters: as one-hot, or as a learned embedding."
        )

    params: Params
    seen: Bool[Tensor, " C"]
    """Labels that a client has had in any round."""
    contradictions: ClassVar[tuple[Contradiction, ...]] = (
        Contradiction(
            when=(
                Condition(field="generator_loss", comparison="==", value="mean"),
                Condition(field="least_count", comparison="!=", value=0),
            ),
            field="least_count",
            code="least_count_without_effect",
            message="least_count {least_count} has no effect with generator_loss mean, which takes "
            "no shares of labels; leave it out, or choose generator_loss weighted",
        ),
    )

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        classifier = student.pooled_classifier()
        if classifier is None:
            raise errors.IncompatibleNetworks(
                f"fedgen needs a linear classifier, which {student.reference} does not show"
            )
        names = {id(value): name for name, value in student.named_parameters()}
        self.latent_size = classifier.in_features
        self.weight_name = names[id(classifier.weight)]
        self.bias_name = None if classifier.bias is None else names[id(classifier.bias)]
        self.generator = LatentGenerator(
            classes=self.classes,
            noise_size=params.noise_size,
            hidden_size=params.hidden_size,
            latent_size=self.latent_size,
            label_input=params.label_input,
        ).eval()
        self.register_buffer("seen", torch.zeros(self.classes, dtype=torch.bool))
        self._optimizer: torch.optim.Adam | None = None
        self._restored: dict[str, Any] | None = None  # Any: state of an optimizer
        self._metrics: dict[str, float] = {}

    # What travels depends on `sharing`.

    @property
    def delivered(self) -> Delivers:
        """Return whose model is delivered: with a shared classifier alone the server has none."""
        return "server" if self.params.sharing == "all" else "client"

    def sent_weights(self, names: Sequence[str]) -> list[str]:
        """Return which of a network's weights travel."""
        if self.params.sharing == "all":
            return list(names)
        return [name for name in names if name in (self.weight_name, self.bias_name)]

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Return the size of the generator, which travels too."""
        parameters = sum(value.numel() for value in self.generator.parameters())
        return {"generator_parameters": parameters, "latent_size": self.latent_size}

    # On clients.

    def draws(self, generator: torch.Generator, batch_size: int) -> Tensors:
        """Return where labels of latents lie in the prior, and noise for latents of two kinds."""
        # A single image that would be left over joins the batch before it (`loader.bounds`).
        count = batch_size + 1
        return {
            "positions": torch.rand(count, generator=generator),
            "noise": self._noise(count, generator),
            "teacher_noise": self._noise(count, generator),
        }

    def local_terms(self, student: Features, batch: Batch, local: base.LocalStep) -> Terms:
        """Return cross-entropy on images and on latents, and the pull towards latents' scores."""
        terms, params = self.label_terms(student, batch), self.params
        zero = student.logits.new_zeros(())
        terms = {**terms, "latent": zero, "latent_teacher": zero}
        if "label_counts" not in local.received:
            return terms
        # The consensus of round r is used in round r + 1; decay counts the rounds that use one.
        decayed = [
            schedules.geometric(weight, params.decay, local.round - 1, floor=LEAST_WEIGHT)
            if weight
            else 0.0
            for weight in (params.latent_weight, params.teacher_weight)
        ]
        count = len(batch.labels)
        if params.latent_weight:
            prior = local.received["label_counts"].to(student.logits.dtype)
            labels = latent_generation.labels_at(prior, local.draws["positions"][:count])
            scores = self._latent_scores(local, local.draws["noise"][:count], labels)
            losses = functional.cross_entropy(scores, labels, reduction="none")
            terms["latent"] = decayed[0] * base.mean(losses, batch.weights)
        if params.teacher_weight:
            scores = self._latent_scores(local, local.draws["teacher_noise"][:count], batch.labels)
            losses = latent_generation.latent_teacher_losses(student.logits, scores)
            terms["latent_teacher"] = decayed[1] * base.mean(losses, batch.weights)
        return terms

    def reply(self, result: base.LocalResult) -> Tensors:
        """Return the client's weights, and how many images of each label it has."""
        names = self.sent_weights(list(result.weights))
        weights = base.named_weights({name: result.weights[name] for name in names})
        return {**weights, "label_counts": result.label_counts.int()}

    # At the server.

    def aggregate(self, replies: Sequence[base.Reply], server: base.Server) -> Tensors:
        """Return mean weights, the generator trained on the clients' classifiers, and the prior."""
        params = self.params
        samples = torch.tensor([reply.samples for reply in replies])
        counts = torch.stack([reply.tensors["label_counts"].cpu().float() for reply in replies])
        counts = latent_generation.capped_counts(counts, samples)
        self.seen |= (counts > 0).any(0).to(self.seen.device)
        states = [reply.part("weights") for reply in replies]
        shares = averaging.client_weights(samples, weighting=params.weighting)
        weights = averaging.average_states(states, shares)
        self._fit(states, weights, counts, server)
        if params.sharing == "all":
            server.load(weights)
        prior = counts.sum(0).round() if params.labels == "prior" else self.seen
        generator = {f"generator/{name}": value for name, value in self._generator_state()}
        return {**base.named_weights(weights), **generator, "label_counts": prior.int()}

    def round_metrics(self) -> dict[str, float]:
        """Return loss and diversity of the generator in its last step."""
        return dict(self._metrics)

    def get_extra_state(self) -> dict[str, Any]:  # Any: state of an optimizer
        """Return the state of the generator's optimizer, for checkpoints."""
        return {"optimizer": None if self._optimizer is None else self._optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue with such a state of the generator's optimizer."""
        self._optimizer, self._restored = None, state["optimizer"]

    def _fit(
        self,
        states: Sequence[Mapping[str, Tensor]],
        averaged: Mapping[str, Tensor],
        counts: Float[Tensor, "K C"],
        server: base.Server,
    ) -> None:
        params, device = self.params, self.seen.device
        heads = self._stacked([*states, averaged], device)
        shares = latent_generation.label_weights(counts + params.least_count).to(device)
        prior = (counts.sum(0) if params.labels == "prior" else (counts > 0).any(0)).to(device)
        optimizer = self._optimizer_of(server.round)
        # One generator for the whole round: `server.generator` starts anew with each call.
        generator = server.generator
        self.generator.train()
        for _ in range(params.generator_steps):
            noise = self._noise(params.generator_batch, generator).to(device)
            positions = torch.rand(params.generator_batch, generator=generator).to(device)
            labels = latent_generation.labels_at(prior.float(), positions)
            latents = self.generator(noise, labels)
            scores = torch.einsum("nd,kcd->knc", latents, heads[0]) + heads[1][:, None]
            teacher = self._teacher_loss(scores[:-1], labels, shares)
            diversity = latent_generation.diversity_loss(noise, latents)
            loss = teacher + params.diversity_weight * diversity
            if params.student_weight:
                loss = loss - params.student_weight * latent_generation.student_disagreement(
                    scores[-1], scores[:-1], labels, shares
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            optimizer.step()
        self.generator.eval()
        self._metrics = {
            "generator_loss": float(teacher.detach()),
            "generator_diversity_loss": float(diversity.detach()),
        }
        if not loss.isfinite():
            raise errors.Diverged(
                f"the generator's loss was not finite in round {server.round}; lower "
                "method.generator_rate",
                round=server.round,
            )

    def _teacher_loss(
        self, scores: Float[Tensor, "K N C"], labels: Int[Tensor, " N"], shares: Tensor
    ) -> Float[Tensor, ""]:
        if self.params.generator_loss == "mean":
            return latent_generation.mean_score_loss(scores, labels)
        return latent_generation.weighted_teacher_losses(scores, labels, shares).sum()

    def _latent_scores(
        self, local: base.LocalStep, noise: Float[Tensor, "N E"], labels: Int[Tensor, " N"]
    ) -> Float[Tensor, "N C"]:
        """Return what a client's classifier says of latents that the received generator makes."""
        state = {name: local.received[f"generator/{name}"] for name, _ in self._generator_state()}
        latents: Tensor = functional_call(self.generator, state, (noise, labels))
        bias = None if self.bias_name is None else local.weights[self.bias_name]
        return functional.linear(latents, local.weights[self.weight_name], bias)

    def _generator_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.generator.state_dict().items():
            yield name, value.detach().clone()

    def _stacked(
        self, states: Sequence[Mapping[str, Tensor]], device: torch.device
    ) -> tuple[Float[Tensor, "K C D"], Float[Tensor, "K C"]]:
        """Return weights and biases of several classifiers."""
        weights = torch.stack([state[self.weight_name].float() for state in states]).to(device)
        if self.bias_name is None:
            return weights, weights.new_zeros(weights.shape[:2])
        return weights, torch.stack([state[self.bias_name].float() for state in states]).to(device)

    def _optimizer_of(self, number: int) -> torch.optim.Adam:
        params = self.params
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(
                self.generator.parameters(), weight_decay=params.generator_decay
            )
            if self._restored is not None:
                self._optimizer.load_state_dict(self._restored)
        rate = schedules.geometric(params.generator_rate, params.generator_rate_decay, number - 1)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return self._optimizer

    def _noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "N E"]:
        draw = torch.randn if self.params.noise == "normal" else torch.rand
        return draw(count, self.params.noise_size, generator=generator)
