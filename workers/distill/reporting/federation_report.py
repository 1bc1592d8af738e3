"""The report on a federation: numbers for JSON, and pictures with how to read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from workers.distill.reporting import federation_figures
from workers.distill.reporting.figures import History

PREFIX = "federation/"
Pictures = dict[str, tuple[Figure, str]]
"""By file stem, with a word on how to read each."""


@dataclass(frozen=True)
class FederationEvidence:
    """Who had what, what travelled, and how good the clients' models are."""

    method: str
    label_counts: Mapping[str, Sequence[int]]
    """Images of each class, by client; without those whose data are elsewhere."""
    scores: Mapping[str, float]
    """Share of right answers on the test split after the last round, by client."""
    best_clients: Mapping[int, str]
    """After each round that was scored, whose model would be delivered, where a client's is."""
    traffic: Mapping[str, tuple[int, int]]
    """Bytes sent and received by each client, as encoded."""


def numbers(evidence: FederationEvidence, classes: Sequence[str]) -> dict[str, Any]:  # Any: JSON
    """Return everything that the pictures show but the histories."""
    return {
        "method": evidence.method,
        "classes": list(classes),
        "images_by_client_and_class": {
            name: list(counts) for name, counts in evidence.label_counts.items()
        },
        "test_accuracy_by_client": dict(evidence.scores),
        "best_client_by_round": {str(key): name for key, name in evidence.best_clients.items()},
        "bytes_by_client": {
            name: {"up": up, "down": down} for name, (up, down) in evidence.traffic.items()
        },
    }


def pictures(evidence: FederationEvidence, classes: Sequence[str], history: History) -> Pictures:
    """Return what there is to see."""
    drawings: Pictures = {}
    keys = {key for entry in history for key in entry}
    if "validation/accuracy" in keys or f"{PREFIX}client_accuracy_mean" in keys:
        drawings["rounds"] = (
            federation_figures.accuracy(history),
            "Left by rounds, right by what all clients together sent and received. The band "
            "reaches from the worst client to the best. All are scored on the same "
            "validation split.",
        )
    if evidence.label_counts:
        drawings["partition"] = (
            federation_figures.partition(evidence.label_counts, classes),
            "Images of each class that each client has. A row with few dark cells is a client that "
            "has few classes; a column without any is a class that nobody can learn.",
        )
    if f"{PREFIX}target_entropy" in keys:
        drawings["entropy"] = (
            federation_figures.entropy(history),
            "How undecided the targets are, in nats: 0 is one class for certain. Where the targets "
            "lie above the clients' mean, the aggregation has flattened them.",
        )
    if evidence.scores:
        drawings["clients"] = (
            federation_figures.clients(evidence.scores, evidence.label_counts),
            "Each client's own model on the same test split after the last round, best first, and "
            "how many images it trained on.",
        )
    return drawings
