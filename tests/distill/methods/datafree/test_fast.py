from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill import errors
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

    def test_weighs_its_terms(self) -> None:
        plain = method(bn_weight=1, onehot_weight=1, adversarial_weight=1).synthesis_terms(STEP)
        found = method(bn_weight=3, onehot_weight=0.4, adversarial_weight=1.1).synthesis_terms(STEP)
        for name, weight in (("bn", 3), ("onehot", 0.4), ("adversarial", 1.1)):
            assert torch.allclose(found[name], weight * plain[name], rtol=1e-12)

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

    @pytest.mark.parametrize(
        ("values", "student", "off"),
        [
            ({"bn_weight": 0}, True, "bn"),
            ({"adversarial_weight": 0}, True, "adversarial"),
            ({}, False, "adversarial"),
        ],
    )
    def test_shows_what_is_off_as_a_zero_without_gradient(
        self, values: dict[str, float], student: bool, off: str
    ) -> None:
        made = method(**values)
        images = batches.images().requires_grad_()
        learner = batches.small(1) if student else None
        step = batches.forward(made, images, batches.small(), learner)
        terms = made.synthesis_terms(step)
        assert list(terms) == ["bn", "onehot", "adversarial"]
        for name, term in terms.items():
            assert term.shape == ()
            assert term.requires_grad is (name != off)
        assert not terms[off].any()

    @pytest.mark.parametrize("dense", [False, True])
    def test_has_the_gradient_of_its_value(self, dense: bool) -> None:
        teacher, student = (
            batches.small(dense=dense),
            batches.small(1, dense=dense),
        )
        made = method()
        warm = batches.forward(made, batches.images(seed=3), teacher, None)
        made.after_call(warm, warm)
        assert torch.autograd.gradcheck(
            lambda images: batches.loss(made, batches.forward(made, images, teacher, student)),
            (batches.images(2).requires_grad_(),),
        )


class TestMemory:
    def filled(self, **values: float) -> fast.Fast:
        made = method(bn_weight=1, **values)
        stored = CASES.case("bn_momentum")
        received = batches.with_moments(stored["stored_mean"], stored["stored_var"])
        last = batches.batch(batches.outputs(TEACHER, batches.norm_input(received)))
        made.after_call(last, STEP)
        return made

    def test_of_the_last_step_enters_the_distance(self) -> None:
        assert CASES.close(
            self.filled().synthesis_terms(STEP)["bn"], CASES.case("bn_momentum", "loss")
        )

    def test_moves_with_each_call_and_not_with_a_step(self) -> None:
        made = self.filled()
        made.synthesis_terms(STEP)
        assert CASES.close(made.synthesis_terms(STEP)["bn"], CASES.case("bn_momentum", "loss"))
        made.after_call(STEP, STEP)
        for name in ("mean", "var"):
            wanted = CASES.tensor("bn_momentum", f"next_stored_{name}")
            buffer = made.memory.get_buffer(f"{'variance' if name == 'var' else name}_0")
            assert torch.allclose(buffer, wanted, atol=CASES.tolerance)

    def test_without_momentum_counts_for_nothing(self) -> None:
        terms = self.filled(bn_momentum=0).synthesis_terms(STEP)
        assert CASES.close(terms["bn"], CASES.case("bn_loss_l2norm_var"))

    def test_continues_exactly_from_its_state(self) -> None:
        made, again = self.filled(), method(bn_weight=1)
        again.load_state_dict(made.state_dict())
        for _ in range(2):
            wanted, found = made.synthesis_terms(STEP), again.synthesis_terms(STEP)
            assert torch.equal(found["bn"], wanted["bn"])
            made.after_call(STEP, STEP)
            again.after_call(STEP, STEP)

    def test_is_none_where_moments_do_not_count(self) -> None:
        params = fast.Fast.Params(bn_weight=0)
        made = fast.Fast(params, batches.small(1), batches.small(normed=False))
        step = batches.batch(batches.outputs(TEACHER))
        made.after_call(step, step)
        assert not made.uses_bn_statistics
        with pytest.raises(errors.IncompatibleNetworks, match="set bn_weight to 0"):
            fast.Fast(
                fast.Fast.Params(),
                batches.small(1),
                batches.small(normed=False),
            )


class TestStudent:
    @pytest.mark.parametrize("temperature", [1, 4, 20])
    def test_imitates_softened_outputs(self, temperature: int) -> None:
        made = method(temperature=temperature)
        batch = scenes.batch([0, 1, 2, 0])
        terms = made.terms(scenes.features(STUDENT), scenes.features(TEACHER), batch, scenes.MOMENT)
        assert list(terms) == ["kd"]
        assert CASES.close(terms["kd"], CASES.case(f"kd_mean_T{temperature}"))

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
    def test_looks_at_the_student_only_where_that_counts(self) -> None:
        assert method().uses_student
        assert not method(adversarial_weight=0).uses_student

    def test_draws_images_evenly(self) -> None:
        assert method().priority is None
        assert method().eviction == "oldest"

    def test_keeps_its_defaults_where_a_budget_is_given_in_part(self) -> None:
        params = fast.Fast.Params.model_validate({"synthesis": {"steps": 2, "meta": "reptile"}})
        default = fast.Fast.Params().synthesis
        assert params.synthesis == default.model_copy(update={"steps": 2, "meta": "reptile"})
        assert fast.Fast.Params.model_validate_json(params.model_dump_json()) == params
        assert (default.meta, default.student_steps, default.warmup_calls) == ("fomaml", 400, 20)

    @pytest.mark.parametrize(
        "values", [{"synthesis": {"shift": 1}}, {"bn_momentum": 1}, {"target": "cyclic"}]
    )
    def test_refuses_what_it_does_not_know(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            fast.Fast.Params.model_validate(values)
