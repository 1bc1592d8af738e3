import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.federated.scenes import QUARTERS, Parties, gather
from workers.distill import errors
from workers.distill.functional.federated import latent_generation
from workers.distill.networks.conditional import LatentGenerator

BOTH: dict[str, Any] = {"latent_weight": 2.0, "teacher_weight": 3.0, "decay": 0.5}
"""Both terms of a client, which lose half of their weight in each round."""


def weights_of(parties: Parties) -> list[torch.Tensor]:
    return [value for client in parties.clients for value in client.network.state_dict().values()]


def received_generator(parties: Parties) -> LatentGenerator:
    """Return the generator that clients have, in evaluation mode."""
    generator = LatentGenerator(classes=QUARTERS, noise_size=32, hidden_size=256, latent_size=6)
    generator.load_state_dict(parties.consensus.part("generator"))
    return generator.eval()


class TestLocalTerms:
    def test_are_plain_cross_entropy_before_the_generator_is_trained(self) -> None:
        parties, plain = gather("fedgen", **BOTH), gather("fedavg", weighting="uniform")
        parties.run(1)
        plain.run(1)
        for own, other in zip(weights_of(parties), weights_of(plain), strict=True):
            assert torch.equal(own, other)
        sent = parties.consensus.part("weights")
        for name, value in plain.consensus.part("weights").items():
            assert torch.equal(sent[name], value)

    def test_without_weights_are_federated_averaging_throughout(self) -> None:
        parties = gather("fedgen", latent_weight=0.0)
        plain = gather("fedavg", weighting="uniform")
        for number in (1, 2):
            parties.run(number)
            plain.run(number)
        for own, other in zip(weights_of(parties), weights_of(plain), strict=True):
            assert torch.equal(own, other)

    @pytest.mark.parametrize("noise", ["normal", "uniform"])
    def test_equal_the_equations(self, noise: str) -> None:
        parties = gather("fedgen", noise=noise, **BOTH)
        parties.run(1)
        client = parties.clients[0]
        client.start_training()
        batch = next(iter(client.batches.epoch(1)))
        local = client.local_step(2, 1, 2)
        features = client.network.observe(parties.shared.preprocess(batch.images))
        terms = parties.method.local_terms(features, batch, local)
        # Drawn as clients do: labels at their places in the prior, noise beside them.
        rows = slice(0, len(batch.labels))
        counts = parties.consensus.tensors["label_counts"].double()
        reached = (counts.cumsum(0) / counts.sum()).tolist()
        labels = torch.tensor(
            [sum(at >= end for end in reached) for at in local.draws["positions"][rows].tolist()]
        )
        head, generator = client.network.pooled_classifier(), received_generator(parties)
        assert head is not None
        latents = generator(local.draws["noise"][rows], labels)
        expected = 2.0 * 0.5 * F.cross_entropy(head(latents), labels)
        assert torch.allclose(terms["latent"], expected, rtol=1e-5)
        latents = generator(local.draws["teacher_noise"][rows], batch.labels)
        divergence = F.kl_div(
            features.logits.log_softmax(1), head(latents).softmax(1), reduction="batchmean"
        )
        assert torch.allclose(terms["latent_teacher"], 3.0 * 0.5 * divergence, rtol=1e-4)
        assert bool((local.draws["noise"].min() >= 0) == (noise == "uniform"))

    def test_pull_the_classifier_through_latents_and_leave_the_generator(self) -> None:
        parties = gather("fedgen", **BOTH)
        parties.run(1)
        client = parties.clients[0]
        batch = next(iter(client.batches.epoch(1)))
        local = client.local_step(2, 1, 2)
        features = client.network.observe(parties.shared.preprocess(batch.images))
        terms = parties.method.local_terms(features, batch, local)
        (gradient,) = torch.autograd.grad(terms["latent"], [local.weights["fc.weight"]])
        assert bool(gradient.any())
        assert not any(value.requires_grad for value in local.received.values())

    def test_are_the_same_for_many_clients_at_once(self) -> None:
        apart, together = gather("fedgen", **BOTH), gather("fedgen", **BOTH)
        for number in (1, 2):
            apart.run(number)
            together.run(number, at_once=True)
        for own, other in zip(weights_of(apart), weights_of(together), strict=True):
            assert torch.allclose(own, other, atol=1e-6)


class TestAggregate:
    @pytest.mark.parametrize("objective", ["mean", "weighted"])
    def test_trains_the_generator_by_the_published_loss(self, objective: str) -> None:
        parties = gather(
            "fedgen", generator_loss=objective, generator_steps=1, diversity_weight=0.0
        )
        method = parties.method
        before = {name: value.clone() for name, value in method.generator.state_dict().items()}
        parties.run(1)
        counts = torch.stack([reply.tensors["label_counts"].double() for reply in parties.replies])
        draw = parties.server.generator
        noise, positions = torch.randn(32, 32, generator=draw), torch.rand(32, generator=draw)
        labels = latent_generation.labels_at(counts.sum(0).float(), positions)
        generator = LatentGenerator(classes=QUARTERS, noise_size=32, hidden_size=256, latent_size=6)
        generator.load_state_dict(before)
        latents = generator.train()(noise, labels)
        heads = [reply.part("weights") for reply in parties.replies]
        scores = [latents @ head["fc.weight"].T + head["fc.bias"] for head in heads]
        if objective == "mean":
            expected = F.cross_entropy(torch.stack(scores).mean(0), labels)
        else:
            losses = [F.cross_entropy(each, labels, reduction="none") for each in scores]
            shares = (counts / counts.sum(0))[:, labels].float()
            expected = (torch.stack(losses) * shares).mean(1).sum()
        assert method.round_metrics()["generator_loss"] == pytest.approx(
            float(expected.detach()), rel=1e-5
        )

    def test_teaches_the_generator_what_classifiers_know(self) -> None:
        parties = gather("fedgen", generator_steps=1, generator_rate=1e-2)
        parties.run(1)
        before = parties.method.round_metrics()["generator_loss"]
        parties.method.params = parties.method.params.model_copy(update={"generator_steps": 100})
        parties.run(2)
        assert parties.method.round_metrics()["generator_loss"] < before - 0.2
        latents = received_generator(parties)(torch.randn(40, 32), torch.arange(40) % QUARTERS)
        head = parties.server.network.pooled_classifier()
        assert head is not None
        right = head(latents).argmax(1) == torch.arange(40) % QUARTERS
        assert float(right.float().mean()) > 0.9

    def test_asks_for_no_label_that_no_client_had(self) -> None:
        for labels in ("prior", "uniform"):
            parties = gather("fedgen", [[0, 0, 1], [1, 3, 3]], labels=labels)
            parties.run(1)
            counts = parties.consensus.tensors["label_counts"].tolist()
            assert counts == ([2, 2, 0, 2] if labels == "prior" else [1, 1, 0, 1])

    def test_remembers_labels_of_earlier_rounds_where_they_are_drawn_evenly(self) -> None:
        parties = gather("fedgen", [[0, 0, 1], [1, 3, 3]], labels="uniform")
        parties.run(1)
        later = parties.method.aggregate(
            [reply for reply in parties.replies if reply.sender == "client-000"], parties.server
        )
        assert later["label_counts"].tolist() == [1, 1, 0, 1]

    def test_caps_what_a_client_says_of_itself(self) -> None:
        parties = gather("fedgen", [[0, 0, 1], [1, 3, 3]])
        parties.run(1)
        parties.replies[0].tensors["label_counts"] = torch.tensor([2000, 1000, 0, 0]).int()
        counts = parties.method.aggregate(parties.replies, parties.server)["label_counts"]
        assert counts.tolist() == [2, 2, 0, 2]

    def test_goes_on_from_its_state(self) -> None:
        parties, resumed = gather("fedgen"), gather("fedgen")
        for each in (parties, resumed):
            each.run(1)
        buffer = io.BytesIO()
        torch.save(resumed.method.state_dict(), buffer)
        buffer.seek(0)
        other = gather("fedgen").method
        other.load_state_dict(torch.load(buffer, weights_only=True))
        first = parties.method.aggregate(parties.replies, parties.server)
        second = other.aggregate(resumed.replies, resumed.server)
        for name, value in first.items():
            assert torch.equal(value, second[name])

    def test_says_where_the_generator_diverges(self) -> None:
        parties = gather("fedgen")
        parties.run(1)
        parties.replies[0].tensors["weights/fc.weight"] = torch.full((QUARTERS, 6), math.inf)
        with pytest.raises(errors.Diverged, match=r"lower method\.generator_rate"):
            parties.method.aggregate(parties.replies, parties.server)


class TestSharingOfTheClassifier:
    def test_sends_nothing_else_and_leaves_the_rest_to_clients(self) -> None:
        parties = gather("fedgen", sharing="classifier", **BOTH)
        assert parties.method.delivered == "client"
        for number in (1, 2):
            parties.run(number)
        assert set(parties.replies[0].part("weights")) == {"fc.weight", "fc.bias"}
        assert set(parties.consensus.part("weights")) == {"fc.weight", "fc.bias"}
        parties.clients[0].start_training()
        parties.clients[1].start_training()
        one, other = (client.network.state_dict() for client in parties.clients[:2])
        assert torch.equal(one["fc.weight"], other["fc.weight"])
        assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


class TestFacts:
    def test_tell_the_size_of_the_generator(self) -> None:
        facts = gather("fedgen").method.facts()
        # Noise and class to 256, batch norm, to the six values of the embedding.
        assert facts["generator_parameters"] == (32 + QUARTERS + 1) * 256 + 2 * 256 + 257 * 6

    def test_refuse_a_count_that_changes_nothing(self) -> None:
        with pytest.raises(errors.BadRecipe, match="least_count 1 has no effect"):
            gather("fedgen", least_count=1)
