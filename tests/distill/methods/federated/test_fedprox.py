from typing import Any

import torch

from tests.distill.federated import scenes
from workers.distill.federated.clients import LocalClients

CHOICES: list[tuple[str, dict[str, Any]]] = [("fedprox", {"mu": 0.0}), ("fedavg", {})]
PLAIN_SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0, "weight_decay": 0}}


class TestFedProx:
    def test_without_a_pull_it_is_fedavg(self) -> None:
        prox, avg = (scenes.run(scenes.federation(name, **choices), 2) for name, choices in CHOICES)
        assert torch.equal(scenes.weights(prox.server.network), scenes.weights(avg.server.network))

    def test_the_pull_keeps_clients_near(self) -> None:
        distances = []
        for mu in (0.0, 5.0):
            rounds = scenes.federation("fedprox", mu=mu, training=PLAIN_SGD)
            start = scenes.weights(rounds.server.network)
            scenes.run(rounds, 1)
            moved = scenes.client_weights(rounds).values()
            distances.append(sum(float((one - start).norm()) for one in moved))
        assert distances[1] < 0.8 * distances[0]

    def test_a_step_adds_the_distance_times_mu_to_the_gradient(self) -> None:
        rounds = scenes.federation("fedprox", mu=0.5, training=PLAIN_SGD)
        scenes.run(rounds, 1)
        assert isinstance(rounds.clients, LocalClients)
        client = rounds.clients.clients["client-000"]
        batch = next(client.batches.epoch(1))
        client.network.zero_grad()
        features = client.step.forward_student(batch)
        terms = rounds.method.local_terms(features, batch, client.local_step(2, 1, 4))
        (gradient,) = torch.autograd.grad(
            terms["proximal"], [client.network.get_parameter("fc.bias")]
        )
        anchor = client.received["weights/fc.bias"]
        assert torch.allclose(gradient, 0.5 * (client.network.get_parameter("fc.bias") - anchor))
