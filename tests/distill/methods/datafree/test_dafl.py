import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import TEACHER
from workers.distill.methods.datafree import dafl
from workers.distill.methods.datafree.dafl import DAFL

POOLED = CASES.tensor("dafl_features")


def method(**params) -> DAFL:
    return DAFL(DAFL.Params(**params), scenes.network(), scenes.other_network())


class TestActivationLoss:
    def test_equals_the_numeric_case(self) -> None:
        assert abs(dafl.activation_loss(POOLED) - CASES.case("dafl_activation")) < CASES.tolerance

    def test_ignores_signs_and_grows_with_the_scale(self) -> None:
        one, other = dafl.activation_loss(POOLED), dafl.activation_loss(-3 * POOLED)
        assert torch.allclose(other, 3 * one, rtol=1e-12)

    def test_has_the_gradient_of_its_value(self) -> None:
        away_from_zero = (POOLED + 0.1).requires_grad_()
        assert torch.autograd.gradcheck(dafl.activation_loss, (away_from_zero,))


class TestDAFL:
    @pytest.mark.parametrize(
        ("params", "key"),
        [
            ({}, "dafl_total oh=1 balance(ln)=20"),
            (
                {"balance_weight": 5, "balance_base": "10", "activation_weight": 0.1},
                "dafl_total oh=1 balance(log10)=5",
            ),
        ],
    )
    def test_sum_of_the_terms_equals_the_numeric_case(self, params: dict, key: str) -> None:
        terms = method(**params).synthesis_terms(batches.step(TEACHER, pooled=POOLED))
        assert list(terms) == ["onehot", "balance", "activation"]
        assert abs(sum(terms.values()) - CASES.case(key)) < CASES.tolerance

    def test_takes_dense_logits(self) -> None:
        flat, dense = (
            method().synthesis_terms(batches.step(logits))
            for logits in (TEACHER, batches.dense(TEACHER))
        )
        for name in ("onehot", "balance"):
            assert torch.allclose(flat[name], dense[name], rtol=1e-12)
