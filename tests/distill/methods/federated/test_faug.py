from workers.distill.methods import catalog


class TestFAug:
    def test_augments_unless_it_is_told_not_to(self) -> None:
        method, params = catalog.find({"name": "faug", "federation": {"clients": 3}})
        assert params.federation.clients == 3
        assert params.federation.augmentation is not None
        assert not method.exchanges
