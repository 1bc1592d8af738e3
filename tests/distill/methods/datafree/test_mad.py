import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill import errors
from workers.distill.methods.datafree.mad import MAD

NAMES = ["adversarial", "bn", "onehot"]


def method(**params) -> MAD:
    return MAD(MAD.Params(**params), scenes.network(), scenes.other_network())


class TestSynthesis:
    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_terms_equal_the_numeric_cases(self, shape) -> None:
        step = batches.step(shape(TEACHER), shape(STUDENT), norms=[batches.norm_input()])
        terms = method().synthesis_terms(step)
        wanted = {
            "adversarial": CASES.case("adv_loss_plain"),
            "bn": CASES.case("bn_loss_l2norm_var"),
            "onehot": CASES.case("dafl_onehot"),
        }
        assert list(terms) == NAMES
        for name, value in wanted.items():
            assert abs(terms[name] - value) < CASES.tolerance

    def test_weighs_its_terms(self) -> None:
        step = batches.step(TEACHER, STUDENT, norms=[batches.norm_input()])
        plain = method().synthesis_terms(step)
        weights = {"adversarial": 2.0, "bn": 3.0, "onehot": 0.5}
        weighed = method(**{f"{name}_weight": weight for name, weight in weights.items()})
        terms = weighed.synthesis_terms(step)
        for name, factor in weights.items():
            assert torch.allclose(terms[name], factor * plain[name], rtol=1e-12)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_weight_of_zero_switches_its_term_off(self, name: str) -> None:
        norm = batches.norm_input()
        norm.received.requires_grad_()
        step = batches.step(TEACHER.clone().requires_grad_(), STUDENT, norms=[norm])
        terms = method(**{f"{name}_weight": 0}).synthesis_terms(step)
        assert list(terms) == NAMES
        assert [other for other, term in terms.items() if not term.requires_grad] == [name]
        assert float(terms[name]) == 0

    def test_does_not_compete_while_there_is_no_student(self) -> None:
        step = batches.step(TEACHER.clone().requires_grad_(), norms=[batches.norm_input()])
        term = method().synthesis_terms(step)["adversarial"]
        assert float(term) == 0
        assert not term.requires_grad

    def test_has_the_gradient_of_its_value(self) -> None:
        built = method(bn_weight=0)
        assert torch.autograd.gradcheck(
            lambda taught, learned: torch.stack(
                list(built.synthesis_terms(batches.step(taught, learned)).values())
            ),
            (TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()),
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_every_term_moves_the_generator(self, name: str) -> None:
        weights = {f"{other}_weight": float(other == name) for other in NAMES}
        built = method(**weights, synthesis={"latent_size": 8, "width": 4})
        moved = batches.gradients(built, scenes.network(), scenes.other_network())
        assert all(gradient.abs().sum() > 0 for gradient in moved)


class TestMAD:
    @pytest.mark.parametrize("temperature", [1, 4, 20])
    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_student_imitates_the_teacher(self, temperature: int, shape) -> None:
        learned, taught = (batches.features(shape(logits)) for logits in (STUDENT, TEACHER))
        terms = method(temperature=temperature).terms(
            learned, taught, scenes.batch(range(len(learned.logits))), scenes.MOMENT
        )
        assert list(terms) == ["kd"]
        assert abs(terms["kd"] - CASES.case(f"kd_mean_T{temperature}")) < CASES.tolerance

    def test_needs_batch_norms_unless_they_count_nothing(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="batch norms"):
            MAD(MAD.Params(), scenes.network(), batches.small(normed=False))
        assert not MAD(
            MAD.Params(bn_weight=0), scenes.network(), batches.small(normed=False)
        ).uses_bn_statistics

    def test_competes_unless_that_counts_nothing(self) -> None:
        assert method().uses_student
        assert not method(adversarial_weight=0).uses_student

    def test_a_partial_budget_keeps_the_other_defaults(self) -> None:
        params = MAD.Params.model_validate({"synthesis": {"width": 32}})
        assert params.synthesis.width == 32
        assert (params.synthesis.average_decay, params.synthesis.student_steps) == (0.95, 10)
        assert MAD.Params.model_validate_json(params.model_dump_json()) == params
