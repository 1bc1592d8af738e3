from workers.distill.methods import catalog
from workers.distill.methods.federated.faug import FAug


class TestFAug:
    def test_augments_whatever_else_its_federation_says(self) -> None:
        method, params = catalog.find({"name": "faug", "federation": {"clients": 3}})
        assert method is FAug
        assert isinstance(params, FAug.Params)
        assert params.federation.clients == 3
        assert params.federation.augmentation.seeds_per_label == 5
