"""Federated averaging with a pull towards the server's weights.

Clients with unlike data drift apart in their local steps; a quadratic penalty on the distance to
the weights that a client started from keeps them near.

Source: Li et al., MLSys 2020, arXiv 1812.06127, equation 2.
Differs: the penalty is a term of the loss, so momentum and clipping see it; with plain SGD its step
is the paper's.
"""

from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional.federated import averaging
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import AveragingMethod
from workers.distill.networks.interface import Features


class FedProx(AveragingMethod):
    """Average the weights of clients that stay near the server's."""

    name = "fedprox"
    title = "Federated optimisation with a proximal term"
    source = Source(
        "Federated Optimization in Heterogeneous Networks",
        venue="MLSys 2020",
        arxiv="1812.06127",
        equations="2",
    )

    class Params(AveragingMethod.Params):
        """The federation, the pull, and how clients count."""

        mu: float = Field(
            0.1,
            ge=0,
            le=1e6,
            description="Weight of half the squared distance to the server's weights; 0 is fedavg. "
            "Published: 0.001 to 1.",
        )

    params: Params

    def local_terms(self, student: Features, batch: Batch, local: base.LocalStep) -> Terms:
        """Return cross-entropy, and the penalty of the distance."""
        terms = self.label_terms(student, batch)
        if self.params.mu == 0:
            return terms
        anchors = {name: local.received[f"weights/{name}"] for name in local.weights}
        penalty = averaging.proximal_penalty(local.weights, anchors, mu=self.params.mu)
        return {**terms, "proximal": penalty}
