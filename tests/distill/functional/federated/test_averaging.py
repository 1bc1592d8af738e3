import pytest
import torch
from torch import nn

from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import averaging


def state(*, seed: int, steps: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for _ in range(steps):
        network(torch.randn(8, 3))
    return {name: value.clone() for name, value in network.state_dict().items()}


class TestClientWeights:
    def test_follow_samples_or_are_uniform_with_sum_one(self) -> None:
        samples = torch.tensor([30, 10, 60])
        assert averaging.client_weights(samples).tolist() == pytest.approx([0.3, 0.1, 0.6])
        uniform = averaging.client_weights(samples, weighting="uniform")
        assert uniform.tolist() == pytest.approx([1 / 3] * 3)

    def test_of_those_that_remain_have_sum_one_in_the_same_proportion(self) -> None:
        samples = torch.tensor([30, 10, 60, 7])
        whole, rest = averaging.client_weights(samples), averaging.client_weights(samples[1:])
        assert float(rest.sum()) == pytest.approx(1, abs=1e-15)
        assert torch.allclose(rest, whole[1:] / whole[1:].sum(), rtol=1e-12)

    @pytest.mark.parametrize(
        ("samples", "message"),
        [([], "no client to average over"), ([0, 0], "nor all 0"), ([3, -1], "negative")],
    )
    def test_need_a_sample(self, samples: list[int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            averaging.client_weights(torch.tensor(samples, dtype=torch.long))


class TestAverageStates:
    def test_equals_the_guide(self) -> None:
        samples = FEDERATED.inputs("fedavg", "n").long()
        states = [{"w": row} for row in FEDERATED.inputs("fedavg", "w")]
        for weighting in ("samples", "uniform"):
            weights = averaging.client_weights(samples, weighting=weighting)
            found = averaging.average_states(states, weights)["w"]
            name = "weighted" if weighting == "samples" else "uniform"
            assert FEDERATED.close(found, FEDERATED.expected("fedavg", name))

    def test_averages_running_statistics_and_keeps_the_first_counter(self) -> None:
        states = [state(seed=0, steps=3), state(seed=1, steps=5)]
        found = averaging.average_states(states, torch.tensor([0.25, 0.75]).double())
        assert int(found["1.num_batches_tracked"]) == 3
        for name in ("0.weight", "1.running_mean", "1.running_var"):
            expected = 0.25 * states[0][name] + 0.75 * states[1][name]
            assert torch.allclose(found[name], expected, rtol=1e-6)
            assert found[name].dtype == torch.float32

    def test_of_equal_clients_are_their_bytes(self) -> None:
        one = state(seed=0)
        weights = averaging.client_weights(torch.tensor([3, 7, 11]))
        found = averaging.average_states([one] * 3, weights)
        assert all(torch.equal(found[name], value) for name, value in one.items())
        found["0.weight"].zero_()
        assert bool(one["0.weight"].any())

    def test_names_what_differs(self) -> None:
        weights = torch.tensor([0.5, 0.5]).double()
        one = state(seed=0)
        with pytest.raises(ValueError, match=r"state dict 1 has other names .*: 1.bias"):
            averaging.average_states([one, {**one, "1.bias2": one["1.bias"]}], weights)
        with pytest.raises(ValueError, match=r"1.bias is \[5\] in state dict 1, but \[4\]"):
            averaging.average_states([one, {**one, "1.bias": torch.ones(5)}], weights)
        with pytest.raises(ValueError, match="1 state dicts, but 2 weights"):
            averaging.average_states([one], weights)


class TestProximalPenalty:
    @staticmethod
    def pulled(mu: float, *, decay: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        given = FEDERATED.inputs("fedprox_step", "local").requires_grad_()
        anchor = FEDERATED.inputs("fedprox_step", "global")
        penalty = averaging.proximal_penalty({"w": given}, {"w": anchor}, mu=mu)
        penalty.backward()
        assert given.grad is not None
        gradient = FEDERATED.inputs("fedprox_step", "grad") + given.grad + decay * given.detach()
        rate = float(FEDERATED.inputs("fedprox_step", "lr"))
        return penalty.detach(), given.detach() - rate * gradient

    def test_equals_the_guide(self) -> None:
        penalty, new = self.pulled(0.5)
        assert FEDERATED.close(penalty, FEDERATED.expected("fedprox_step", "penalty"))
        assert FEDERATED.close(new, FEDERATED.expected("fedprox_step")["new"])

    def test_with_weight_decay_is_the_step_of_the_released_code(self) -> None:
        _, new = self.pulled(0.5, decay=0.001)
        assert FEDERATED.close(new, FEDERATED.expected("fedprox_step", "new_reference"))

    def test_has_the_gradient_of_its_value(self) -> None:
        given = {"a": torch.randn(3).double(), "b": torch.randn(2, 2).double()}
        anchors = {name: torch.randn_like(value) for name, value in given.items()}
        assert torch.autograd.gradcheck(
            lambda a, b: averaging.proximal_penalty({"a": a, "b": b}, anchors, mu=0.3),
            tuple(value.requires_grad_() for value in given.values()),
        )


class TestEnsemble:
    def test_equals_the_guide(self) -> None:
        scores = FEDERATED.inputs("fedensemble", "logits")[:, None]
        found = averaging.mean_scores(scores).softmax(1)[0]
        assert FEDERATED.close(found, FEDERATED.expected("fedensemble", "softmax_of_mean"))
        found = (3 * averaging.mean_scores(scores)).softmax(1)[0]
        assert FEDERATED.close(found, FEDERATED.expected("fedensemble", "softmax_of_sum"))
        found = averaging.mean_probabilities(scores)[0]
        assert FEDERATED.close(found, FEDERATED.expected("fedensemble", "mean_of_softmax"))
