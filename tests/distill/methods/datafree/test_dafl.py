import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill.functional import adversaries, entropies
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

    @pytest.mark.parametrize("name", ["onehot", "balance", "activation"])
    def test_a_weight_of_zero_switches_its_term_off(self, name: str) -> None:
        logits, pooled = TEACHER.clone().requires_grad_(), POOLED.clone().requires_grad_()
        terms = method(**{f"{name}_weight": 0}).synthesis_terms(batches.step(logits, pooled=pooled))
        assert list(terms) == ["onehot", "balance", "activation"]
        assert [other for other, term in terms.items() if not term.requires_grad] == [name]
        assert float(terms[name]) == 0

    def test_weighs_its_terms(self) -> None:
        weighed = method(onehot_weight=0.5, balance_weight=3, activation_weight=2)
        terms = weighed.synthesis_terms(batches.step(TEACHER, pooled=POOLED))
        assert torch.allclose(terms["onehot"], 0.5 * entropies.mean_cross_entropy(TEACHER))
        assert torch.allclose(terms["balance"], 3 * adversaries.class_balance(TEACHER))
        assert torch.allclose(terms["activation"], 2 * dafl.activation_loss(POOLED))

    def test_moves_the_generator(self) -> None:
        budget = {"latent_size": 8, "width": 4}
        moved = batches.gradients(
            method(synthesis=budget), scenes.network(), scenes.other_network()
        )
        assert all(gradient.abs().sum() > 0 for gradient in moved)

    @pytest.mark.parametrize("temperature", [1, 4, 20])
    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_student_imitates_the_teacher(self, temperature: int, shape) -> None:
        learned, taught = (batches.features(shape(logits)) for logits in (STUDENT, TEACHER))
        terms = method(temperature=temperature).terms(
            learned, taught, scenes.batch(range(len(learned.logits))), scenes.MOMENT
        )
        assert list(terms) == ["kd"]
        assert abs(terms["kd"] - CASES.case(f"kd_mean_T{temperature}")) < CASES.tolerance

    def test_needs_neither_batch_norms_nor_the_student(self) -> None:
        built = DAFL(DAFL.Params(), scenes.network(), batches.small(normed=False))
        assert not built.uses_bn_statistics
        assert not built.uses_student

    def test_a_partial_budget_keeps_the_other_defaults(self) -> None:
        params = DAFL.Params.model_validate({"synthesis": {"batch_size": 32}})
        assert params.synthesis.batch_size == 32
        assert params.synthesis.latent_size == 512
        assert params.synthesis.student_steps == 5
        assert DAFL.Params.model_validate_json(params.model_dump_json()) == params
