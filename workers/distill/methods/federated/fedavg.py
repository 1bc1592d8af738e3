"""Federated averaging.

Each client trains the server's weights on its own images; the server takes the mean of what comes
back, weighted by the clients' numbers of images.

Source: McMahan et al., AISTATS 2017, arXiv 1602.05629, algorithm 1.
Differs: running statistics of batch norms are averaged too, so that the server's model can be used
as it is; the code of FedGen (arXiv 2105.10056) leaves them to the clients.
"""

from workers.distill.methods.base import Source
from workers.distill.methods.federated.base import AveragingMethod


class FedAvg(AveragingMethod):
    """Average the weights of clients."""

    name = "fedavg"
    title = "Federated averaging"
    source = Source(
        "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        venue="AISTATS 2017",
        arxiv="1602.05629",
        equations="algorithm 1",
    )
