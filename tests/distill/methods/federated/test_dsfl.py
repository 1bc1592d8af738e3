from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distill.federated import scenes
from workers.distill.functional.federated import poisoning, soft_targets
from workers.distill.methods.federated.dsfl import DSFL

ROWS = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1]]
"""Section 9 of the field guide: three clients, one open image."""


class Sent:
    """A reply as the server sees it."""

    samples = 1

    def __init__(self, sender: str, row: list[float]) -> None:
        self.sender, self.tensors = sender, {"probabilities": torch.tensor([row])}

    def part(self, kind: str) -> dict[str, Tensor]:
        raise AssertionError(f"dsfl sends no {kind}")


def targets(rows: list[list[float]], **choices: Any) -> tuple[list[float], dict[str, float]]:
    rounds = scenes.federation("dsfl", open_images=1, **choices)
    assert isinstance(rounds.method, DSFL)
    sent = [Sent(str(place), row) for place, row in enumerate(rows)]
    consensus = rounds.method.aggregate(sent, rounds.server)
    return consensus["targets"][0].tolist(), rounds.method.round_metrics()


class TestAggregate:
    @pytest.mark.parametrize(
        ("choices", "expected"),
        [
            ({"aggregation": "sa"}, [0.433333, 0.400000, 0.166667]),
            ({}, [0.559906, 0.401190, 0.038904]),
            ({"temperature": 0.5}, [0.396487, 0.370916, 0.232597]),
            ({"aggregation": "power"}, [0.500000, 0.426036, 0.073964]),
            ({"aggregation": "power", "exponent": 1.0}, [0.433333, 0.400000, 0.166667]),
            ({"aggregation": "vote"}, [2 / 3, 1 / 3, 0.0]),
            ({"aggregation": "median"}, [0.5, 0.4, 0.1]),
            ({"aggregation": "trimmed", "trim": 0.4}, [0.5, 0.4, 0.1]),
        ],
    )
    def test_rules(self, choices: dict[str, Any], expected: list[float]) -> None:
        assert targets(ROWS, **choices)[0] == pytest.approx(expected, abs=1e-6)

    def test_measures_the_entropy_before_and_after(self) -> None:
        assert targets(ROWS)[1] == pytest.approx(
            {"mean_entropy": 1.027517, "target_entropy": 0.817461, "undecided_images": 0}, abs=1e-6
        )

    def test_counts_images_that_the_rule_cannot_decide(self) -> None:
        found, told = targets(torch.eye(3).tolist(), aggregation="median")
        assert found == pytest.approx([1 / 3] * 3)
        assert told["undecided_images"] == 1

    def test_by_median_resists_two_of_five_that_agree_on_a_wrong_class(self) -> None:
        rows = [[0.6, 0.3, 0.1]] * 3 + poisoning.shift_classes(torch.eye(3)[[0, 0]]).tolist()
        winners = {
            rule: max(range(3), key=targets(rows, aggregation=rule)[0].__getitem__)
            for rule in ("median", "trimmed", "sa", "era")
        }
        # A fifth is cut at each end: one of the two.
        assert winners == {"median": 0, "trimmed": 1, "sa": 1, "era": 1}

    def test_one_who_lies_can_be_amplified(self) -> None:
        found, _ = targets([*ROWS[:2], [0.0, 0.0, 1.0]])
        assert found == pytest.approx([0.106507, 0.106507, 0.786986], abs=1e-6)


class TestRounds:
    def test_clients_and_server_move_towards_the_targets(self) -> None:
        rounds = scenes.federation("dsfl", distill_epochs=20, sizes=(9, 11))
        scenes.run(rounds, 1)
        open_set = rounds.shared.open_set
        assert open_set is not None
        assert rounds._newest is not None
        wanted = rounds._newest.tensors["targets"]
        for network in (rounds.server.network, rounds.clients.model("client-000")):
            assert network is not None
            with torch.no_grad():
                logits = network(rounds.shared.preprocess(open_set.images))
            near = soft_targets.kl_divergences(logits, wanted).mean()
            fresh = scenes.network()(rounds.shared.preprocess(open_set.images)).detach()
            assert near < soft_targets.kl_divergences(fresh, wanted).mean() / 2

    def test_a_round_may_use_some_of_the_open_images(self) -> None:
        rounds = scenes.federation("dsfl", federation={"open_images_per_round": 3})
        scenes.run(rounds, 2)
        assert rounds.record("client-000").up.payload_bytes == 2 * 3 * 3 * 4
        open_set = rounds.shared.open_set
        assert open_set is not None
        assert open_set.rows(1).tolist() != open_set.rows(2).tolist()

    def test_clients_may_have_other_networks(self) -> None:
        rounds = scenes.federation(
            "dsfl", federation={"engine": "vmap"}, others={1: scenes.network(widths=[6])}
        )
        assert rounds.clients.engines == {"vmap": 3, "loop": 1}
        before = scenes.client_weights(rounds)
        after = scenes.client_weights(scenes.run(rounds, 1))
        assert len(before["client-001"]) != len(before["client-000"])
        assert not any(torch.equal(before[name], after[name]) for name in before)

    def test_privacy_leaves_rows_of_probabilities(self) -> None:
        rounds = scenes.federation(
            "dsfl", federation={"privacy": {"clip": 0.5, "noise_multiplier": 1.0}}
        )
        (reply,) = rounds.clients.train(1, ["client-000"])
        rows = reply.tensors["probabilities"]
        assert torch.allclose(rows.sum(1), torch.ones(7))
        assert bool((rows >= 0).all())
        plain = scenes.federation("dsfl").clients.train(1, ["client-000"])[0]
        assert not torch.allclose(rows, plain.tensors["probabilities"], atol=0.05)
