import copy
import io
from typing import Any

import pytest
import torch

from tests.distill.federated import scenes
from workers.distill import errors
from workers.distill.federated import protocol
from workers.distill.federated.rounds import Rounds, ensemble


def restored(state: dict[str, Any], **choices: Any) -> Rounds:
    """Return new rounds that continue from a state which has been on a disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    rounds = scenes.federation(**choices)
    rounds.load_state_dict(torch.load(buffer, weights_only=True))
    return rounds


class TestState:
    @pytest.mark.slow
    @pytest.mark.parametrize("engine", ["loop", "vmap"])
    @pytest.mark.parametrize("name", ["fedavg", "dsfl", "fd"])
    def test_continues_from_any_unit_of_a_round(self, name: str, engine: str) -> None:
        choices: dict[str, Any] = {
            "name": name,
            "federation": {"engine": engine, "participation": 0.75, "stragglers": 0.2},
        }
        whole = scenes.federation(**choices)
        states = []
        ended = 0
        while ended < 2:
            # The student is a part of the training's state, not of the source's.
            student = copy.deepcopy(whole.server.network.state_dict())
            states.append((ended, copy.deepcopy(whole.state_dict()), student))
            ended += whole.work()
        expected = scenes.client_weights(whole)
        for done, state, student in states[1::5]:
            resumed = restored(state, **choices)
            resumed.server.network.load_state_dict(student)
            scenes.run(resumed, 2 - done)
            found = scenes.client_weights(resumed)
            assert all(torch.equal(found[one], weights) for one, weights in expected.items())
            assert torch.equal(
                scenes.weights(resumed.server.network), scenes.weights(whole.server.network)
            )
            assert resumed.records == whole.records
            assert resumed.finish_epoch(2, last=True) == whole.finish_epoch(2, last=True)


class TestTraffic:
    def test_counts_the_messages_as_they_are_encoded(self) -> None:
        rounds = scenes.run(scenes.federation("dsfl"), 2)
        record = rounds.record("client-001")
        # A row of three probabilities in float32 for each of seven open images, each way.
        assert record.up.payload_bytes == record.down.payload_bytes == 2 * 7 * 3 * 4
        assert record.up.messages == 2
        assert record.up.encoded_bytes > record.up.payload_bytes
        assert rounds.finish_epoch(2, last=True)["federation/bytes_up"] == float(
            sum(one.up.encoded_bytes for one in rounds.records.values())
        )

    def test_weights_are_received_once_before_the_first_round(self) -> None:
        rounds = scenes.run(scenes.federation("fedavg"), 2)
        record = rounds.record("client-000")
        size = sum(value.nbytes for value in rounds.server.network.state_dict().values())
        assert (record.up.payload_bytes, record.down.payload_bytes) == (2 * size, 3 * size)

    def test_nothing_travels_in_local_training(self) -> None:
        rounds = scenes.run(scenes.federation("local"), 1)
        assert rounds.record("client-000").up.messages == 0
        assert rounds.record("client-000").down.messages == 0

    @pytest.mark.parametrize("name", ["fd", "dsfl"])
    def test_no_message_holds_an_image_a_label_list_or_a_weight(self, name: str) -> None:
        sent: list[protocol.Message] = []
        rounds = scenes.federation(name)
        inner = rounds.clients.train

        def train(number: int, waiting: Any) -> Any:
            replies = inner(number, waiting)
            sent.extend(protocol.decode(protocol.encode(reply)) for reply in replies)
            return replies

        rounds.clients.train = train  # type: ignore[method-assign]  # a spy on real work
        scenes.run(rounds, 2)
        allowed = {"fd": {"label_probabilities", "label_counts"}, "dsfl": {"probabilities"}}
        assert {kind for message in sent for kind in message.kinds} == allowed[name]
        for message in sent:
            rows = {"probabilities": 7, "label_probabilities": 2, "label_counts": 3}
            for kind, tensor in message.tensors.items():
                assert len(tensor) == rows[kind]  # never one for each private image
                if kind != "label_counts":
                    assert torch.allclose(tensor.sum(1), torch.ones(len(tensor)))


class TestParticipation:
    def test_the_drawn_ones_train_and_the_others_keep_their_models(self) -> None:
        rounds = scenes.federation("local", federation={"participation": 0.5})
        before = scenes.client_weights(rounds)
        scenes.run(rounds, 1)
        after = scenes.client_weights(rounds)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {name for name, record in rounds.records.items() if record.replies}
        assert len(moved) == 2

    def test_who_vanishes_is_counted_and_moves_nobody(self) -> None:
        rounds = scenes.federation(federation={"dropout": 0.5})
        scenes.run(rounds, 3)
        dropped = sum(record.dropped for record in rounds.records.values())
        replies = sum(record.replies for record in rounds.records.values())
        assert dropped > 0
        assert dropped + replies == 12

    def test_late_replies_are_left_out_and_counted(self) -> None:
        rounds = scenes.federation(federation={"stragglers": 0.5})
        scenes.run(rounds, 3)
        late = sum(record.late for record in rounds.records.values())
        assert 0 < late < sum(record.replies for record in rounds.records.values())
        assert rounds.finish_epoch(3, last=True)["federation/replies"] < 4

    def test_who_comes_back_gets_the_newest_consensus_first(self) -> None:
        rounds = scenes.federation(federation={"dropout": 0.6})
        scenes.run(rounds, 3)
        back = [name for name, one in rounds.records.items() if one.dropped and one.replies]
        assert back
        for name in back:
            # Received: the start, and what was new when it trained, each once.
            assert rounds.record(name).down.messages <= 4

    def test_too_few_replies_change_nothing_and_are_told(self) -> None:
        warnings: list[tuple[str, str]] = []
        rounds = scenes.federation(
            federation={"stragglers": 0.9, "min_clients": 4}, warnings=warnings
        )
        before = scenes.weights(rounds.server.network)
        scenes.run(rounds, 2)
        assert torch.equal(scenes.weights(rounds.server.network), before)
        assert rounds.skipped_rounds == 2
        assert [code for code, _ in warnings] == ["round_skipped"] * 2
        assert "needs 4 (method.federation.min_clients)" in warnings[0][1]

    def test_one_client_is_enough_where_there_is_one(self) -> None:
        rounds = scenes.run(scenes.federation("fd", sizes=(9,)), 2)
        assert rounds.skipped_rounds == 0


class TestScores:
    def test_the_best_client_is_delivered(self) -> None:
        rounds = scenes.run(scenes.federation("local", training={"epochs": 2}), 2)
        best = rounds.best_clients[2]
        assert rounds.accuracies[2][best] == max(rounds.accuracies[2].values())
        assert torch.equal(scenes.weights(rounds._student), scenes.client_weights(rounds)[best])

    def test_metrics_lie_in_order(self) -> None:
        found = scenes.run(scenes.federation("dsfl"), 1).finish_epoch(1, last=False)
        low, mean, high = (
            found[f"federation/client_accuracy_{one}"] for one in ("min", "mean", "max")
        )
        assert 0 <= low <= mean <= high <= 1
        assert found["federation/labels_without_holder"] == 0
        assert found["federation/mean_entropy"] > 0

    def test_rounds_between_two_evaluations_are_not_scored(self) -> None:
        rounds = scenes.federation("local", training={"evaluate_every_epochs": 2})
        scenes.run(rounds, 1)
        assert not rounds.accuracies
        scenes.run(rounds, 1)
        assert list(rounds.accuracies) == [2]

    def test_labels_that_nobody_has_are_counted(self) -> None:
        rounds = scenes.federation("local", sizes=(9,))
        # The only client lacks the class of its number.
        assert (
            scenes.run(rounds, 1).finish_epoch(1, last=False)["federation/labels_without_holder"]
            == 1
        )

    def test_a_flattening_aggregation_is_told_once(self) -> None:
        warnings: list[tuple[str, str]] = []
        rounds = scenes.federation("dsfl", temperature=10.0, warnings=warnings)
        scenes.run(rounds, 2)
        assert [code for code, _ in warnings] == ["entropy_rose"]

    def test_labels_of_which_nothing_is_sent_are_told_once(self) -> None:
        warnings: list[tuple[str, str]] = []
        # Four clients, of which each lacks the class of its number modulo 3.
        rounds = scenes.federation("fd", federation={"min_clients": 3}, warnings=warnings)
        scenes.run(rounds, 2)
        ((code, message),) = warnings
        assert code == "labels_withheld"
        assert "of 1 labels, which fewer than 3 clients held in round 1" in message


class TestFailures:
    def test_a_client_that_diverges_is_named(self) -> None:
        rounds = scenes.federation(
            training={"optimizer": {"name": "sgd", "learning_rate": 100.0, "momentum": 0.9}},
            federation={"local_epochs": 20},
        )
        with pytest.raises(
            errors.Diverged, match=r"the loss of client-00\d was not finite in round"
        ):
            scenes.run(rounds, 3)


class TestEnsemble:
    def test_takes_the_mean_of_scores_or_of_probabilities(self) -> None:
        answers = {"a": torch.tensor([[2.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]])}
        assert ensemble(answers, "scores").tolist() == [[1.0, 0.5]]
        rows = torch.stack(list(answers.values())).softmax(2)
        assert torch.equal(ensemble(answers, "probabilities"), rows.mean(0))
