import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.logit.test_kd import random_pair
from workers.distill import errors
from workers.distill.methods.relation import rcka
from workers.distill.networks.interface import Features


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def method(**values: float | bool | None) -> rcka.RCKA:
    params = rcka.RCKA.Params.model_validate(values)
    return rcka.RCKA(params, scenes.network(), scenes.other_network())


def features_of(logits: torch.Tensor, channels: int, side: int = 2) -> Features:
    return scenes.features(logits, final=maps(channels, len(logits), channels, side, side))


class TestLosses:
    @pytest.mark.parametrize(
        ("check", "logits", "centered", "row_norm"),
        [
            ("rcka_logits4_centered", "logits4", True, False),
            ("rcka_logits4_uncentered", "logits4", False, False),
            ("rcka_logits_centered", "logits", True, False),
            ("rcka_logits_uncentered", "logits", False, False),
            ("rcka_logits_code_rownorm", "logits", False, True),
        ],
    )
    def test_equal_the_published_values(
        self, check: str, logits: str, centered: bool, row_norm: bool
    ) -> None:
        expected = CHECKS.expected(check)
        pair = (CHECKS.tensor(f"{logits}_s"), CHECKS.tensor(f"{logits}_t"))
        samples = rcka.samples_loss(*pair, centered=centered, row_norm=row_norm)
        classes = rcka.classes_loss(*pair, centered=centered, row_norm=row_norm)
        assert CHECKS.close(1 - samples, expected["cka_samples_NxN"])
        assert CHECKS.close(1 - classes, expected["cka_classes_CxC"])
        if "loss_1_minus_form" in expected:
            assert CHECKS.close(samples + classes, expected["loss_1_minus_form"])
            # The released code's -15 * CKA of each is this less 30.
            negative = 15 * (samples + classes) - 30
            assert CHECKS.close(negative, expected["loss_negative_form_w15"])

    def test_of_features_equals_the_published_value(self) -> None:
        loss = rcka.features_loss(CHECKS.tensor("map_s"), CHECKS.tensor("map_t"), centered=False)
        assert CHECKS.close(1 - loss, CHECKS.expected("rcka_features_flattened")["cka"])

    @given(seed=st.integers(0, 10_000), centered=st.booleans())
    def test_are_zero_when_both_agree_up_to_scale(self, seed: int, centered: bool) -> None:
        _, teacher = random_pair(seed, 6, 5)
        for loss in (rcka.samples_loss, rcka.classes_loss):
            # One minus a number that rounds to one.
            assert abs(float(loss(3 * teacher, teacher, centered=centered))) < 1e-12

    def test_of_samples_ignores_a_vector_added_to_all_images(self) -> None:
        student, teacher = random_pair(1, 6, 5)
        shifted = student + torch.arange(5, dtype=torch.float64)
        one, other = (
            rcka.samples_loss(logits, teacher, centered=True) for logits in (student, shifted)
        )
        assert torch.allclose(one, other, rtol=1e-9)

    def test_of_classes_ignores_a_constant_added_to_an_image(self) -> None:
        student, teacher = random_pair(2, 6, 5)
        shifted = student + torch.arange(6, dtype=torch.float64)[:, None]
        one, other = (
            rcka.classes_loss(logits, teacher, centered=True) for logits in (student, shifted)
        )
        assert torch.allclose(one, other, rtol=1e-9)

    def test_of_samples_softened_is_that_of_probabilities(self) -> None:
        student, teacher = random_pair(3, 6, 5)
        softened = rcka.samples_loss(student, teacher, centered=True, temperature=4.0)
        by_hand = rcka.samples_loss(
            (student / 4).softmax(1), (teacher / 4).softmax(1), centered=True
        )
        assert torch.equal(softened, by_hand)
        # So a constant added to an image's logits changes nothing any more.
        shifted = student + torch.arange(6, dtype=torch.float64)[:, None]
        again = rcka.samples_loss(shifted, teacher, centered=True, temperature=4.0)
        assert torch.allclose(softened, again, rtol=1e-9)

    def test_of_classes_says_nothing_about_two_classes(self) -> None:
        student, teacher = random_pair(4, 6, 2)
        assert float(rcka.classes_loss(student, teacher, centered=True)) == 0
        assert float(rcka.classes_loss(student, teacher, centered=False)) > 0

    def test_have_the_gradients_of_their_values(self) -> None:
        student, teacher = random_pair(5, 4, 5)
        student.requires_grad_()
        for loss in (rcka.samples_loss, rcka.classes_loss):
            assert torch.autograd.gradcheck(
                lambda logits, loss=loss: loss(logits, teacher, centered=True), (student,)
            )
        small = maps(0, 4, 2, 2, 2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda seen: rcka.features_loss(seen, maps(1, 4, 3, 3, 3), centered=True), (small,)
        )


class TestRCKA:
    def test_weighs_each_relation(self) -> None:
        student, teacher = CHECKS.tensor("logits4_s"), CHECKS.tensor("logits4_t")
        labels = scenes.batch([0, 1, 2, 0])
        pair = (features_of(student, 8), features_of(teacher, 9))
        terms = method().terms(*pair, labels, scenes.MOMENT)
        assert list(terms) == ["task", "rcka_samples", "rcka_classes", "rcka_features"]
        expected = CHECKS.expected("rcka_logits4_centered")["loss_1_minus_form"]
        assert CHECKS.close(terms["rcka_samples"] + terms["rcka_classes"], 15 * expected)
        assert pair[0].final is not None
        assert pair[1].final is not None
        features = rcka.features_loss(pair[0].final, pair[1].final, centered=True)
        assert torch.allclose(terms["rcka_features"], 15 * features, rtol=1e-9)

    def test_keeps_the_names_of_what_is_switched_off(self) -> None:
        logits = CHECKS.tensor("logits4_s").requires_grad_()
        off = method(samples_weight=0, classes_weight=0, features_weight=0, task_weight=0)
        terms = off.terms(
            scenes.features(logits),
            scenes.features(CHECKS.tensor("logits4_t")),
            scenes.batch([0, 1, 2, 0]),
            scenes.MOMENT,
        )
        assert list(terms) == ["task", "rcka_samples", "rcka_classes", "rcka_features"]
        assert all(float(term.detach()) == 0 for term in terms.values())

    @pytest.mark.parametrize("images", [1, 2])
    @pytest.mark.parametrize("centered", [True, False])
    def test_is_finite_for_the_smallest_batches(self, images: int, centered: bool) -> None:
        student, teacher = random_pair(6, images, 3)
        student.requires_grad_()
        terms = method(centered=centered).terms(
            features_of(student, 8),
            features_of(teacher, 9),
            scenes.batch([0] * images),
            scenes.MOMENT,
        )
        torch.stack(list(terms.values())).sum().backward()
        assert all(term.isfinite() for term in terms.values())
        assert student.grad is not None
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize("size", [0.0, 1e4, 1e12])
    def test_is_finite_for_maps_of_zeros_and_logits_of_any_size(self, size: float) -> None:
        student = (size * random_pair(7, 5, 3)[0].float()).requires_grad_()
        teacher = torch.zeros(5, 3)
        nothing = torch.zeros(5, 8, 2, 2)
        terms = method().terms(
            scenes.features(student, final=nothing),
            scenes.features(teacher, final=nothing),
            scenes.batch([0, 1, 2, 0, 1]),
            scenes.MOMENT,
        )
        torch.stack(list(terms.values())).sum().backward()
        assert all(term.isfinite() for term in terms.values())
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_refuses_different_classes(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="teacher has 5, the student 3"):
            rcka.RCKA(rcka.RCKA.Params(), scenes.network(), scenes.other_network(classes=5))
