import pytest
import torch

from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill.functional import adversaries, entropies
from workers.distill.methods.datafree.dafl import DAFL


def refuses(*_given: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a term that is switched off was computed")


class TestTermsOfAStep:
    def test_are_weighed(self) -> None:
        step = batches.step(TEACHER, STUDENT)
        term = step.term(3.0, entropies.mean_cross_entropy, TEACHER)
        assert torch.equal(term, 3 * entropies.mean_cross_entropy(TEACHER))
        against = step.student_term(-2.0, adversaries.discrepancy, masked=True)
        expected = adversaries.discrepancy(STUDENT, TEACHER, masked=True)
        assert torch.equal(against, -2 * expected)

    @pytest.mark.parametrize("weight", [0.0, -0.0])
    def test_of_no_weight_are_zeros_that_cost_nothing(self, weight: float) -> None:
        step = batches.step(TEACHER.clone().requires_grad_(), STUDENT)
        for term in (step.term(weight, refuses), step.student_term(weight, refuses)):
            assert term.shape == ()
            assert float(term) == 0
            assert term.dtype == TEACHER.dtype
            assert not term.requires_grad

    def test_against_the_student_are_zeros_while_there_is_none(self) -> None:
        term = batches.step(TEACHER).student_term(1.0, refuses)
        assert float(term) == 0


class TestInTurn:
    def method(self, classes: int) -> DAFL:
        student = scenes.network(classes=classes)
        return DAFL(DAFL.Params(), student, scenes.other_network(classes=classes))

    def test_goes_through_all_classes_again_and_again(self) -> None:
        assert self.method(3).in_turn(7).tolist() == [0, 1, 2, 0, 1, 2, 0]

    def test_leaves_out_no_class_for_ever_where_a_batch_cannot_hold_all(self) -> None:
        torch.manual_seed(0)
        method = self.method(10)
        calls = [method.in_turn(4).tolist() for _ in range(40)]
        assert all(len(set(call)) == 4 for call in calls)
        assert {each for call in calls for each in call} == set(range(10))
