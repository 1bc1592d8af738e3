import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill.methods.datafree.noise import Noise


def method(**params) -> Noise:
    return Noise(Noise.Params(**params), scenes.network(), scenes.other_network())


class TestNoise:
    @pytest.mark.parametrize("temperature", [1, 4, 20])
    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_student_imitates_the_teacher(self, temperature: int, shape) -> None:
        learned, taught = (batches.features(shape(logits)) for logits in (STUDENT, TEACHER))
        terms = method(temperature=temperature).terms(
            learned, taught, scenes.batch(range(len(learned.logits))), scenes.MOMENT
        )
        assert list(terms) == ["kd"]
        assert abs(terms["kd"] - CASES.case(f"kd_mean_T{temperature}")) < CASES.tolerance

    def test_is_zero_where_both_agree(self) -> None:
        same = batches.features(TEACHER)
        assert float(method().terms(same, same, scenes.batch(range(4)), scenes.MOMENT)["kd"]) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        built, taught = method(), batches.features(TEACHER)
        assert torch.autograd.gradcheck(
            lambda learned: built.terms(
                batches.features(learned), taught, scenes.batch(range(4)), scenes.MOMENT
            )["kd"],
            (STUDENT.clone().requires_grad_(),),
        )

    def test_moves_nothing(self) -> None:
        built = method()
        assert built.synthesis_terms(batches.step(TEACHER, STUDENT)) == {}
        assert not built.uses_student
        with pytest.raises(TypeError, match="has no generator"):
            built.make_generator()

    def test_needs_no_batch_norms(self) -> None:
        assert not Noise(
            Noise.Params(), scenes.network(), batches.small(normed=False)
        ).uses_bn_statistics

    def test_a_partial_budget_keeps_the_other_defaults(self) -> None:
        params = Noise.Params.model_validate({"synthesis": {"distribution": "uniform"}})
        assert params.synthesis.distribution == "uniform"
        assert (params.synthesis.steps, params.synthesis.buffer_images) == (1, 1024)
        assert Noise.Params.model_validate_json(params.model_dump_json()) == params
