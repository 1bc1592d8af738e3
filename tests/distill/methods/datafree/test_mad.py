import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
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
