import math
from typing import Any, get_args

import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.methods.logit import fkd
from workers.distill.networks.interface import Network

CLASSES = 7
STORAGES = get_args(fkd.Storage)


def network(classes: int = CLASSES) -> Network:
    built = Network()
    built.classes = classes
    return built


def method(classes: int = CLASSES, **params: Any) -> fkd.FKD:
    return fkd.FKD(fkd.FKD.Params(**params), network(classes), network(classes))


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def remembered(how: fkd.FKD, logits: torch.Tensor) -> torch.Tensor:
    """Return the distribution that comes back from storage."""
    recalled = how.recall(how.store(scenes.features(logits))).logits
    return (recalled / how.params.temperature).softmax(1)


class TestStorage:
    def test_keeps_the_published_classes_and_values(self) -> None:
        stored = method().store(scenes.features(CHECKS.tensor("fkd_teacher_logits")[None]))
        expected = CHECKS.expected("fkd_top5")
        assert stored["index"].tolist() == [expected["stored_index"]]
        assert stored["index"].dtype == torch.uint8
        assert CHECKS.close(stored["value"], [expected["stored_value"]])

    @pytest.mark.parametrize("storage", ["marginal_smoothing", "marginal_renorm"])
    def test_gives_back_the_published_distribution(self, storage: str) -> None:
        logits = CHECKS.tensor("fkd_teacher_logits")[None]
        probabilities = remembered(method(storage=storage), logits)
        assert CHECKS.close(probabilities, [CHECKS.expected("fkd_top5")[storage]])

    def test_hard_is_the_first_class(self) -> None:
        logits = random_logits(0, 4, CLASSES)
        how = method(storage="hard")
        assert set(how.store(scenes.features(logits))) == {"index"}
        one_hot = torch.nn.functional.one_hot(logits.argmax(1), CLASSES)
        assert torch.equal(remembered(how, logits).round(decimals=6).long(), one_hot)

    def test_smoothing_spreads_the_rest_evenly(self) -> None:
        logits = random_logits(1, 4, CLASSES)
        probabilities = (
            remembered(method(storage="smoothing"), logits).sort(1, descending=True).values
        )
        first = logits.softmax(1).amax(1)
        assert torch.allclose(probabilities[:, 0], first, rtol=1e-9)
        rest = ((1 - first) / (CLASSES - 1))[:, None].expand(-1, CLASSES - 1)
        assert torch.allclose(probabilities[:, 1:], rest, rtol=1e-9)

    @pytest.mark.parametrize("storage", ["marginal_smoothing", "marginal_renorm"])
    @pytest.mark.parametrize("temperature", [0.5, 4.0])
    def test_loses_nothing_when_all_classes_are_kept(
        self, storage: str, temperature: float
    ) -> None:
        logits = random_logits(2, 4, CLASSES)
        how = method(storage=storage, top_k=1000, temperature=temperature)
        expected = (logits / temperature).softmax(1)
        assert torch.allclose(remembered(how, logits), expected, rtol=1e-9)

    @pytest.mark.parametrize("storage", STORAGES)
    def test_is_finite_for_a_teacher_that_is_certain(self, storage: str) -> None:
        logits = torch.tensor([[1000.0, 0.0, -1000.0]])
        how = method(3, storage=storage, top_k=2)
        recalled = how.recall(how.store(scenes.features(logits)))
        assert recalled.logits.isfinite().all()
        assert torch.allclose(recalled.logits.softmax(1), torch.tensor([[1.0, 0.0, 0.0]]))

    @pytest.mark.parametrize(
        ("classes", "dtype"),
        [(256, torch.uint8), (257, torch.int16), (32769, torch.int32)],
    )
    def test_names_classes_in_the_fewest_bytes(self, classes: int, dtype: torch.dtype) -> None:
        assert fkd.narrowest(classes) == dtype


class TestFKDLoss:
    def test_with_one_hot_labels_is_cross_entropy(self) -> None:
        logits, labels = CHECKS.tensor("logits_s"), CHECKS.tensor("target")
        one_hot = torch.nn.functional.one_hot(labels, 3).double()
        assert CHECKS.close(fkd.fkd_loss(logits, one_hot), CHECKS.expected("ce")["loss"])

    def test_is_the_entropy_when_both_agree(self) -> None:
        logits = random_logits(3, 5, CLASSES)
        soft = logits.softmax(1)
        entropy = torch.distributions.Categorical(probs=soft).entropy().mean()
        assert torch.allclose(fkd.fkd_loss(logits, soft), entropy, rtol=1e-9)

    def test_ignores_a_constant_added_to_a_row(self) -> None:
        logits, soft = random_logits(4, 5, CLASSES), random_logits(5, 5, CLASSES).softmax(1)
        shifted = logits + torch.arange(5, dtype=torch.float64)[:, None]
        assert torch.allclose(fkd.fkd_loss(logits, soft), fkd.fkd_loss(shifted, soft), rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        logits = random_logits(6, 4, 5).requires_grad_()
        soft = random_logits(7, 4, 5).softmax(1)
        assert torch.autograd.gradcheck(lambda given: fkd.fkd_loss(given, soft), (logits,))

    def test_is_finite_at_a_gap_of_a_thousand(self) -> None:
        logits = torch.tensor([[1000.0, 0.0]], requires_grad=True)
        loss = fkd.fkd_loss(logits, torch.tensor([[0.0, 1.0]]))
        loss.backward()
        assert math.isclose(float(loss.detach()), 1000, rel_tol=1e-6)
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


class TestFKD:
    @pytest.mark.parametrize("storage", STORAGES)
    @pytest.mark.parametrize("rows", [1, 2, 6])
    def test_a_stored_word_counts_as_much_as_a_fresh_one(self, storage: str, rows: int) -> None:
        how = method(storage=storage, top_k=3, temperature=2.0)
        student = scenes.features(random_logits(8, rows, CLASSES))
        fresh = scenes.features(random_logits(9, rows, CLASSES))
        batch = scenes.batch([number % CLASSES for number in range(rows)])
        stored = how.recall(how.store(fresh))
        one, other = (
            how.terms(student, teacher_out, batch, scenes.MOMENT) for teacher_out in (fresh, stored)
        )
        assert list(one) == list(other) == ["task", "fkd"]
        # Values are stored as computed; their logarithm and back costs a few roundings.
        assert torch.allclose(one["fkd"], other["fkd"], rtol=1e-6)

    def test_learns_from_the_stored_labels_alone(self) -> None:
        student = scenes.features(random_logits(10, 3, CLASSES))
        terms = method().terms(student, student, scenes.batch([0, 1, 2]), scenes.MOMENT)
        assert float(terms["task"]) == 0
        assert float(terms["fkd"]) > 0

    def test_refuses_different_classes(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"teacher has 5, the student 3"):
            fkd.FKD(fkd.FKD.Params(), network(3), network(5))

    @pytest.mark.parametrize("params", [{"top_k": 0}, {"temperature": 0}, {"storage": "all"}])
    def test_refuses_hyperparameters_out_of_bounds(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(params))):
            fkd.FKD.Params(**params)
