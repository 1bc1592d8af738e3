from typing import Any

import pytest
import torch

from tests.distill.federated import scenes
from workers.distill.config.training import expand
from workers.distill.federated import stacked
from workers.distill.federated.clients import LocalClients
from workers.distill.federated.rounds import Rounds
from workers.distill.federated.stacked import StackedOptimizer

CASES: dict[str, dict[str, Any]] = {
    "weights": {"name": "fedavg"},
    "anchors": {"name": "fedprox", "mu": 0.3},
    "label_means": {"name": "fd", "recency": 0.9},
    "scores_and_weights": {"name": "feddistill", "share_weights": True},
    "latents": {"name": "fedgen", "generator_steps": 3, "teacher_weight": 1.0},
    "prototypes": {"name": "fedproto"},
    "digest": {"name": "fedmd"},
    "open_set": {"name": "dsfl", "distill_epochs": 2},
    "some_of_them": {"name": "dsfl", "federation": {"participation": 0.75, "dropout": 0.3}},
    "adam": {
        "name": "fedavg",
        "training": {"optimizer": {"name": "adamw"}, "clip_norm": 0.5, "augmentation": "standard"},
    },
}


def pair(case: dict[str, Any]) -> tuple[Rounds, Rounds]:
    """Return the same federation, trained in the loop and at once."""
    chosen = dict(case)
    settings = chosen.pop("federation", {})
    loop, vmap = (
        scenes.run(scenes.federation(**chosen, federation={**settings, "engine": engine}), 2)
        for engine in ("loop", "vmap")
    )
    assert loop.clients.engines == {"loop": 4}
    assert vmap.clients.engines == {"vmap": 4}
    return loop, vmap


class TestTrain:
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_equals_the_loop(self, case: dict[str, Any]) -> None:
        loop, vmap = pair(case)
        expected, found = scenes.client_weights(loop), scenes.client_weights(vmap)
        for name, weights in expected.items():
            # Sums over clients and padding are made in another order: float32 rounds differently.
            assert torch.allclose(found[name], weights, rtol=0, atol=1e-6), name
        assert torch.allclose(
            scenes.weights(vmap.server.network), scenes.weights(loop.server.network), atol=1e-6
        )
        assert {name: record.replies for name, record in loop.records.items()} == {
            name: record.replies for name, record in vmap.records.items()
        }

    def test_counts_what_was_seen(self) -> None:
        _, vmap = pair(CASES["weights"])
        assert isinstance(vmap.clients, LocalClients)
        assert vmap.clients.images == 2 * sum(scenes.SIZES)


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            (
                {"reference": "retort/convnet", "arguments": {"widths": [4, 4]}},
                "retort/convnet has batch norms",
            ),
            ({"training": {"optimizer": {"name": "dot"}}}, "optimizer dot goes backwards twice"),
            ({"training": {"optimizer": {"name": "lamb"}}}, "optimizer lamb scales a step"),
        ],
        ids=["batch_norm", "dot", "lamb"],
    )
    def test_what_cannot_be_is_trained_in_the_loop_and_told(
        self, changes: dict[str, Any], reason: str
    ) -> None:
        rounds = scenes.federation(federation={"engine": "vmap"}, **changes)
        assert rounds.clients.engines == {"loop": 4}
        (told,) = rounds.clients.not_stacked.values()
        assert told.startswith(reason)
        scenes.run(rounds, 1)

    def test_a_network_that_branches_on_its_input_is_found_by_trying(self) -> None:
        network = scenes.network()
        observe = network.observe

        def branching(images: torch.Tensor) -> Any:
            return observe(images * 2 if images.sum() > 0 else images)

        network.observe = branching  # type: ignore[method-assign]  # another forward pass
        shared = scenes.context(scenes.federation().method, expand(scenes.PLAIN))
        assert "cannot be vectorised" in str(stacked.refusal(network, shared))

    def test_few_clients_are_not_worth_it(self) -> None:
        few = scenes.federation(sizes=(9, 9, 9), federation={"engine": "auto"})
        assert few.clients.engines == {"loop": 3}
        assert not few.clients.not_stacked


class TestStackedOptimizer:
    def test_those_who_stay_keep_their_momentum(self) -> None:
        training = expand(scenes.PLAIN)
        start, gradient = torch.arange(6.0).view(3, 2), torch.ones(3, 2)
        whole = StackedOptimizer({"w": start.clone()}, training, 0.1)
        part = StackedOptimizer({"w": start.clone()}, training, 0.1)
        for optimizer in (whole, part):
            optimizer.step({"w": gradient})
        part.keep_first(2)
        whole.step({"w": gradient})
        part.step({"w": gradient[:2]})
        assert torch.equal(part.weights["w"], whole.weights["w"][:2])

    def test_each_client_is_clipped_on_its_own(self) -> None:
        gradients = {
            "w": torch.tensor([[3.0, 4.0], [0.3, 0.4]]),
            "b": torch.tensor([[12.0], [0.0]]),
        }
        found = stacked.clipped(gradients, 6.5)
        assert torch.allclose(found["w"], torch.tensor([[1.5, 2.0], [0.3, 0.4]]))
        assert torch.allclose(found["b"], torch.tensor([[6.0], [0.0]]))
