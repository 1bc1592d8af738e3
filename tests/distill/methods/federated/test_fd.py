from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distill.federated import scenes
from workers.distill.data.types import Batch
from workers.distill.methods.federated import base
from workers.distill.methods.federated.fd import FD
from workers.distill.networks.interface import Features

CHOICES: list[tuple[str, dict[str, Any]]] = [("fd", {"gamma": 0.0}), ("local", {})]


def method(**choices: Any) -> FD:
    return FD(FD.Params(**choices), scenes.network(), None)


def batch(labels: list[int]) -> Batch:
    wanted = torch.tensor(labels)
    return Batch(torch.zeros(len(labels), 1, 8, 8), wanted, wanted)


def outputs(scores: list[list[float]]) -> Features:
    return Features.from_logits(torch.tensor(scores, dtype=torch.float64))


SCORES = {
    "a": ([[2.0, 0.5, -1.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0]], [0, 0, 1]),
    "b": ([[0.5, 1.5, 0.0], [-1.0, 0.0, 2.0]], [1, 2]),
    "c": ([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.4, 1.4]], [0, 2, 2]),
}
"""Section 9 of the field guide: scores and labels of three clients."""


class Sent:
    """A reply as the server sees it."""

    def __init__(self, sender: str, tensors: dict[str, Tensor]) -> None:
        self.sender, self.tensors, self.samples = sender, tensors, 1

    def part(self, kind: str) -> dict[str, Tensor]:
        raise AssertionError(f"fd sends no {kind}")


def replies(fd: FD) -> dict[str, Sent]:
    found = {}
    for name, (scores, labels) in SCORES.items():
        record = fd.start_record(torch.zeros(1, dtype=torch.float64))
        record = fd.record(record, outputs(scores), batch(labels))
        counts = torch.bincount(torch.tensor(labels), minlength=3)
        result = base.LocalResult({}, record, None, counts, {}, 1)
        found[name] = Sent(name, fd.reply(result))
    return found


def teachers(fd: FD) -> dict[str, dict[str, Tensor]]:
    sent = replies(fd)
    consensus = fd.aggregate(list(sent.values()), scenes.federation("fd").server)
    return {name: fd.receive({}, consensus, one.tensors) for name, one in sent.items()}


class TestExchange:
    def test_sends_the_mean_output_of_each_label_that_it_holds(self) -> None:
        sent = replies(method())
        assert sent["a"].tensors["label_counts"].tolist() == [2, 1, 0]
        assert sent["a"].tensors["label_probabilities"][0].tolist() == pytest.approx(
            [0.603958, 0.298805, 0.097237], abs=1e-6
        )
        assert sent["c"].tensors["label_probabilities"][1].tolist() == pytest.approx(
            [0.196199, 0.216175, 0.587626], abs=1e-6
        )

    def test_the_teacher_is_the_mean_of_the_other_holders(self) -> None:
        found = teachers(method())
        # Only c holds label 0 besides a; b and c hold label 2; nobody but b holds label 1 for a.
        assert found["a"]["teacher"].tolist()[0] == pytest.approx(
            [0.909443, 0.045279, 0.045279], abs=1e-6
        )
        assert found["a"]["teacher"].tolist()[2] == pytest.approx(
            [0.119104, 0.165185, 0.715710], abs=1e-6
        )
        assert found["b"]["teacher"].tolist()[0] == pytest.approx(
            [0.756700, 0.172042, 0.071258], abs=1e-6
        )
        assert found["c"]["teacher"].tolist()[1] == pytest.approx(
            [0.160627, 0.646886, 0.192486], abs=1e-6
        )

    def test_counts_clients_by_their_images_where_that_is_wanted(self) -> None:
        found = teachers(method(weighting="samples"))["b"]["teacher"][0]
        rows = [replies(method())[name].tensors["label_probabilities"][0] for name in "ac"]
        assert torch.allclose(found, (2 * rows[0] + rows[1]) / 3)

    def test_a_label_without_another_holder_is_not_taught(self) -> None:
        fd = method()
        sent = replies(fd)
        consensus = fd.aggregate([sent["a"], sent["c"]], scenes.federation("fd").server)
        # Nobody but a holds label 1 of the two.
        assert fd.receive({}, consensus, sent["a"].tensors)["has_teacher"].tolist() == [
            True,
            False,
            False,
        ]

    def test_no_row_of_a_label_shows_what_too_few_clients_say(self) -> None:
        fd = method()
        sent = replies(fd)
        consensus = fd.aggregate([sent["a"], sent["c"]], scenes.federation("fd").server)
        # Only a holds label 1, and only c label 2: their rows would be the sums.
        assert consensus["label_holders"].tolist() == [2, 0, 0]
        assert not consensus["label_sums"][1:].any()
        assert fd.round_metrics()["withheld_labels"] == 2

    def test_min_clients_is_the_floor_of_each_label(self) -> None:
        fd = method(federation={"min_clients": 3})
        consensus = fd.aggregate(list(replies(fd).values()), scenes.federation("fd").server)
        # Each label is held by two of the three.
        assert not any(one.any() for one in consensus.values())
        assert fd.round_metrics() == {"withheld_labels": 3}

    def test_who_sent_nothing_has_nothing_to_subtract(self) -> None:
        fd = method()
        sent = replies(fd)
        consensus = fd.aggregate(list(sent.values()), scenes.federation("fd").server)
        rows = fd.receive({}, consensus, {})["teacher"]
        assert torch.allclose(rows.sum(1), torch.ones(3, dtype=rows.dtype))


class TestLoss:
    def terms(self, fd: FD, client: str, number: int = 2) -> dict[str, float]:
        scores, labels = SCORES[client]
        local = base.LocalStep(teachers(fd)[client], {}, {}, {}, number)
        found = fd.local_terms(outputs(scores), batch(labels), local)
        return {name: float(value) for name, value in found.items()}

    def test_is_cross_entropy_with_labels_and_teacher(self) -> None:
        assert self.terms(method(gamma=0.5), "a") == pytest.approx(
            {"task": 0.503637, "distil": 0.5 * 0.787545}, abs=1e-6
        )
        assert self.terms(method(), "b") == pytest.approx(
            {"task": 0.317107, "distil": 1.056143}, abs=1e-6
        )

    def test_shares_fall_from_round_to_round(self) -> None:
        fd = method(schedule="geometric")
        assert self.terms(fd, "a", 1) == pytest.approx(
            {"task": 0.5 * 0.503637, "distil": 0.5 * 0.787545}, abs=1e-6
        )
        assert self.terms(fd, "a", 11)["distil"] == pytest.approx(
            0.5 * 0.98**10 * 0.787545, abs=1e-6
        )
        fd = method(schedule="linear")
        fd.rounds = 10
        assert self.terms(fd, "a", 6)["distil"] == pytest.approx(0.25 * 0.787545, abs=1e-6)

    def test_the_first_round_has_labels_alone(self) -> None:
        scores, labels = SCORES["a"]
        local = base.LocalStep({}, {}, {}, {}, 1)
        found = method(schedule="linear").local_terms(outputs(scores), batch(labels), local)
        assert float(found["task"]) == pytest.approx(0.503637, abs=1e-6)
        assert float(found["distil"]) == 0


class TestRounds:
    def test_without_weight_it_is_local_training(self) -> None:
        fd, local = (
            scenes.client_weights(scenes.run(scenes.federation(name, **choices), 2))
            for name, choices in CHOICES
        )
        assert all(torch.equal(fd[name], weights) for name, weights in local.items())

    def test_one_client_has_no_teacher(self) -> None:
        fd, local = (
            scenes.client_weights(scenes.run(scenes.federation(name, sizes=(9,)), 3))
            for name in ("fd", "local")
        )
        assert torch.equal(fd["client-000"], local["client-000"])
