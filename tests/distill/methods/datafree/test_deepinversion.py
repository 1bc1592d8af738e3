from typing import Any

import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import RECEIVED, STUDENT, TARGETS, TEACHER
from workers.distill import errors
from workers.distill.config.synthesis import PixelSynthesis
from workers.distill.methods.datafree import deepinversion
from workers.distill.methods.datafree.base import SynthesisBatch

NAMES = ["bn", "onehot", "tv", "l2", "competition", "student_bn"]
ONES = {
    "bn_weight": 1,
    "onehot_weight": 1,
    "tv_weight": 1,
    "l2_weight": 1,
    "competition_weight": 1,
    "student_bn_weight": 1,
}


def method(*, classes: int = 3, **values: Any) -> deepinversion.DeepInversion:
    # Any: what a recipe may say.
    params = deepinversion.DeepInversion.Params.model_validate(values)
    return deepinversion.DeepInversion(
        params,
        batches.small(1, classes=classes),
        batches.small(classes=classes),
    ).double()


def step(student: bool = True) -> SynthesisBatch:
    """Return a step whose teacher, student and view show what the guide's cases are made of."""
    norm = batches.norm_input()
    return batches.batch(
        batches.outputs(TEACHER[:2], norm),
        batches.outputs(STUDENT[:2], norm) if student else None,
        targets=TARGETS[:2],
        inputs=RECEIVED,
    )


class TestCompetition:
    def test_equals_the_published_values(self) -> None:
        clamped = deepinversion.competition(STUDENT, TEACHER, clamped=True)
        assert CASES.close(clamped, CASES.case("adi_competition_1_minus_js"))
        plain = deepinversion.competition(STUDENT, TEACHER, clamped=False)
        assert CASES.close(plain, -CASES.case("adi_js_T3_clamped"))

    def test_ends_at_a_divergence_of_one_only_where_it_is_clamped(self) -> None:
        apart = torch.tensor([[30.0, 0.0]], dtype=torch.float64)
        for clamped, most in ((True, 0.0), (False, -1.0)):
            value = deepinversion.competition(apart, -apart, clamped=clamped)
            assert (float(value) == most) if clamped else (float(value) < most)

    def test_reads_positions_as_images(self) -> None:
        value = deepinversion.competition(
            batches.dense(STUDENT), batches.dense(TEACHER), clamped=True
        )
        assert CASES.close(value, CASES.case("adi_competition_1_minus_js"))

    @pytest.mark.parametrize("clamped", [True, False])
    def test_has_the_gradient_of_its_value(self, clamped: bool) -> None:
        logits = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda student, teacher: deepinversion.competition(student, teacher, clamped=clamped),
            logits,
        )


class TestTargets:
    def test_take_turns_as_the_authors_do(self) -> None:
        targets = method(classes=10).targets(256)
        assert targets.tolist() == [*range(10)] * 25 + [*range(6)]

    def test_are_different_classes_where_a_batch_cannot_hold_all(self) -> None:
        made = method(classes=10)
        calls = [made.targets(4).tolist() for _ in range(40)]
        assert all(len(set(call)) == 4 for call in calls)
        assert {each for call in calls for each in call} == set(range(10))

    def test_are_drawn_where_balance_is_off(self) -> None:
        made = method(classes=10, balanced=False)
        torch.manual_seed(0)
        targets = made.targets(256)
        torch.manual_seed(0)
        assert torch.equal(targets, torch.randint(10, (256,)))


class TestSynthesis:
    def test_has_the_published_terms(self) -> None:
        terms = method(**ONES).synthesis_terms(step())
        assert list(terms) == NAMES
        assert CASES.close(terms["bn"], CASES.case("bn_loss_l2norm_var"))
        assert CASES.close(terms["onehot"], sum(CASES.case("ce_to_targets_each")[:2]) / 2)
        assert CASES.close(terms["tv"], CASES.case("tv_l2"))
        assert CASES.close(terms["l2"], CASES.case("image_l2"))
        assert CASES.close(terms["student_bn"], -CASES.case("bn_loss_l2norm_var"))
        batch = batches.batch(batches.outputs(TEACHER), batches.outputs(STUDENT))
        rest = method(bn_weight=0, onehot_weight=1).synthesis_terms(batch)
        assert CASES.close(rest["competition"], CASES.case("adi_competition_1_minus_js"))
        assert CASES.close(rest["onehot"], CASES.case("ce_to_targets_mean"))

    def test_takes_priors_of_what_the_teacher_sees(self) -> None:
        batch = step()
        assert not batch.images.any()
        assert batch.inputs.any()
        assert method(tv_weight=1).synthesis_terms(batch)["tv"].any()

    def test_needs_no_student_and_none_with_norms(self) -> None:
        made = method(**ONES)
        alone = made.synthesis_terms(step(student=False))
        assert list(alone) == NAMES
        assert not alone["competition"].any()
        assert not alone["student_bn"].any()
        batch = batches.batch(
            batches.outputs(TEACHER, batches.norm_input()),
            batches.outputs(STUDENT),
        )
        assert not made.synthesis_terms(batch)["student_bn"].any()

    def test_aims_at_what_the_teacher_sees_at_each_position_of_a_dense_task(self) -> None:
        batch = batches.batch(
            batches.outputs(batches.dense(TEACHER)),
            targets=torch.tensor([2, 2]),
        )
        terms = method(bn_weight=0, onehot_weight=1).synthesis_terms(batch)
        assert CASES.close(terms["onehot"], CASES.case("ce_to_argmax_mean"))


class TestDeepInversion:
    def test_is_plain_without_competition(self) -> None:
        assert method().uses_student
        assert method(competition_weight=0).uses_student
        plain = method(competition_weight=0, student_bn_weight=0)
        assert not plain.uses_student
        assert not method(competition_weight=0, bn_weight=0).uses_student

    def test_moves_pixels_and_wants_to_see_the_students_norms(self) -> None:
        made = method()
        assert made.synthesizer == "pixels"
        assert made.uses_student_bn_statistics
        assert not method(student_bn_weight=0).uses_student_bn_statistics
        assert not method(bn_weight=0).uses_student_bn_statistics
        assert isinstance(made.params.synthesis, PixelSynthesis)

    def test_needs_norms_only_where_moments_count(self) -> None:
        networks = batches.small(1), batches.small(normed=False)
        params = deepinversion.DeepInversion.Params
        with pytest.raises(errors.IncompatibleNetworks, match="set bn_weight to 0"):
            deepinversion.DeepInversion(params(), *networks)
        made = deepinversion.DeepInversion(params(bn_weight=0), *networks)
        assert not made.uses_bn_statistics
