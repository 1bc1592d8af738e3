import pytest
import torch

from tests.distill.federated.scenes import QUARTERS, Parties, gather, quarters, quarters_network
from workers.distill import errors


def rows_of(parties: Parties, place: int) -> torch.Tensor:
    """Return the prototypes of a client, a row for every label, NaN where it has none."""
    tensors = parties.replies[place].tensors
    rows = torch.full((QUARTERS, 6), torch.nan)
    rows[tensors["label_counts"] > 0] = tensors["prototypes"]
    return rows


class TestPrototypes:
    @pytest.mark.parametrize("weighting", ["samples", "uniform"])
    def test_are_means_over_holders(self, weighting: str) -> None:
        parties = gather("fedproto", weighting=weighting)
        parties.run(1)
        counts = torch.stack([reply.tensors["label_counts"] for reply in parties.replies]).float()
        weights = counts if weighting == "samples" else (counts > 0).float()
        rows = torch.stack([rows_of(parties, place).nan_to_num() for place in range(3)])
        expected = (weights[..., None] * rows).sum(0) / weights.sum(0)[:, None]
        for client in parties.clients:
            assert bool(client.memory["held"].all())
            assert torch.allclose(client.memory["rows"], expected, atol=1e-6)

    def test_of_a_label_without_holder_do_not_exist(self) -> None:
        parties = gather("fedproto", [[0, 1, 1], [1, 3]])
        parties.run(1)
        assert parties.consensus.tensors["label_counts"].tolist() == [1, 3, 0, 1]
        assert parties.clients[0].memory["held"].tolist() == [True, True, False, True]
        images = quarters(torch.arange(40) % QUARTERS, seed=5)
        assert 2 not in parties.clients[0].predict(images).argmax(1).tolist()


class TestLocalTerms:
    @pytest.mark.parametrize("distance", ["classes", "samples"])
    def test_equal_their_formula(self, distance: str) -> None:
        parties = gather("fedproto", distance=distance, prototype_weight=0.5)
        parties.run(1)
        client = parties.clients[2]
        batch = client.batches.whole_epoch(1)
        features = client.network.observe(parties.shared.preprocess(batch.images))
        terms = parties.method.local_terms(features, batch, client.local_step(2, 1, 2))
        rows = client.memory["rows"]
        if distance == "samples":
            expected = (features.pooled - rows[batch.labels]).square().mean()
        else:
            apart = [
                (features.pooled[batch.labels == label].mean(0) - rows[label]).square().sum()
                for label in batch.labels.unique()
            ]
            expected = torch.stack(apart).sum()
        assert torch.allclose(terms["prototypes"], 0.5 * expected, rtol=1e-5)

    @pytest.mark.parametrize("distance", ["classes", "samples"])
    def test_are_the_same_for_many_clients_at_once(self, distance: str) -> None:
        apart, together = (gather("fedproto", distance=distance) for _ in range(2))
        for number in (1, 2):
            apart.run(number)
            together.run(number, at_once=True)
        for one, other in zip(apart.replies, together.replies, strict=True):
            assert torch.allclose(one.tensors["prototypes"], other.tensors["prototypes"], atol=1e-6)


class TestAnswers:
    def test_are_the_nearest_prototypes_also_for_labels_that_a_client_lacks(self) -> None:
        parties = gather("fedproto", training={"epochs": 20, "batch_size": 4})
        for number in range(1, 13):
            parties.run(number)
        client = parties.clients[1]
        images = quarters(torch.arange(40) % QUARTERS, seed=5)
        with torch.no_grad():
            embedded = client.network.observe(parties.shared.preprocess(images)).pooled
        nearest = torch.cdist(embedded, client.memory["rows"]).argmin(1)
        assert torch.equal(client.predict(images).argmax(1), nearest)
        # The client has no image of label 0.
        assert 0 in nearest[::QUARTERS].tolist()
        trained = client.network.state_dict()["fc.weight"]
        assert not torch.equal(client.model.state_dict()["fc.weight"], trained)

    def test_of_the_classifier_leave_the_network_as_it_is(self) -> None:
        parties = gather("fedproto", answer="classifier")
        parties.run(1)
        assert parties.clients[0].model is parties.clients[0].network


class TestNetworks:
    def test_may_differ_but_not_in_their_embeddings(self) -> None:
        parties = gather("fedproto", widths=[(8, 6), (6,), (9, 7, 6)])
        parties.run(1)
        with pytest.raises(errors.IncompatibleNetworks, match="have 5 values and the student's 6"):
            parties.method.check_client(quarters_network(widths=(8, 5)))
