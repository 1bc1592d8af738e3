import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from pydantic import ValidationError

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional.priorities import Priority
from workers.distill.methods.base import Moment
from workers.distill.methods.datafree import fast, ssdkd
from workers.distill.methods.datafree.base import BufferStats

STEP = batches.batch(
    batches.outputs(TEACHER, batches.norm_input()),
    batches.outputs(STUDENT),
)
ABLATED = {"diversity": False, "difficulty": False, "prioritise": False}


def method(**values: Any) -> ssdkd.SSDKD:  # Any: what a recipe may say
    params = ssdkd.SSDKD.Params.model_validate(values)
    return ssdkd.SSDKD(params, batches.small(1), batches.small()).double()


class TestModulatedLoss:
    def test_equals_the_published_values(self) -> None:
        phi = method().phi(TEACHER, batches.FILLED)
        drawn = ssdkd.modulated_loss(TEACHER, batches.TARGETS, phi)
        # The guide's case, of the first reading: targets at random, phi of the predicted classes.
        assert CASES.close(drawn, CASES.case("modulated_task_loss_targets"))
        seen = ssdkd.modulated_loss(TEACHER, TEACHER.argmax(1), phi)
        assert CASES.close(seen, CASES.case("modulated_task_loss_argmax"))

    def test_is_cross_entropy_where_phi_is_one(self) -> None:
        actual = ssdkd.modulated_loss(TEACHER, batches.TARGETS, torch.ones(4).double())
        assert CASES.close(actual, CASES.case("ce_to_targets_mean"))

    def test_has_the_gradient_of_its_value(self) -> None:
        phi = CASES.tensor("phi_gamma_1")
        assert torch.autograd.gradcheck(
            lambda logits: ssdkd.modulated_loss(logits, batches.TARGETS, phi),
            (TEACHER.clone().requires_grad_(),),
        )


class TestPhi:
    @pytest.mark.parametrize("gamma", [0, 1, 2, 5])
    def test_equals_the_published_values(self, gamma: int) -> None:
        phi = method(gamma=gamma).phi(TEACHER, batches.FILLED)
        assert CASES.close(phi, CASES.case(f"phi_gamma_{gamma}"))

    def test_takes_the_batch_for_an_empty_buffer(self) -> None:
        phi = method().phi(TEACHER, batches.EMPTY)
        assert CASES.close(phi, CASES.case("phi_gamma_2_buffer_is_batch"))

    @pytest.mark.parametrize(
        ("off", "wanted"),
        [
            ("difficulty", "phi_gamma_2_diversity_only"),
            ("diversity", "phi_gamma_2_difficulty_only"),
        ],
    )
    def test_loses_a_factor_that_is_switched_off(self, off: str, wanted: str) -> None:
        assert CASES.close(method(**{off: False}).phi(TEACHER, batches.FILLED), CASES.case(wanted))

    def test_is_of_the_class_that_the_image_is_pulled_to(self) -> None:
        # Surely taken for class 0 with target 1, the last image is pulled with all of (1 - share).
        phi = method().phi(TEACHER, batches.FILLED, batches.TARGETS)
        shares = CASES.tensor("buffer_class_fraction")[batches.TARGETS]
        reached = TEACHER.softmax(1).gather(1, batches.TARGETS[:, None]).squeeze(1)
        assert torch.allclose(phi, (1 - shares) * (1 - reached) ** 2, rtol=1e-12)
        assert float(phi[3]) > 0.7
        step = batches.batch(batches.outputs(TEACHER))
        terms = method(bn_weight=0, onehot_weight=1).synthesis_terms(step)
        entropy = F.cross_entropy(TEACHER, batches.TARGETS, reduction="none")
        assert torch.allclose(terms["onehot"], (phi * entropy).mean(), rtol=1e-12)

    def test_is_exactly_one_without_both(self) -> None:
        phi = method(**ABLATED).phi(TEACHER, batches.FILLED)
        assert torch.equal(phi, torch.ones(4).double())

    def test_belongs_to_a_position_in_dense_tasks(self) -> None:
        phi = method().phi(batches.dense(TEACHER), batches.FILLED)
        expected = CASES.case("seg", "phi_per_pixel_gamma2_then_mean")
        assert CASES.close(phi.view(2, 2).mean(1), expected)

    def test_is_zero_for_the_only_class_of_a_buffer(self) -> None:
        buffer = BufferStats(images=3, class_shares=torch.tensor([1.0, 0.0, 0.0]))
        for normalise in (False, True):
            phi = method(normalise_modulation=normalise).phi(TEACHER[[0, 1, 3]], buffer)
            assert not phi.any()

    def test_divided_by_its_mean_keeps_its_proportions(self) -> None:
        phi = method(normalise_modulation=True).phi(TEACHER, batches.FILLED)
        plain = method().phi(TEACHER, batches.FILLED)
        assert torch.allclose(phi, plain / plain.sum() * 4, rtol=1e-12)

    @pytest.mark.parametrize("normalise", [False, True])
    def test_passes_a_gradient_only_where_asked_to(self, normalise: bool) -> None:
        def gradient(passes: bool) -> torch.Tensor:
            made = method(
                modulation_gradient=passes,
                normalise_modulation=normalise,
                bn_weight=0,
                onehot_weight=1,
            )
            logits = TEACHER.clone().requires_grad_()
            step = batches.batch(batches.outputs(logits))
            made.synthesis_terms(step)["onehot"].backward()
            assert logits.grad is not None
            return logits.grad

        logits = TEACHER.clone().requires_grad_()
        rarity = 1 - CASES.tensor("buffer_class_fraction")[batches.TARGETS]
        reached = logits.softmax(1).gather(1, batches.TARGETS[:, None]).squeeze(1)
        phi = rarity * (1 - reached) ** 2
        if normalise:
            phi = phi / phi.mean()
        entropy = F.cross_entropy(logits, batches.TARGETS, reduction="none")
        (whole,) = torch.autograd.grad((phi * entropy).mean(), logits, retain_graph=True)
        (constant,) = torch.autograd.grad((phi.detach() * entropy).mean(), logits)
        assert torch.allclose(gradient(True), whole, rtol=1e-9, atol=1e-12)
        assert torch.allclose(gradient(False), constant, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(whole, constant, rtol=1e-2)


class TestSynthesis:
    def test_has_the_published_total(self) -> None:
        made = method(bn_weight=10, onehot_weight=0.5, adversarial_weight=1.1)
        # The published total has the phi of predicted classes.
        entropy = F.cross_entropy(TEACHER, batches.TARGETS, reduction="none")
        phi = made.phi(TEACHER, batches.FILLED, batches.TARGETS)
        other = 0.5 * (float((phi * entropy).mean()) - CASES.case("modulated_task_loss_targets"))
        total = float(batches.loss(made, STEP))
        assert total == pytest.approx(CASES.case("combined_generator_loss") + other, abs=2e-6)

    def test_aims_at_what_the_teacher_sees_where_asked_to(self) -> None:
        terms = method(target="argmax", onehot_weight=1).synthesis_terms(STEP)
        assert CASES.close(terms["onehot"], CASES.case("modulated_task_loss_argmax"))

    def test_counts_every_row_without_the_mask(self) -> None:
        terms = method(masked=False).synthesis_terms(STEP)
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_plain"))

    def test_modulates_every_position_of_a_dense_task(self) -> None:
        step = batches.batch(
            batches.outputs(batches.dense(TEACHER)),
            batches.outputs(batches.dense(STUDENT)),
            targets=torch.tensor([2, 2]),
        )
        terms = method(bn_weight=0, onehot_weight=1).synthesis_terms(step)
        assert CASES.close(terms["onehot"], CASES.case("modulated_task_loss_argmax"))
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_masked"))


class TestWithoutItsParts:
    """What is left when phi and priorities are switched off is Fast-DFKD."""

    @pytest.mark.parametrize("dense", [False, True])
    @pytest.mark.parametrize("target", ["random", "argmax"])
    def test_shares_every_term_of_synthesis(self, dense: bool, target: str) -> None:
        values = {"bn_weight": 7, "onehot_weight": 0.4, "adversarial_weight": 1.3, "target": target}
        teacher, student = (
            batches.small(dense=dense),
            batches.small(1, dense=dense),
        )
        mine = method(**ABLATED, **values)
        theirs = fast.Fast(fast.Fast.Params.model_validate(values), student, teacher).double()
        for seed in range(3):
            images = batches.images(seed=seed)
            step = batches.forward(mine, images, teacher, student)
            expected, terms = theirs.synthesis_terms(step), mine.synthesis_terms(step)
            assert list(terms) == list(expected)
            for name, term in expected.items():
                assert torch.allclose(terms[name], term, rtol=1e-12), name
            kept = batches.forward(mine, images**2, teacher, None)
            mine.after_call(step, kept)
            theirs.after_call(step, kept)

    def test_shares_the_students_loss_and_the_way_images_are_drawn(self) -> None:
        mine = method(**ABLATED)
        theirs = fast.Fast(fast.Fast.Params(), batches.small(1), batches.small())
        seen = scenes.features(STUDENT), scenes.features(TEACHER), scenes.batch([0, 1, 2, 0])
        assert torch.equal(
            mine.terms(*seen, scenes.MOMENT)["kd"], theirs.terms(*seen, scenes.MOMENT)["kd"]
        )
        assert mine.priority is theirs.priority is None
        assert mine.eviction == theirs.eviction

    def test_draws_the_same_targets(self) -> None:
        theirs = fast.Fast(fast.Fast.Params(), batches.small(1), batches.small())
        mine = method(**ABLATED)
        torch.manual_seed(4)
        expected = theirs.targets(50)
        torch.manual_seed(4)
        assert torch.equal(mine.targets(50), expected)
        assert set(expected.tolist()) == {0, 1, 2}


class TestCorrectedKD:
    RAW = CASES.tensor("w_step0_beta_0.4_raw")

    def loss(self, omega: torch.Tensor, *, normalise: bool = False) -> torch.Tensor:
        return ssdkd.corrected_kd(STUDENT, TEACHER, omega, temperature=1.0, normalise=normalise)

    def test_equals_the_published_value(self) -> None:
        assert CASES.close(self.loss(self.RAW), CASES.case("is_weighted_kd_loss_step0"))

    def test_divides_weights_by_their_largest(self) -> None:
        each = CASES.tensor("kd_each_T1")
        expected = (CASES.tensor("w_step0_beta_0.4_max_normalised") * each).mean()
        # Two rounded factors.
        assert torch.allclose(
            self.loss(self.RAW, normalise=True), expected, atol=2 * CASES.tolerance
        )
        scaled = self.loss(5 * self.RAW, normalise=True)
        assert torch.allclose(scaled, self.loss(self.RAW, normalise=True), rtol=1e-12)

    @pytest.mark.parametrize("normalise", [False, True])
    def test_counts_all_alike_for_ones(self, normalise: bool) -> None:
        loss = self.loss(torch.ones(4).double(), normalise=normalise)
        assert CASES.close(loss, CASES.case("kd_mean_T1"))

    @pytest.mark.parametrize("temperature", [4, 20])
    def test_keeps_the_size_of_gradients_at_any_temperature(self, temperature: int) -> None:
        loss = ssdkd.corrected_kd(
            STUDENT,
            TEACHER,
            torch.ones(4).double(),
            temperature=float(temperature),
            normalise=True,
        )
        assert CASES.close(loss, CASES.case(f"kd_mean_T{temperature}"))

    def test_weighs_an_image_of_a_dense_task_by_all_its_positions(self) -> None:
        omega = torch.tensor([2.0, 0.5]).double()
        loss = ssdkd.corrected_kd(
            batches.dense(STUDENT),
            batches.dense(TEACHER),
            omega,
            temperature=1.0,
            normalise=False,
        )
        assert CASES.close(loss, (omega * CASES.tensor("seg", "kd_per_image")).mean().tolist())

    def test_has_the_gradient_of_its_value(self) -> None:
        assert torch.autograd.gradcheck(
            lambda logits: ssdkd.corrected_kd(
                logits, TEACHER, self.RAW, temperature=4.0, normalise=True
            ),
            (STUDENT.clone().requires_grad_(),),
        )


class TestStudent:
    def loss(self, weights: torch.Tensor | None, **values: Any) -> torch.Tensor:
        made = method(temperature=1, **values)
        batch: Batch = dataclasses.replace(scenes.batch([0, 1, 2, 0]), weights=weights)
        seen = scenes.features(STUDENT), scenes.features(TEACHER)
        terms = made.terms(*seen, batch, scenes.MOMENT)
        assert list(terms) == ["kd"]
        return terms["kd"]

    def test_is_corrected_by_the_weights_of_what_was_drawn(self) -> None:
        raw = TestCorrectedKD.RAW
        plain = self.loss(raw)
        assert CASES.close(plain, CASES.case("is_weighted_kd_loss_step0"))
        divided = self.loss(raw, normalise_weights=True)
        assert torch.allclose(divided, plain / raw.max(), rtol=1e-12)

    def test_is_not_corrected_where_that_is_off_or_nothing_was_weighed(self) -> None:
        assert CASES.close(
            self.loss(TestCorrectedKD.RAW, correct_loss=False), CASES.case("kd_mean_T1")
        )
        assert CASES.close(self.loss(None), CASES.case("kd_mean_T1"))


class TestPriority:
    def test_has_the_constants_of_the_recipe(self) -> None:
        config = method(alpha=0.6, beta=0.3, epsilon=0.01, eviction="lowest")
        assert config.priority == Priority(alpha=0.6, beta=0.3, epsilon=0.01)
        assert config.eviction == "lowest"
        assert method().priority == Priority(alpha=1.0, beta=0.4, epsilon=1e-6)

    def test_is_none_where_it_is_switched_off(self) -> None:
        assert method(prioritise=False).priority is None

    @pytest.mark.parametrize("name", ["beta", "final_beta"])
    def test_refuses_a_beta_that_never_settles(self, name: str) -> None:
        with pytest.raises(ValidationError):
            method(**{name: 1.0})

    def test_keeps_beta_unless_told_where_to_go(self) -> None:
        made = method()
        made.after_step(Moment(epoch=50, step=100, steps_per_epoch=2))
        assert made.beta == 0.4

    def test_moves_beta_with_each_epoch_that_is_over(self) -> None:
        made = method(beta=0.2, final_beta=0.8, beta_epochs=3)
        betas = []
        for step in range(1, 11):
            assert made.priority is not None
            betas.append(made.priority.beta)
            made.after_step(Moment(epoch=math.ceil(step / 2), step=step, steps_per_epoch=2))
        expected = [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 0.8, 0.8]
        assert betas == pytest.approx(expected, rel=1e-12)
        assert made.beta < 1

    def test_moves_beta_over_all_epochs_unless_told_over_how_many(self) -> None:
        made = method(beta=0.2, final_beta=0.8)
        made.after_step(Moment(epoch=3, step=6, steps_per_epoch=2, epochs=12))
        assert made.beta == pytest.approx(0.2 + 0.6 * 3 / 12, rel=1e-12)

    def test_continues_from_a_checkpoint_of_an_earlier_version(self) -> None:
        made, again = (method(beta=0.2, final_beta=0.8, beta_epochs=4) for _ in range(2))
        made.after_step(Moment(epoch=1, step=2, steps_per_epoch=2))
        state = made.state_dict()
        del state["beta_epochs"]
        again.load_state_dict(state)
        assert again.beta == pytest.approx(0.35, rel=1e-12)

    @pytest.mark.parametrize("beta_epochs", [3, None])
    @pytest.mark.parametrize("step", [3, 4])
    def test_continues_exactly_from_its_state(self, step: int, beta_epochs: int | None) -> None:
        values = {"beta": 0.2, "final_beta": 0.8, "beta_epochs": beta_epochs}
        made, again = method(**values), method(**values)
        made.after_step(Moment(epoch=2, step=step, steps_per_epoch=2, epochs=3))
        made.after_call(STEP, STEP)
        again.load_state_dict(made.state_dict())
        assert again.priority == made.priority
        assert again.beta == pytest.approx(0.4 if step == 3 else 0.6, rel=1e-12)
        expected, terms = made.synthesis_terms(STEP), again.synthesis_terms(STEP)
        assert all(torch.equal(terms[name], expected[name]) for name in expected)


class TestSSDKD:
    def test_leaves_the_teacher_as_it_is(self) -> None:
        teacher, student = batches.small(), batches.small(1)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        made = method()
        step = batches.forward(made, batches.images().requires_grad_(), teacher, student)
        batches.loss(made, step).backward()
        made.after_call(step, step)
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert step.images.grad is not None
        assert step.images.grad.any()

    def test_needs_two_classes(self) -> None:
        networks = batches.small(1, classes=1), batches.small(classes=1)
        with pytest.raises(errors.IncompatibleNetworks, match="at least 2 classes, got 1"):
            ssdkd.SSDKD(ssdkd.SSDKD.Params(), *networks)
