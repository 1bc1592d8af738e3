import pytest
import torch

from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill.methods.datafree.noise import Noise


def method(**params) -> Noise:
    return Noise(Noise.Params(**params), scenes.network(), scenes.other_network())


class TestNoise:
    def test_is_zero_where_both_agree(self) -> None:
        same = batches.features(TEACHER)
        assert float(method().terms(same, same, scenes.batch(range(4)), scenes.MOMENT)["kd"]) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        built, teacher_out = method(), batches.features(TEACHER)
        assert torch.autograd.gradcheck(
            lambda logits: built.terms(
                batches.features(logits), teacher_out, scenes.batch(range(4)), scenes.MOMENT
            )["kd"],
            (STUDENT.clone().requires_grad_(),),
        )

    def test_moves_nothing(self) -> None:
        built = method()
        assert built.synthesis_terms(batches.step(TEACHER, STUDENT)) == {}
        assert not built.uses_student
        with pytest.raises(TypeError, match="has no generator"):
            built.make_generator()
