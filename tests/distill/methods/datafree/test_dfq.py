import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from workers.distill.methods.datafree.dfq import DFQ


def method(**params) -> DFQ:
    return DFQ(DFQ.Params(**params), scenes.network(), scenes.other_network())


class TestSynthesis:
    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_terms_equal_the_numeric_cases(self, shape) -> None:
        balance = 20 * CASES.case("dafl_balance_natural_log")
        wanted = {**batches.ADVERSARIAL_INVERSION, "balance": balance}
        batches.check_terms(method(), shape, wanted, 20 * CASES.tolerance)
