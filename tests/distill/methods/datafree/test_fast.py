from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill.methods.datafree import fast

STEP = batches.batch(
    batches.outputs(TEACHER, batches.norm_input()),
    batches.outputs(STUDENT),
)


def method(**values: Any) -> fast.Fast:  # Any: what a recipe may say
    params = fast.Fast.Params.model_validate(values)
    return fast.Fast(params, batches.small(1), batches.small()).double()


class TestSynthesis:
    def test_has_the_published_terms(self) -> None:
        terms = method(bn_weight=1, onehot_weight=1, adversarial_weight=1).synthesis_terms(STEP)
        assert CASES.close(terms["bn"], CASES.case("bn_loss_l2norm_var"))
        assert CASES.close(terms["onehot"], CASES.case("ce_to_targets_mean"))
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_masked"))

    def test_counts_every_row_without_the_mask(self) -> None:
        terms = method(masked=False).synthesis_terms(STEP)
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_plain"))

    def test_aims_at_what_the_teacher_sees_where_asked_to(self) -> None:
        terms = method(target="argmax", onehot_weight=1).synthesis_terms(STEP)
        assert CASES.close(terms["onehot"], CASES.case("ce_to_argmax_mean"))

    def test_aims_at_what_the_teacher_sees_at_each_position_of_a_dense_task(self) -> None:
        teacher, student = batches.dense(TEACHER), batches.dense(STUDENT)
        step = batches.batch(
            batches.outputs(teacher),
            batches.outputs(student),
            targets=torch.tensor([2, 2]),
        )
        terms = method(bn_weight=0, onehot_weight=1).synthesis_terms(step)
        assert CASES.close(terms["onehot"], CASES.case("ce_to_argmax_mean"))
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_masked"))


class TestStudent:
    def test_imitates_every_position_alike(self) -> None:
        student, teacher = (
            batches.outputs(batches.dense(STUDENT)),
            batches.outputs(batches.dense(TEACHER)),
        )
        terms = method(temperature=1).terms(
            student.features, teacher.features, scenes.batch([0, 1]), scenes.MOMENT
        )
        assert CASES.close(terms["kd"], CASES.case("seg", "kd_per_pixel_mean"))


class TestFast:
    def test_draws_images_evenly(self) -> None:
        assert method().priority is None
        assert method().eviction == "oldest"

    @pytest.mark.parametrize(
        "values", [{"synthesis": {"shift": 1}}, {"bn_momentum": 1}, {"target": "cyclic"}]
    )
    def test_refuses_what_it_does_not_know(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            fast.Fast.Params.model_validate(values)
