from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from torch import nn

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill import errors
from workers.distill.methods.datafree import cmi
from workers.distill.methods.datafree.base import SynthesisBatch
from workers.distill.networks.interface import batch_norms

LOCAL, WHOLE = CASES.tensor("cmi", "local_raw"), CASES.tensor("cmi", "global_raw")
SEED = 8
"""Of the head: with two hidden units, most others leave one of them without any gradient."""


def method(**values: Any) -> cmi.CMI:  # Any: what a recipe may say
    params = cmi.CMI.Params.model_validate({"head_width": 4, **values})
    student, teacher = batches.small(1), batches.small()
    torch.manual_seed(SEED)
    return cmi.CMI(params, student, teacher).double()


def step(
    made: cmi.CMI, seed: int = 0, *, uses_student: bool = True, count: int = 4
) -> SynthesisBatch:
    images = batches.images(count, seed).requires_grad_()
    student = batches.small(1) if uses_student else None
    return batches.forward(made, images, batches.small(), student)


def numbered(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, 2)


class TestBank:
    def test_keeps_the_latest_rows(self) -> None:
        bank = cmi.Bank(2, size=5)
        for first, count in ((0, 3), (3, 3), (6, 1)):
            bank.append(numbered(first, count), 100 + numbered(first, count))
        assert bank.local[:, 0].tolist() == [2, 3, 4, 5, 6]
        assert bank.whole[:, 0].tolist() == [102, 103, 104, 105, 106]

    def test_keeps_the_end_of_a_batch_that_is_larger(self) -> None:
        bank = cmi.Bank(2, size=3)
        bank.append(numbered(0, 2), numbered(0, 2))
        bank.append(numbered(2, 5), numbered(2, 5))
        assert bank.local[:, 0].tolist() == [4, 5, 6]

    def test_draws_different_rows_and_both_views_of_each(self) -> None:
        bank = cmi.Bank(2, size=9)
        bank.append(numbered(0, 9), 100 + numbered(0, 9))
        seen: set[float] = set()
        for _ in range(20):
            local, whole = bank.draw(4)
            assert len(local[:, 0].unique()) == 4
            assert torch.equal(whole, local + 100)
            seen.update(local[:, 0].tolist())
        assert len(seen) == 9

    @pytest.mark.parametrize("count", [0, 2])
    def test_draws_all_rows_while_there_are_few(self, count: int) -> None:
        bank = cmi.Bank(2, size=9)
        bank.append(numbered(0, count), numbered(0, count))
        local, _ = bank.draw(4)
        assert sorted(local[:, 0].tolist()) == list(range(count))

    def test_keeps_no_gradient(self) -> None:
        bank = cmi.Bank(2, size=9)
        bank.append(numbered(0, 2).clone().requires_grad_(), numbered(0, 2))
        assert not bank.local.requires_grad

    @pytest.mark.parametrize("rows_before", [0, 1, 6])
    def test_takes_a_state_of_any_number_of_rows(self, rows_before: int) -> None:
        bank, again = cmi.Bank(2, size=7), cmi.Bank(2, size=7)
        bank.append(numbered(0, 4), 100 + numbered(0, 4))
        again.append(numbered(50, rows_before), numbered(50, rows_before))
        again.load_state_dict(bank.state_dict())
        for each in (bank, again):
            each.append(numbered(4, 5), numbered(4, 5))
        assert torch.equal(again.local, bank.local)
        assert torch.equal(again.whole, bank.whole)
        torch.manual_seed(1)
        expected = bank.draw(3)
        torch.manual_seed(1)
        assert torch.equal(again.draw(3)[0], expected[0])


class TestContrast:
    def test_equals_the_published_value_with_a_bank(self) -> None:
        made = method()
        made.bank.append(LOCAL[2:], WHOLE[2:])
        loss = made.contrast(nn.Identity(), LOCAL[:2], WHOLE[:2])
        assert CASES.close(loss, CASES.case("cmi", "loss_with_bank"))

    def test_equals_the_published_value_without_a_bank(self) -> None:
        loss = method().contrast(nn.Identity(), LOCAL, WHOLE)
        assert CASES.close(loss, CASES.case("cmi", "loss_without_bank"))

    def test_compares_what_norms_receive_of_both_views(self) -> None:
        made = method(contrast_weight=3.0)
        batch = step(made)
        assert made.head is not None
        local = made.head((batch.images**2).mean((2, 3)))
        whole = made.head(batch.images.mean((2, 3)))
        scores = F.normalize(local, dim=1) @ F.normalize(whole, dim=1).T / 0.2
        expected = 3 * F.cross_entropy(scores, torch.arange(4))
        assert torch.allclose(made.synthesis_terms(batch)["contrast"], expected, rtol=1e-9)

    def test_draws_no_more_of_the_bank_than_it_is_told(self) -> None:
        made = method(bank_draws=2)
        made.bank.append(LOCAL.repeat(3, 1), WHOLE.repeat(3, 1))
        counted = nn.Identity()
        seen: list[int] = []
        counted.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
        made.contrast(counted, LOCAL, WHOLE)
        assert seen == [5, 5]


class TestSynthesis:
    def test_has_the_published_terms(self) -> None:
        made = method(adversarial_weight=1)
        other = batches.norm_input(batches.images(4, 9))
        first = batches.norm_input()
        batch = batches.batch(
            batches.outputs(TEACHER, first),
            batches.outputs(STUDENT),
            # Of another size, as if distances were taken of the second view by mistake.
            second_view=batches.outputs(TEACHER, batches.norm_input(other.received[:2])),
        )
        terms = made.synthesis_terms(batch)
        assert CASES.close(terms["bn"], CASES.case("bn_loss_l2norm_var"))
        assert CASES.close(terms["onehot"], CASES.case("ce_to_targets_mean"))
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_masked"))

    def test_aims_at_what_the_teacher_sees_where_asked_to_and_in_dense_tasks(self) -> None:
        values = {"bn_weight": 0, "contrast_weight": 0}
        plain = batches.batch(batches.outputs(TEACHER))
        term = method(target="argmax", **values).synthesis_terms(plain)["onehot"]
        assert CASES.close(term, CASES.case("ce_to_argmax_mean"))
        dense = batches.outputs(batches.dense(TEACHER))
        batch = batches.batch(dense, targets=torch.tensor([2, 2]))
        assert CASES.close(
            method(**values).synthesis_terms(batch)["onehot"], CASES.case("ce_to_argmax_mean")
        )

    def test_has_the_gradient_of_its_value(self) -> None:
        # The first view gets no gradient from the contrast, by design: only the rest is checked.
        made = method(contrast_weight=0)
        assert torch.autograd.gradcheck(
            lambda images: batches.loss(
                made,
                batches.forward(made, images, batches.small(), batches.small(1)),
            ),
            (batches.images(2).requires_grad_(),),
            fast_mode=True,
        )
        local = LOCAL.clone().requires_grad_()
        contrasting = method()
        assert contrasting.head is not None
        assert torch.autograd.gradcheck(
            lambda rows: contrasting.contrast(contrasting.head or nn.Identity(), rows, WHOLE),
            (local,),
            fast_mode=True,
        )

    def test_moves_images_by_their_cropped_view_alone(self) -> None:
        made = method()
        batch = step(made)
        (gradient,) = torch.autograd.grad(
            made.synthesis_terms(batch)["contrast"], batch.images, retain_graph=True
        )
        assert batch.second_view is not None
        local = batch.second_view.norms[0].received
        (through,) = torch.autograd.grad(made.synthesis_terms(batch)["contrast"], local)
        # The second view of these scenes are the squares of the images.
        assert torch.allclose(gradient, through * 2 * batch.images, rtol=1e-9)


class TestHead:
    def test_is_an_mlp_as_wide_as_all_norms_together(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        made = cmi.CMI(cmi.CMI.Params(), student, teacher)
        width = sum(norm.num_features for norm in batch_norms(teacher).values())
        assert made.head is not None
        shapes = [tuple(parameter.shape) for parameter in made.head.parameters()]
        assert shapes == [(width, width), (width,), (256, width), (256,)]

    def test_learns_with_the_images(self) -> None:
        made = method()
        made.bank.append(LOCAL, WHOLE)
        batches.loss(made, step(made)).backward()
        assert made.head is not None
        ((module, differs),) = made.synthesis_modules().values()
        assert module is made.head
        assert differs == {"lr": 1e-3, "betas": (0.9, 0.999)}
        for parameter in made.head.parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()

    def test_is_not_there_where_nothing_is_contrasted(self) -> None:
        made = method(contrast_weight=0)
        assert made.synthesis_modules() == {}
        made.after_call(step(made), step(made))
        assert not len(made.bank.local)


class TestChannels:
    def test_leaves_the_teacher_as_it_is(self) -> None:
        teacher = scenes.network()
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        for training in (True, False):
            teacher.train(training)
            expected = sum(norm.num_features for norm in batch_norms(teacher).values())
            assert cmi.channels(teacher) == expected
            assert teacher.training is training
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, before[name])

    def test_leaves_out_norms_that_no_image_reaches(self) -> None:
        teacher = batches.small()
        teacher.spare = nn.BatchNorm2d(7)
        assert cmi.channels(teacher) == 2


class TestCMI:
    def test_puts_what_is_kept_into_the_bank(self) -> None:
        made = method()
        last, kept = step(made), step(made, seed=1)
        made.after_call(last, kept)
        images = kept.images.detach()
        assert torch.allclose(made.bank.whole, images.mean((2, 3)), rtol=1e-12)
        assert torch.allclose(made.bank.local, (images**2).mean((2, 3)), rtol=1e-12)
        made.after_call(last, last)
        assert len(made.bank.local) == 8

    def test_never_keeps_more_than_the_size_of_its_bank(self) -> None:
        made = method(bank_size=6)
        for seed in range(3):
            made.after_call(step(made), step(made, seed=seed))
        images = batches.images(4, 2)
        assert len(made.bank.whole) == 6
        assert torch.allclose(made.bank.whole[2:], images.mean((2, 3)), rtol=1e-12)

    def test_continues_exactly_from_its_state(self) -> None:
        made = method(bank_draws=3)
        for seed in range(2):
            made.after_call(step(made), step(made, seed=seed))
        state = {name: value.clone() for name, value in made.state_dict().items()}
        numbers = torch.get_rng_state()
        expected = made.synthesis_terms(step(made, seed=7))["contrast"]
        torch.manual_seed(99)
        again = cmi.CMI(made.params, batches.small(1), batches.small()).double()
        again.load_state_dict(state)
        torch.set_rng_state(numbers)
        assert torch.equal(again.synthesis_terms(step(again, seed=7))["contrast"], expected)

    def test_imitates_softened_outputs(self) -> None:
        seen = scenes.features(STUDENT), scenes.features(TEACHER), scenes.batch([0, 1, 2, 0])
        assert CASES.close(method().terms(*seen, scenes.MOMENT)["kd"], CASES.case("kd_mean_T20"))
        student, teacher = (
            batches.outputs(batches.dense(logits)).features for logits in (STUDENT, TEACHER)
        )
        terms = method(temperature=1).terms(student, teacher, scenes.batch([0, 1]), scenes.MOMENT)
        assert CASES.close(terms["kd"], CASES.case("seg", "kd_per_pixel_mean"))

    def test_begins_each_call_anew_and_looks_twice(self) -> None:
        made = method()
        assert made.renews_generator
        assert made.uses_second_view
        assert not method(contrast_weight=0).uses_second_view
        assert made.uses_student
        assert not method(adversarial_weight=0).uses_student
        once = batches.batch(batches.outputs(TEACHER, batches.norm_input()))
        with pytest.raises(ValueError, match="needs a second view"):
            made.synthesis_terms(once)

    def test_needs_norms_for_anything_but_classes_and_competition(self) -> None:
        student, teacher = batches.small(1), batches.small(normed=False)
        for values in ({}, {"bn_weight": 0}, {"contrast_weight": 0}):
            params = cmi.CMI.Params.model_validate(values)
            with pytest.raises(errors.IncompatibleNetworks, match="batch norms"):
                cmi.CMI(params, student, teacher)
        made = cmi.CMI(cmi.CMI.Params(bn_weight=0, contrast_weight=0), student, teacher)
        assert not made.uses_bn_statistics
        terms = made.synthesis_terms(batches.batch(batches.outputs(TEACHER)))
        assert CASES.close(terms["onehot"], CASES.case("ce_to_targets_mean"))

    def test_keeps_its_defaults_where_a_budget_is_given_in_part(self) -> None:
        params = cmi.CMI.Params.model_validate({"synthesis": {"steps": 500}})
        default = cmi.CMI.Params().synthesis
        assert params.synthesis == default.model_copy(update={"steps": 500})
        assert cmi.CMI.Params.model_validate_json(params.model_dump_json()) == params
        assert (default.steps, default.learning_rate, default.student_steps) == (200, 1e-3, 400)
