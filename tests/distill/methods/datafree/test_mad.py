import pytest
import torch

from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from workers.distill.methods.datafree.mad import MAD


def method(**params) -> MAD:
    return MAD(MAD.Params(**params), scenes.network(), scenes.other_network())


class TestSynthesis:
    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_terms_equal_the_numeric_cases(self, shape) -> None:
        batches.check_terms(method(), shape, batches.ADVERSARIAL_INVERSION)
