"""Heterogeneous federated learning by distillation of scores on a public set.

Clients may have networks of their own. Each sends its scores of public images, the server averages
them, and clients fit the mean (digest) before they go on with their own images (revisit).

Source: Li and Wang, 2019, arXiv 1910.03581, algorithm 1.
Differs: the public set has no labels here, so clients are not trained on it first; weights that
were can be given as the students' initial weights. A round starts with the own images, and the
digest follows the exchange. The loss of the digest is that of the released code, `l1`; the paper
names none.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.functional.federated import averaging, soft_targets
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import Delivers, FederatedMethod, Tensors
from workers.distill.networks.interface import Features


class FedMD(FederatedMethod):
    """Fit the clients' mean scores of open images."""

    name = "fedmd"
    title = "Heterogeneous federated learning via model distillation"
    source = Source(
        "FedMD: Heterogenous Federated Learning via Model Distillation",
        venue="NeurIPS workshop 2019",
        arxiv="1910.03581",
        equations="algorithm 1",
    )
    sends: ClassVar[tuple[str, ...]] = ("scores",)
    receives: ClassVar[tuple[str, ...]] = ("scores",)
    uses_open_set = True
    adapts = True
    delivers: ClassVar[Delivers] = "client"

    class Params(FederatedMethod.Params):
        """The federation, and how clients fit the mean scores."""

        loss: Literal["l1", "l2", "kl"] = Field(
            "l1",
            description="Of a client's scores and the mean: absolute or squared difference, "
            "averaged over classes, or KL after softmax.",
        )
        digest_epochs: int = Field(
            1, ge=1, le=10_000, description="Passes over the round's open images after a round."
        )

    params: Params

    def reply(self, result: base.LocalResult) -> Tensors:
        """Return the client's scores of the round's open images."""
        if result.open_logits is None:
            raise ValueError("fedmd needs an open set, and this client has none")
        return {"scores": result.open_logits}

    def aggregate(self, replies: Sequence[base.Reply], server: base.Server) -> Tensors:
        """Return the mean scores of the open images."""
        scores = averaging.mean_scores(
            torch.stack([reply.tensors["scores"].float() for reply in replies])
        )
        self._entropy = float(soft_targets.entropies(scores.softmax(1)).mean())
        return {"scores": scores}

    def round_metrics(self) -> dict[str, float]:
        """Return the mean entropy of the mean scores after softmax, in nats."""
        return {"target_entropy": self._entropy}

    @property
    def adapt_epochs(self) -> int:
        """Return the passes over the round's open images."""
        return self.params.digest_epochs

    def adapt_terms(
        self, student: Features, targets: Float[Tensor, "N C"], weights: Float[Tensor, " N"] | None
    ) -> Terms:
        """Return the mean distance of scores to the mean scores."""
        apart = student.logits - targets
        match self.params.loss:
            case "l1":
                losses = apart.abs().mean(1)
            case "l2":
                losses = apart.square().mean(1)
            case "kl":
                losses = soft_targets.kl_divergences(student.logits, targets.softmax(1))
        return {"digest": base.mean(losses, weights)}
