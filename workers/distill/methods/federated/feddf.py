"""Ensemble distillation for model fusion: the mean of the weights, corrected by distillation.

The server starts from the mean of the clients' weights and distils all clients together, the
softmax of their mean scores, into it on unlabelled images.

Source: Lin et al., NeurIPS 2020, arXiv 2006.07242, algorithm 1.
Differs: all clients have the student's network; the paper also fuses groups of networks. The number
of passes is fixed; the paper stops early by a validation set. The unlabelled images are the open
set, which only the server needs.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.functional.federated import averaging, soft_targets
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import FederatedMethod, Tensors
from workers.distill.networks.interface import Features


class FedDF(FederatedMethod):
    """Average weights, then distil the clients' ensemble into the mean at the server."""

    name = "feddf"
    title = "Ensemble distillation for model fusion"
    source = Source(
        "Ensemble Distillation for Robust Model Fusion in Federated Learning",
        venue="NeurIPS 2020",
        arxiv="2006.07242",
        equations="algorithm 1",
    )
    sends: ClassVar[tuple[str, ...]] = ("weights",)
    receives: ClassVar[tuple[str, ...]] = ("weights",)
    uses_open_set = True
    shares_weights = True

    class Params(FederatedMethod.Params):
        """The federation, how clients count, and how the server distils."""

        weighting: base.Weighting = "samples"
        temperature: float = Field(
            1.0, gt=0, le=1e4, description="Divides the scores of both sides before softmax."
        )
        fusion_epochs: int = Field(
            5,
            ge=1,
            le=100_000,
            description="Passes of the server over the round's open images. Published: up to "
            "10,000 steps, stopped early.",
        )
        fusion_rate: float = Field(
            1e-3,
            gt=0,
            le=1,
            description="Learning rate of the server's Adam; it falls to 0 along a cosine.",
        )

    params: Params

    def reply(self, result: base.LocalResult) -> Tensors:
        """Return the client's weights."""
        return base.named_weights(result.weights)

    def aggregate(self, replies: Sequence[base.Reply], server: base.Server) -> Tensors:
        """Return the mean of the weights after distillation of the clients' mean scores."""
        base.average_weights(replies, server, weighting=self.params.weighting)
        scores = averaging.mean_scores(
            torch.stack([server.open_logits(reply.part("weights")) for reply in replies])
        )
        targets = (scores / self.params.temperature).softmax(1)
        self._entropy = float(soft_targets.entropies(targets).mean())
        server.fit_open(targets, optimizer=self._optimizer)
        return base.named_weights(server.network.state_dict())

    def round_metrics(self) -> dict[str, float]:
        """Return the mean entropy of the ensemble's predictions of open images, in nats."""
        return {"target_entropy": self._entropy}

    @property
    def adapt_epochs(self) -> int:
        """Return the server's passes over the round's open images."""
        return self.params.fusion_epochs

    def adapt_terms(
        self, student: Features, targets: Float[Tensor, "N C"], weights: Float[Tensor, " N"] | None
    ) -> Terms:
        """Return temperature^2 times the mean KL from the targets."""
        temperature = self.params.temperature
        losses = soft_targets.kl_divergences(student.logits / temperature, targets)
        return {"fusion": temperature**2 * base.mean(losses, weights)}

    def _optimizer(self, parameters: list[nn.Parameter], steps: int) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters, lr=self.params.fusion_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer
