"""Federated prototype learning: clients exchange the mean embedding of each class.

Clients pull their embeddings towards the mean prototype of all, and answer by the nearest
prototype, also for classes that they have no image of. Networks may differ, their embeddings must
have the same width.

Source: Tan et al., AAAI 2022, arXiv 2105.00243, equations 3 to 8.
Differs: a client's prototypes are means over its training steps, not over one more pass at the end
of a round. Equation 6 divides by the number of holders twice; here once. `distance` samples and
`weighting` uniform are what the released code does.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional.federated import label_means, prototypes
from workers.distill.functional.federated.label_means import LabelMeans, LabelSums
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import Delivers, FederatedMethod, Tensors
from workers.distill.networks.interface import Features, Network


class FedProto(FederatedMethod):
    """Exchange the mean embedding of each class."""

    name = "fedproto"
    title = "Federated prototype learning"
    source = Source(
        "FedProto: Federated Prototype Learning across Heterogeneous Clients",
        venue="AAAI 2022",
        arxiv="2105.00243",
        equations="3 to 8",
    )
    required_student_features = ("classifier",)
    sends: ClassVar[tuple[str, ...]] = ("label_counts", "prototypes")
    receives: ClassVar[tuple[str, ...]] = ("label_counts", "prototypes")
    delivers: ClassVar[Delivers] = "client"

    class Params(FederatedMethod.Params):
        """The federation, the pull towards prototypes, and how clients answer."""

        prototype_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the prototypes. Published: 1, with learning "
            "rate 0.01; of classes, weight times rate above about 0.01 is unstable.",
        )
        distance: Literal["classes", "samples"] = Field(
            "classes",
            description="classes: squared distance of a batch's mean embedding of each class, "
            "summed over classes. samples: mean squared difference of each image's embedding.",
        )
        weighting: Literal["samples", "uniform"] = Field(
            "samples",
            description="How clients count in the prototype of a class: by their images of it, or "
            "alike.",
        )
        answer: Literal["prototypes", "classifier"] = Field(
            "prototypes",
            description="How clients predict: by the nearest prototype, which becomes the "
            "classifier of the delivered network, or by the classifier that was trained.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.width = _width(student)
        self.check_client(student)

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Return the width of a prototype."""
        return {"prototype_width": self.width}

    def check_client(self, network: Network) -> None:
        """Raise `IncompatibleNetworks` unless a client's prototypes fit those of the others."""
        width, classifier = _width(network), network.pooled_classifier()
        if width != self.width:
            raise errors.IncompatibleNetworks(
                f"fedproto compares embeddings, but those of {network.reference} have {width} "
                f"values and the student's {self.width}; choose networks of the same width",
                field="method/federation/networks",
            )
        if self.params.answer == "prototypes" and (classifier is None or classifier.bias is None):
            raise errors.IncompatibleNetworks(
                f"the classifier of {network.reference} has no bias, which answer prototypes "
                "needs; choose answer classifier",
                field="method/answer",
            )

    # On clients.

    def start_record(self, like: Tensor) -> Tensors:
        """Return empty sums of embeddings for each label."""
        return label_means.empty_sums(self.classes, self.width, like=like)._asdict()

    def record(self, record: Tensors, student: Features, batch: Batch) -> Tensors:
        """Add the embeddings of a batch to the sums of their labels."""
        return label_means.add_batch(
            LabelSums(**record), student.pooled, batch.labels, counted=_counted(batch)
        )._asdict()

    def local_terms(self, student: Features, batch: Batch, local: base.LocalStep) -> Terms:
        """Return cross-entropy with the labels, and the distance to the prototypes."""
        task = self.label_terms(student, batch)["task"]
        if not local.memory:
            return {"task": task, "prototypes": task.new_zeros(())}
        known = LabelMeans(local.memory["rows"], local.memory["held"])
        if self.params.distance == "classes":
            apart = prototypes.class_distance(
                student.pooled, batch.labels, known, counted=_counted(batch)
            )
        else:
            distances = prototypes.sample_distances(student.pooled, batch.labels, known)
            apart = base.mean(distances, batch.weights)
        return {"task": task, "prototypes": self.params.prototype_weight * apart}

    def reply(self, result: base.LocalResult) -> Tensors:
        """Return the prototypes of the labels that the client holds, and its images of each."""
        found = label_means.means(LabelSums(**result.record))
        counts = result.label_counts.int()
        return {"prototypes": found.rows[counts > 0], "label_counts": counts}

    def receive(
        self,
        memory: Mapping[str, Tensor],
        consensus: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
    ) -> Tensors:
        """Return the prototypes of all clients, a row for every label."""
        if "prototypes" not in consensus:
            return dict(memory)
        known = self._rows(consensus)
        return {"rows": known.rows, "held": known.held}

    def client_model(self, network: Network, memory: Mapping[str, Tensor]) -> Network:
        """Return the network with the nearest prototype as its classifier, if that answers."""
        if self.params.answer == "classifier" or not memory:
            return network
        answering = copy.deepcopy(network)
        classifier = answering.pooled_classifier()
        if classifier is None:
            raise errors.IncompatibleNetworks(f"{network.reference} shows no linear classifier")
        weight, bias = prototypes.as_classifier(LabelMeans(memory["rows"], memory["held"]))
        with torch.no_grad():
            classifier.weight.copy_(weight)
            classifier.bias.copy_(bias)
        return answering

    # At the server.

    def aggregate(self, replies: Sequence[base.Reply], server: base.Server) -> Tensors:
        """Return the mean prototype of each label that a client holds."""
        uploads = [self._rows(reply.tensors) for reply in replies]
        stacked = LabelMeans(*(torch.stack(parts) for parts in zip(*uploads, strict=True)))
        counts = torch.stack([reply.tensors["label_counts"] for reply in replies])
        weights = counts.to(stacked.rows) if self.params.weighting == "samples" else None
        found = prototypes.aggregate(stacked, weights)
        held = counts.sum(0) * found.held.to(counts.device)
        return {"prototypes": found.rows[found.held], "label_counts": held.int()}

    def _rows(self, sent: Mapping[str, Tensor]) -> LabelMeans:
        """Return what was sent as a row for every label."""
        given = sent["prototypes"]
        held = sent["label_counts"].to(given.device) > 0
        rows = given.new_zeros(self.classes, self.width)
        rows[held] = given
        return LabelMeans(rows, held)


def _counted(batch: Batch) -> Tensor | None:
    return None if batch.weights is None else batch.weights > 0


def _width(network: Network) -> int:
    classifier = network.pooled_classifier()
    if classifier is None:
        raise errors.IncompatibleNetworks(
            f"fedproto needs a linear classifier, which {network.reference} does not show"
        )
    return classifier.in_features
