import pytest
import torch
from torch import Tensor

from tests.distill.federated import scenes
from workers.distill.federated.clients import LocalClients
from workers.distill.federated.rounds import Rounds


def means(rounds: Rounds, shares: list[float]) -> Tensor:
    """Return the weighted mean of the clients' weights."""
    weights = list(scenes.client_weights(rounds).values())
    return sum(share * one for share, one in zip(shares, weights, strict=True))  # type: ignore[return-value]  # a sum of tensors


class TestFedAvg:
    @pytest.mark.parametrize("weighting", ["samples", "uniform"])
    def test_the_server_has_the_mean_of_the_clients(self, weighting: str) -> None:
        rounds = scenes.run(scenes.federation("fedavg", weighting=weighting), 1)
        whole = sum(scenes.SIZES)
        shares = [size / whole if weighting == "samples" else 1 / 4 for size in scenes.SIZES]
        found = scenes.weights(rounds.server.network)
        assert torch.allclose(found, means(rounds, shares), atol=1e-6)

    def test_clients_start_each_round_from_the_servers_weights(self) -> None:
        rounds = scenes.run(scenes.federation("fedavg"), 1)
        server = scenes.weights(rounds.server.network)
        assert isinstance(rounds.clients, LocalClients)
        client = rounds.clients.clients["client-002"]
        assert not torch.equal(scenes.weights(client.network), server)
        client.start_training()
        assert torch.equal(scenes.weights(client.network), server)

    def test_statistics_of_batch_norms_are_averaged_too(self) -> None:
        rounds = scenes.federation(
            "fedavg", reference="retort/convnet", arguments={"widths": [4, 4]}
        )
        scenes.run(rounds, 1)
        state = rounds.server.network.state_dict()
        assert isinstance(rounds.clients, LocalClients)
        one = rounds.clients.clients["client-000"].network.state_dict()
        assert not torch.equal(state["stages.0.1.running_mean"], torch.zeros(4))
        assert int(state["stages.0.1.num_batches_tracked"]) == int(
            one["stages.0.1.num_batches_tracked"]
        )

    def test_who_did_not_answer_moves_no_weight(self) -> None:
        rounds = scenes.federation("fedavg", federation={"dropout": 0.5})
        scenes.run(rounds, 1)
        replied = [rounds.record(name).replies for name in rounds.clients.names()]
        sizes = [size * count for size, count in zip(scenes.SIZES, replied, strict=True)]
        found = scenes.weights(rounds.server.network)
        assert 0 < sum(replied) < 4
        shares = [size / sum(sizes) for size in sizes]
        assert torch.allclose(found, means(rounds, shares), atol=1e-6)
