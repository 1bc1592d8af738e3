"""Exchange of mean scores for each label, the yardstick that FedGen is compared with.

Like `fd`, with scores before softmax in the place of probabilities; with `share_weights` the
clients' weights are averaged besides.

Source: Seo et al., 2020, arXiv 2011.02367, as run by Zhu et al., ICML 2021, arXiv 2105.10056
(FedDistill and FedDistill+).
Differs: means are of a round, over the clients that hold a label, without the client's own; none
is sent of a label that fewer clients hold than `min_clients`, as in `fd`.
`released_code` is FedGen's code: sums go on over all rounds and start from a count of 1, which
flattens them and makes every client a holder of every label, so that all are sent; the mean is over
all clients, the own included, and zeros where one lacks a label.
Checked against: zhuangdizhu/FedGen, by way of values computed independently.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional.federated import label_means, soft_targets
from workers.distill.functional.federated.label_means import LabelMeans, LabelSums, LabelTotals
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.federated import base
from workers.distill.methods.federated.base import Delivers, FederatedMethod, Tensors
from workers.distill.networks.interface import Features


class FedDistill(FederatedMethod):
    """Exchange the mean scores for each label, and weights besides where that is wanted."""

    name = "feddistill"
    title = "Federated distillation of mean scores"
    source = Source("Federated Knowledge Distillation", venue="preprint 2020", arxiv="2011.02367")
    sends: ClassVar[tuple[str, ...]] = ("label_counts", "label_scores")
    receives: ClassVar[tuple[str, ...]] = ("label_holders", "label_sums")
    weights_by: ClassVar[str | None] = "share_weights"
    delivers: ClassVar[Delivers] = "client"

    class Params(FederatedMethod.Params):
        """The federation, the weight of the teacher, and the two variants."""

        teacher_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of KL between the softmax of a label's mean scores and the "
            "prediction; 0 is local training.",
        )
        share_weights: bool = Field(
            False, description="Average the clients' weights besides: FedDistill+."
        )
        weighting: base.Weighting = "samples"
        released_code: bool = Field(
            False,
            description="Average scores as FedGen's code does: over all rounds from a count of 1, "
            "over all clients and with the client's own.",
        )

    params: Params

    @property
    def keeps_record(self) -> bool:
        """Return whether sums go on over all rounds of a client."""
        return self.params.released_code

    # On clients.

    def start_record(self, like: Tensor) -> Tensors:
        """Return empty sums of scores for each label."""
        count = 1.0 if self.params.released_code else 0.0
        return label_means.empty_sums(self.classes, self.classes, count=count, like=like)._asdict()

    def record(self, record: Tensors, student: Features, batch: Batch) -> Tensors:
        """Add the scores of a batch to the sums of their labels."""
        counted = None if batch.weights is None else batch.weights > 0
        return label_means.add_batch(
            LabelSums(**record), student.logits, batch.labels, counted=counted
        )._asdict()

    def local_terms(self, student: Features, batch: Batch, local: base.LocalStep) -> Terms:
        """Return cross-entropy with the labels, and the divergence from the teacher's rows."""
        task = self.label_terms(student, batch)["task"]
        if not local.memory:
            return {"task": task, "distil": task.new_zeros(())}
        rows = LabelMeans(local.memory["teacher"], local.memory["has_teacher"])
        apart, _ = label_means.kl_divergences(student.logits, batch.labels, rows)
        weight = self.params.teacher_weight
        return {"task": task, "distil": weight * base.mean(apart, batch.weights)}

    def reply(self, result: base.LocalResult) -> Tensors:
        """Return mean scores of each label that was counted, how many, and weights if wanted."""
        sums = LabelSums(**result.record)
        found = label_means.means(sums)
        counts = sums.counts.round().int() if self.keeps_record else result.label_counts.int()
        sent = {"label_scores": found.rows[counts > 0], "label_counts": counts}
        if self.params.share_weights:
            sent.update(base.named_weights(result.weights))
        return sent

    def receive(
        self,
        memory: Mapping[str, Tensor],
        consensus: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
    ) -> Tensors:
        """Return the teacher: the mean of the others that hold a label; of all in the code's form.

        Before the first round there is none.
        """
        if "label_sums" not in consensus:
            return dict(memory)
        totals = LabelTotals(consensus["label_sums"], consensus["label_holders"].long())
        own = self._rows(sent, like=totals.sums)
        if self.params.released_code:
            # What is subtracted is nothing: the own rows stay in.
            own = LabelMeans(torch.zeros_like(own.rows), torch.zeros_like(own.held))
        teacher = label_means.without_own(own, totals)
        return {"teacher": teacher.rows, "has_teacher": teacher.held}

    # At the server.

    def aggregate(self, replies: Sequence[base.Reply], server: base.Server) -> Tensors:
        """Return the sum of the rows of each label, by how many, and mean weights if wanted."""
        like = replies[0].tensors["label_scores"]
        uploads = [self._rows(reply.tensors, like=like) for reply in replies]
        totals = label_means.total(
            LabelMeans(*(torch.stack(parts) for parts in zip(*uploads, strict=True)))
        )
        # In the code's form every client counts as a holder of every label: nothing is withheld.
        is_sent = totals.holders >= self.fewest_holders
        means = totals.sums[is_sent] / totals.holders[is_sent, None]
        self._metrics = {"withheld_labels": float(((totals.holders > 0) & ~is_sent).sum())}
        if len(means):
            self._metrics["target_entropy"] = float(soft_targets.entropies(means.softmax(1)).mean())
        consensus = {
            "label_sums": totals.sums * is_sent[:, None],
            "label_holders": (totals.holders * is_sent).int(),
        }
        if self.params.share_weights:
            consensus.update(base.average_weights(replies, server, weighting=self.params.weighting))
        return consensus

    def round_metrics(self) -> dict[str, float]:
        """Return the mean entropy of the mean scores that are sent, after softmax, in nats.

        And of how many labels nothing is sent because too few clients hold them.
        """
        return dict(self._metrics)

    def _rows(self, sent: Mapping[str, Tensor], *, like: Tensor) -> LabelMeans:
        """Return what a client sent as a row for every label; no row where it sent nothing."""
        rows = like.new_zeros(self.classes, self.classes)
        if not sent:
            return LabelMeans(rows, torch.zeros(self.classes, dtype=torch.bool, device=like.device))
        held = sent["label_counts"].to(like.device) > 0
        rows[held] = sent["label_scores"].to(rows)
        return LabelMeans(rows, held)
