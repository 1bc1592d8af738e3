"""Distillation-based semi-supervised federated learning (DS-FL).

Clients send what their networks say of unlabelled images that all of them have. The server averages
the rows, may sharpen the mean (entropy reduction aggregation, ERA), and sends it back as targets
for clients and for a model of its own.

Source: Itahara et al., IEEE TMC 2021, arXiv 2008.06180. `power` is the enhanced ERA of arXiv
2504.19602.
Differs: `vote`, `median` and `trimmed` are no part of the paper.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.functional.federated import consensus, soft_targets
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import FederatedMethod, Tensors
from workers.distill.networks.interface import Features


class DSFL(FederatedMethod):
    """Distil from the clients' mean predictions of open images."""

    name = "dsfl"
    title = "Distillation-based semi-supervised federated learning"
    source = Source(
        "Distillation-Based Semi-Supervised Federated Learning for Communication-Efficient "
        "Collaborative Training with Non-IID Private Data",
        venue="IEEE TMC 2021",
        arxiv="2008.06180",
        equations="algorithm 1",
    )
    sends: ClassVar[tuple[str, ...]] = ("probabilities",)
    receives: ClassVar[tuple[str, ...]] = ("targets",)
    uses_open_set = True
    adapts = True

    class Params(FederatedMethod.Params):
        """The federation, how predictions are aggregated, and how long clients distil."""

        aggregation: Literal["era", "sa", "power", "vote", "median", "trimmed"] = Field(
            "era",
            description="era: the mean, sharpened by `temperature`. sa: the mean. power: the mean "
            "to the power of `exponent`, normalised. vote: the share of clients that predict a "
            "class. median, trimmed: of each class over clients, normalised; harder to poison.",
        )
        temperature: float = Field(
            0.1,
            gt=0,
            le=100,
            description="Of era: divides the mean probabilities before softmax. It may flatten "
            "where classes are many and no peak is high: prefer 0.02 or power beyond 30 classes.",
        )
        exponent: float = Field(2.0, gt=0, le=100, description="Of power; 1 is sa.")
        trim: float = Field(
            0.2, ge=0, lt=0.5, description="Of trimmed: share of the clients cut at each end."
        )
        distill_epochs: int = Field(
            1, ge=1, le=10_000, description="Passes over the round's open images after a round."
        )

    params: Params

    def reply(self, result: base.LocalResult) -> Tensors:
        """Return the client's predictions of the round's open images."""
        if result.open_logits is None:
            raise ValueError("dsfl needs an open set, and this client has none")
        return {"probabilities": result.open_logits.softmax(1)}

    def aggregate(self, replies: Sequence[base.Reply], server: base.Server) -> Tensors:
        """Return the targets of the open images, on which the server's model is trained too."""
        rows = torch.stack([reply.tensors["probabilities"].float() for reply in replies])
        targets, decided = self._targets(rows)
        self._undecided = int((~decided).sum())
        self._entropies = tuple(
            float(soft_targets.entropies(table).mean()) for table in (consensus.mean(rows), targets)
        )
        server.fit_open(targets)
        return {"targets": targets}

    def round_metrics(self) -> dict[str, float]:
        """Return the mean entropy of the clients' mean and of the targets made of it, in nats.

        And how many images the rule could not decide: their targets are uniform.
        """
        before, after = self._entropies
        undecided = float(self._undecided)
        return {"mean_entropy": before, "target_entropy": after, "undecided_images": undecided}

    @property
    def adapt_epochs(self) -> int:
        """Return the passes over the round's open images."""
        return self.params.distill_epochs

    def adapt_terms(
        self, student: Features, targets: Float[Tensor, "N C"], weights: Float[Tensor, " N"] | None
    ) -> Terms:
        """Return the mean cross-entropy with the targets, in nats."""
        return {"distil": base.mean(soft_targets.cross_entropies(student.logits, targets), weights)}

    def _targets(self, rows: Float[Tensor, "K N C"]) -> consensus.Decided:
        params = self.params
        match params.aggregation:
            case "median":
                return consensus.median(rows)
            case "trimmed":
                return consensus.trimmed_mean(rows, share=params.trim)
            case "vote":
                targets = consensus.vote(rows)
            case "sa":
                targets = consensus.mean(rows)
            case "era":
                targets = consensus.sharpened(consensus.mean(rows), temperature=params.temperature)
            case "power":
                targets = consensus.power(consensus.mean(rows), exponent=params.exponent)
        return consensus.Decided(targets, torch.ones_like(targets[:, 0], dtype=torch.bool))
