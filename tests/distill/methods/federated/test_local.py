import torch

from tests.distill.federated import scenes
from workers.distill.federated.clients import LocalClients


class TestLocal:
    def test_a_client_learns_as_if_nobody_else_was_there(self) -> None:
        together = scenes.run(scenes.federation("local"), 2)
        alone = scenes.federation("local")
        assert isinstance(alone.clients, LocalClients)
        for number in (1, 2):
            alone.clients.train(number, ["client-002"])
        found = scenes.client_weights(alone)
        assert torch.equal(found["client-002"], scenes.client_weights(together)["client-002"])
