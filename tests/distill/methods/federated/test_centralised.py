from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod


class TestCentralised:
    def test_pools_what_the_clients_hold(self) -> None:
        kind, _ = catalog.find({"name": "centralised"})
        assert issubclass(kind, FederatedMethod)
        assert kind.pools
        assert not kind.exchanges
        # What it trains on is seen in run/test_federated.py.
