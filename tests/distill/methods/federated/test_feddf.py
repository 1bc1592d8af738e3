import copy

import pytest
import torch

from tests.distill.federated.scenes import Parties, gather
from workers.distill.functional.federated import soft_targets
from workers.distill.networks.interface import Features


def divergence(parties: Parties, weights: dict[str, torch.Tensor]) -> float:
    """Return how far a network with such weights is from the ensemble on the open images."""
    server = parties.server
    targets = torch.stack([server.open_logits(reply.part("weights")) for reply in parties.replies])
    apart = soft_targets.kl_divergences(server.open_logits(weights), targets.mean(0).softmax(1))
    return float(apart.mean())


class TestFusion:
    def test_starts_from_the_mean_and_comes_nearer_to_the_ensemble(self) -> None:
        parties, plain = gather("feddf", fusion_epochs=30), gather("fedavg")
        parties.run(1)
        plain.run(1)
        mean = plain.consensus.part("weights")
        fused = parties.consensus.part("weights")
        assert divergence(parties, fused) < 0.5 * divergence(parties, mean)
        state = parties.server.network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in fused.items())

    def test_takes_steps_that_fall_to_zero_along_a_cosine(self) -> None:
        method = gather("feddf", fusion_rate=0.1).method
        given = torch.nn.Parameter(torch.zeros(1))
        optimizer, rates = method._optimizer([given], 10), []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            given.grad = torch.ones(1)
            optimizer.step()
        assert rates[0] == 0.1
        assert rates[5] == pytest.approx(0.05)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)

    def test_is_zero_where_the_student_says_what_the_ensemble_says(self) -> None:
        method = gather("feddf", temperature=2.0).method
        scores = torch.randn(3, 4).double()
        targets = (scores / 2).softmax(1)
        same = method.adapt_terms(Features(scores, scores), targets, None)["fusion"]
        assert float(same) == pytest.approx(0, abs=1e-12)
        assert torch.autograd.gradcheck(
            lambda given: method.adapt_terms(Features(given, given), targets, None)["fusion"],
            torch.randn(3, 4).double().requires_grad_(),
        )

    def test_leaves_clients_alone(self) -> None:
        parties = gather("feddf")
        parties.run(1)
        before = copy.deepcopy(parties.clients[0].network.state_dict())
        parties.clients[0].receive(parties.consensus)
        after = parties.clients[0].network.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
