import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill.methods.datafree import dfad
from workers.distill.methods.datafree.dfad import DFAD

PLAIN, LOG = (CASES.case(f"adv_loss_{name} (DFAD") for name in ("L1", "log_L1"))


def method(**params) -> DFAD:
    return DFAD(DFAD.Params(**params), scenes.network(), scenes.other_network())


class TestContest:
    @pytest.mark.parametrize(("log_loss", "wanted"), [(False, PLAIN), (True, LOG)])
    def test_equals_the_numeric_case(self, log_loss: bool, wanted: float) -> None:
        assert abs(dfad.contest(STUDENT, TEACHER, log_loss=log_loss) - wanted) < CASES.tolerance

    @pytest.mark.parametrize("log_loss", [False, True])
    def test_is_highest_where_both_agree(self, log_loss: bool) -> None:
        assert float(dfad.contest(TEACHER, TEACHER, log_loss=log_loss)) == 0
        assert dfad.contest(STUDENT, TEACHER, log_loss=log_loss) < 0

    def test_logarithm_pulls_less_the_further_apart_they_are(self) -> None:
        pulls = []
        for scale in (1.0, 10.0):
            student_logits = (scale * STUDENT).requires_grad_()
            loss = dfad.contest(student_logits, scale * TEACHER, log_loss=True)
            pulls.append(torch.autograd.grad(loss, student_logits)[0].abs().sum())
        # The gradient of -log(d + 1) is that of -d over d + 1.
        expected = (1 - 10 * PLAIN) / (1 - PLAIN)
        assert abs(pulls[0] / pulls[1] - expected) < 10 * CASES.tolerance

    @pytest.mark.parametrize("log_loss", [False, True])
    def test_has_the_gradient_of_its_value(self, log_loss: bool) -> None:
        assert torch.autograd.gradcheck(
            lambda student_logits, teacher_logits: dfad.contest(
                student_logits, teacher_logits, log_loss=log_loss
            ),
            (STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()),
        )


class TestDFAD:
    @pytest.mark.parametrize(
        ("chosen", "shape", "wanted"),
        [
            (None, torch.clone, PLAIN),
            (None, batches.dense, LOG),
            (True, torch.clone, LOG),
            (False, batches.dense, PLAIN),
        ],
    )
    def test_generator_follows_the_logarithm_in_dense_tasks(self, chosen, shape, wanted) -> None:
        terms = method(log_loss=chosen).synthesis_terms(
            batches.step(shape(TEACHER), shape(STUDENT))
        )
        assert list(terms) == ["adversarial"]
        assert abs(terms["adversarial"] - wanted) < CASES.tolerance

    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_student_closes_the_mean_difference_of_all_logits(self, shape) -> None:
        student_out, teacher_out = (
            batches.features(shape(logits)) for logits in (STUDENT, TEACHER)
        )
        terms = method().terms(
            student_out, teacher_out, scenes.batch(range(len(student_out.logits))), scenes.MOMENT
        )
        assert list(terms) == ["difference"]
        assert abs(terms["difference"] + PLAIN) < CASES.tolerance
