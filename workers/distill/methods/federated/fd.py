"""Federated distillation: clients exchange their mean output for each label.

A client's teacher for a sample is what the other clients' networks say on average of its label.
C x C numbers travel, whatever the size of the networks.

Source: Jeong et al., 2018, arXiv 1811.11479, algorithm 1.
Differs: a row is the mean over the other clients that hold the label; the paper divides by all
others, which is the same where each holds every label. The server sends all clients the same sums,
from which each subtracts its own row; the paper sends each its own table of the same numbers. No
row is sent of a label that fewer clients hold than `min_clients`: with one holder it would show
that client's row to all, of use to nobody who took part. The paper gives no weight of the
distillation term. A pass over the client's images takes the place of the paper's 250 iterations.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from workers.distill.config.descriptions import Condition, Contradiction
from workers.distill.data.types import Batch
from workers.distill.functional.federated import label_means, schedules, soft_targets
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import Delivers, FederatedMethod, Tensors
from workers.distill.networks.interface import Features


class FD(FederatedMethod):
    """Exchange the mean output for each label."""

    name = "fd"
    title = "Federated distillation"
    source = Source(
        "Communication-Efficient On-Device Machine Learning: Federated Distillation and "
        "Augmentation under Non-IID Private Data",
        venue="NeurIPS workshop 2018",
        arxiv="1811.11479",
        equations="algorithm 1",
    )
    sends: ClassVar[tuple[str, ...]] = ("label_counts", "label_probabilities")
    receives: ClassVar[tuple[str, ...]] = ("label_holders", "label_sums")
    delivers: ClassVar[Delivers] = "client"

    class Params(FederatedMethod.Params):
        """The federation, the weight of the teacher, and how outputs are averaged."""

        gamma: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the cross-entropy with the teacher; 0 is local training. Of "
            "schedule constant.",
        )
        schedule: Literal["constant", "geometric", "linear"] = Field(
            "constant",
            description="constant: labels + gamma * teacher. The others: (1 - a) * labels + a * "
            "teacher, where a falls from `share` by `ratio` each round, or to 0 after the last.",
        )
        share: float = Field(0.5, ge=0, le=1, description="Share a of the teacher at the start.")
        ratio: float = Field(0.98, gt=0, le=1, description="Factor of a each round: geometric.")
        least_share: float = Field(0.0, ge=0, le=1, description="Lower bound of a: geometric.")
        recency: float = Field(
            1.0,
            gt=0,
            le=1,
            description="Factor of a label's earlier outputs when one is added to its mean; 1 "
            "counts all alike, below 1 the outputs of the better trained network count more.",
        )
        weighting: Literal["uniform", "samples"] = Field(
            "uniform",
            description="How clients count in the mean of a label: alike, as published, or by "
            "their images of it.",
        )

    params: Params
    contradictions: ClassVar[tuple[Contradiction, ...]] = (
        Contradiction(
            when=(
                Condition(field="schedule", comparison="!=", value="constant"),
                Condition(field="gamma", comparison="!=", value=1.0),
            ),
            field="gamma",
            code="gamma_without_effect",
            message="gamma {gamma} has no effect with schedule {schedule}, whose weight is share; "
            "leave gamma out, or choose schedule constant",
        ),
    )

    def start_record(self, like: Tensor) -> Tensors:
        """Return empty sums of outputs for each label."""
        return label_means.empty_sums(self.classes, self.classes, like=like)._asdict()

    def record(self, record: Tensors, student: Features, batch: Batch) -> Tensors:
        """Add the outputs of a batch to the sums of their labels."""
        counted = None if batch.weights is None else batch.weights > 0
        sums = label_means.add_batch(
            label_means.LabelSums(**record),
            student.logits.softmax(1),
            batch.labels,
            decay=self.params.recency,
            counted=counted,
        )
        return sums._asdict()

    def local_terms(self, student: Features, batch: Batch, local: base.LocalStep) -> Terms:
        """Return cross-entropy with the labels, and with the teacher's rows of those labels."""
        labels, teacher = self._weights(local.round)
        task = self.label_terms(student, batch)["task"]
        if not local.memory:
            # Nobody teaches yet: the labels have their whole weight.
            return {"task": task, "distil": task.new_zeros(())}
        rows = label_means.LabelMeans(local.memory["teacher"], local.memory["has_teacher"])
        distil, _ = label_means.cross_entropies(student.logits, batch.labels, rows)
        return {"task": labels * task, "distil": teacher * base.mean(distil, batch.weights)}

    def reply(self, result: base.LocalResult) -> Tensors:
        """Return a mean output for each label that the client holds, and how many images it has."""
        found = label_means.means(label_means.LabelSums(**result.record))
        held = result.label_counts > 0
        return {"label_probabilities": found.rows[held], "label_counts": result.label_counts.int()}

    def receive(
        self,
        memory: Mapping[str, Tensor],
        consensus: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
    ) -> Tensors:
        """Return the teacher: the mean of the other clients that hold a label."""
        if not consensus:
            return dict(memory)
        sums, weights = consensus["label_sums"], consensus["label_holders"]
        if sent:
            rows = self._rows(sent, like=sums)
            own = self._client_weights(sent)
            sums, weights = sums - own[:, None] * rows, weights - own
        has_teacher = weights > 0
        rows = torch.where(has_teacher[:, None], sums / weights.clamp_min(1)[:, None], 0.0)
        return {"teacher": rows.clamp_min(0.0), "has_teacher": has_teacher}

    def aggregate(self, replies: Sequence[base.Reply], server: base.Server) -> Tensors:
        """Return the sum of the rows of each label, and by what it is to be divided."""
        like = replies[0].tensors["label_probabilities"]
        rows = torch.stack([self._rows(reply.tensors, like=like) for reply in replies])
        weights = torch.stack([self._client_weights(reply.tensors) for reply in replies])
        holders = (weights > 0).sum(0)
        is_sent = holders >= self.fewest_holders
        sums = torch.einsum("kc,kcd->cd", weights.to(rows.dtype), rows) * is_sent[:, None]
        total = weights.sum(0) * is_sent
        means = sums[is_sent] / total[is_sent, None]
        self._metrics = {"withheld_labels": float(((holders > 0) & ~is_sent).sum())}
        if len(means):
            self._metrics["target_entropy"] = float(soft_targets.entropies(means).mean())
        return {"label_sums": sums, "label_holders": total.int()}

    def round_metrics(self) -> dict[str, float]:
        """Return the mean entropy of what is sent of the labels, in nats, where anything is.

        And of how many labels nothing is sent because too few clients hold them.
        """
        return dict(self._metrics)

    def _weights(self, number: int) -> tuple[float, float]:
        """Return the weights of labels and teacher in a round."""
        params = self.params
        if params.schedule == "constant":
            return 1.0, params.gamma
        if params.schedule == "linear":
            share = schedules.linear(params.share, number - 1, self.rounds)
        else:
            share = schedules.geometric(
                params.share, params.ratio, number - 1, floor=params.least_share
            )
        return 1 - share, share

    def _rows(self, sent: Mapping[str, Tensor], *, like: Tensor) -> Tensor:
        """Return what a client sent as a row for every label; zeros where it has none."""
        rows = like.new_zeros(self.classes, self.classes)
        rows[sent["label_counts"] > 0] = sent["label_probabilities"].to(rows)
        return rows

    def _client_weights(self, sent: Mapping[str, Tensor]) -> Tensor:
        counts = sent["label_counts"]
        return counts if self.params.weighting == "samples" else (counts > 0).int()
