"""The ensemble of the clients' networks that federated averaging trains.

Training is that of fedavg. All clients together answer: the mean of their scores before softmax.

Source: the baseline FedEnsemble of Zhu et al., ICML 2021, arXiv 2105.10056, section 5.
Differs: the delivered student is the averaged network, since the ensemble has as many networks as
clients; what the ensemble scores stands beside it (`federation/ensemble_accuracy`). Scores are
averaged, not added, which changes no answer.
"""

from typing import ClassVar

from workers.distill.methods.base import Source
from workers.distill.methods.federated.base import AveragingMethod, Ensemble


class FedEnsemble(AveragingMethod):
    """Let all clients answer together, trained as by fedavg."""

    name = "fedensemble"
    title = "Ensemble of federated clients"
    source = Source(
        "Data-Free Knowledge Distillation for Heterogeneous Federated Learning",
        venue="ICML 2021",
        arxiv="2105.10056",
        equations="section 5, FedEnsemble",
    )
    ensemble: ClassVar[Ensemble] = "scores"
