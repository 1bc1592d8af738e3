import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.federated.scenes import QUARTERS, Parties, gather
from workers.distill.config import rules
from workers.distill.methods.federated.feddistill import FedDistill


def sent_rows(parties: Parties, place: int) -> torch.Tensor:
    """Return what a client sent as a row for every label, NaN where it sent none."""
    tensors = parties.replies[place].tensors
    rows = torch.full((QUARTERS, QUARTERS), torch.nan)
    rows[tensors["label_counts"] > 0] = tensors["label_scores"]
    return rows


class TestTeacher:
    def test_is_the_mean_of_the_other_holders(self) -> None:
        parties = gather("feddistill")
        parties.run(1)
        rows = torch.stack([sent_rows(parties, place) for place in range(3)])
        for place, client in enumerate(parties.clients):
            expected = torch.cat([rows[:place], rows[place + 1 :]]).nanmean(0)
            # Of a label's only holder, the others are shown nothing.
            has_teacher = ~expected[:, 0].isnan() & ((~rows[..., 0].isnan()).sum(0) > 1)
            assert torch.equal(client.memory["has_teacher"], has_teacher)
            found = client.memory["teacher"]
            assert torch.allclose(found[has_teacher], expected[has_teacher], atol=1e-6)

    def test_teaches_by_the_divergence_of_its_softmax(self) -> None:
        parties = gather("feddistill", teacher_weight=2.0)
        parties.run(1)
        client = parties.clients[0]
        batch = next(iter(client.batches.epoch(1)))
        features = client.network.observe(parties.shared.preprocess(batch.images))
        terms = parties.method.local_terms(features, batch, client.local_step(2, 1, 2))
        targets = client.memory["teacher"][batch.labels].softmax(1)
        expected = F.kl_div(features.logits.log_softmax(1), targets, reduction="batchmean")
        assert torch.allclose(terms["distil"], 2 * expected, atol=1e-6)

    def test_never_shows_what_a_labels_only_holder_says(self) -> None:
        parties = gather("feddistill", [[0, 1, 1, 2], [0, 1, 3, 3]])
        parties.run(1)
        assert parties.consensus.tensors["label_holders"].tolist() == [2, 2, 0, 0]
        assert not parties.consensus.tensors["label_sums"][2:].any()
        assert parties.method.round_metrics()["withheld_labels"] == 2

    def test_of_a_single_client_is_nobody(self) -> None:
        alone, local = gather("feddistill", [[0, 1, 1, 2]]), gather("local", [[0, 1, 1, 2]])
        for number in (1, 2):
            alone.run(number)
            local.run(number)
        assert not bool(alone.clients[0].memory["has_teacher"].any())
        states = [each.clients[0].network.state_dict() for each in (alone, local)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class TestReleasedCode:
    def test_counts_on_from_one_over_all_rounds(self) -> None:
        parties = gather("feddistill", released_code=True)
        for number in (1, 2):
            parties.run(number)
            counts = parties.replies[0].tensors["label_counts"]
            assert counts.tolist() == [1 + 3 * number, 1 + 2 * number, 1, 1]
        # A label that the client lacks has a row of zeros.
        assert not bool(parties.replies[0].tensors["label_scores"][2:].any())

    def test_withholds_no_row_since_all_count_as_holders(self) -> None:
        parties = gather("feddistill", [[0, 1, 1, 2], [0, 1, 3, 3]], released_code=True)
        parties.run(1)
        assert parties.consensus.tensors["label_holders"].tolist() == [2, 2, 2, 2]
        assert parties.method.round_metrics()["withheld_labels"] == 0

    def test_goes_on_from_the_state_of_a_client(self) -> None:
        parties, resumed = (gather("feddistill", released_code=True) for _ in range(2))
        parties.run(1)
        for client, before in zip(resumed.clients, parties.clients, strict=True):
            client.load_state_dict(copy.deepcopy(before.state_dict()))
        for each in (parties, resumed):
            each.run(2)
        one, other = (each.replies[0].tensors["label_scores"] for each in (parties, resumed))
        assert torch.equal(one, other)

    def test_averages_all_clients_with_their_own(self) -> None:
        parties = gather("feddistill", released_code=True)
        parties.run(1)
        rows = torch.stack([reply.tensors["label_scores"] for reply in parties.replies])
        for client in parties.clients:
            assert torch.allclose(client.memory["teacher"], rows.mean(0), atol=1e-6)
            assert bool(client.memory["has_teacher"].all())

    def test_is_the_same_for_many_clients_at_once(self) -> None:
        apart = gather("feddistill", released_code=True)
        together = gather("feddistill", released_code=True)
        for number in (1, 2):
            apart.run(number)
            together.run(number, at_once=True)
        for one, other in zip(apart.replies, together.replies, strict=True):
            assert torch.allclose(
                one.tensors["label_scores"], other.tensors["label_scores"], atol=1e-6
            )


class TestSharedWeights:
    def test_ask_for_the_students_network(self) -> None:
        networks = {"networks": [{"network": "retort/mlp", "arguments": {}}]}
        for share_weights, code in ((False, []), (True, ["networks_differ"])):
            params = FedDistill.Params.model_validate(
                {"share_weights": share_weights, "federation": networks}
            )
            found = rules.of_method(FedDistill.describe(), params.model_dump())
            assert [fault.code for fault in found] == code

    def test_are_those_of_federated_averaging_where_nobody_teaches(self) -> None:
        parties = gather("feddistill", share_weights=True, teacher_weight=0.0)
        plain = gather("fedavg")
        for number in (1, 2):
            parties.run(number)
            plain.run(number)
        sent, expected = (each.consensus.part("weights") for each in (parties, plain))
        assert all(torch.equal(value, expected[name]) for name, value in sent.items())

    @pytest.mark.parametrize("share_weights", [False, True])
    def test_travel_only_where_that_is_wanted(self, share_weights: bool) -> None:
        parties = gather("feddistill", share_weights=share_weights)
        parties.run(1)
        method = parties.method
        assert parties.replies[0].kinds == tuple(sorted(method.sent_kinds))
        assert parties.consensus.kinds == tuple(sorted(method.received_kinds))
        assert ("weights" in method.sent_kinds) == share_weights
        assert method.delivered == ("server" if share_weights else "client")
