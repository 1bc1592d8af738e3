import math
from typing import Literal

import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.logit.test_kd import network, random_pair
from workers.distill import errors
from workers.distill.functional import standardization
from workers.distill.methods.base import Terms
from workers.distill.methods.logit import mlld
from workers.distill.networks.interface import Features

Variant = Literal["clean", "reference"]
LABELS = [0, 1, 2, 1, 0]


def two_views(weak: torch.Tensor, strong: torch.Tensor) -> Features:
    return Features(logits=weak, pooled=weak, strong=scenes.features(strong))


def terms(student: Features, teacher: Features, variant: Variant) -> Terms:
    params = mlld.MLLD.Params(variant=variant)
    classes = student.logits.shape[1]
    method = mlld.MLLD(params, network(classes), network(classes))
    return method.terms(
        student, teacher, scenes.batch(LABELS[: len(student.logits)]), scenes.MOMENT
    )


def both_views(seed: int, *shape: int) -> tuple[Features, Features]:
    weak, strong = random_pair(seed, *shape), random_pair(seed + 100, *shape)
    return two_views(weak[0], strong[0]), two_views(weak[1], strong[1])


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """Softened KL of one sample, number by number."""
    one, other = (
        [math.exp(value / temperature) for value in logits.tolist()]
        for logits in (student, teacher)
    )
    return temperature**2 * sum(
        q / sum(other) * math.log((q / sum(other)) / (p / sum(one)))
        for p, q in zip(one, other, strict=True)
    )


class TestMultiLevelLoss:
    def test_equals_the_published_values(self) -> None:
        expected = CHECKS.expected("mlld_parts")
        student, teacher = CHECKS.tensor("logits_s"), CHECKS.tensor("logits_t")
        loss = mlld.multi_level_loss(
            student, teacher, mlld.Chosen.everything(teacher), temperature=4.0
        )
        assert CHECKS.close(loss.instance, expected["instance_kd"])
        assert CHECKS.close(loss.batch, expected["batch_level"])
        assert CHECKS.close(loss.classes, expected["class_level"])

    def test_compares_only_what_is_chosen(self) -> None:
        student, teacher = random_pair(0, 4, 5)
        chosen = mlld.Chosen(
            torch.tensor([True, False, True, False]),
            torch.tensor([False, True, True, False, True]),
        )
        loss = mlld.multi_level_loss(student, teacher, chosen, temperature=2.0)
        rows = mlld.multi_level_loss(
            student[[0, 2]], teacher[[0, 2]], mlld.Chosen.everything(teacher[:2]), temperature=2.0
        )
        assert torch.allclose(loss.instance, rows.instance, rtol=1e-12)
        assert torch.allclose(loss.batch, rows.batch, rtol=1e-12)
        one, other = ((logits / 2).softmax(1)[:, [1, 2, 4]] for logits in (student, teacher))
        classes = (other.mT @ other - one.mT @ one).square().sum() / 3
        assert torch.allclose(loss.classes, classes, rtol=1e-12)

    def test_standardizes_the_instance_level_only(self) -> None:
        student, teacher = random_pair(1, 4, 5)
        everything = mlld.Chosen.everything(teacher)
        plain, scaled = (
            mlld.multi_level_loss(student, teacher, everything, temperature=2.0, by=by)
            for by in ("none", "sample")
        )
        one, other = (
            standardization.standardized(logits, by="sample") for logits in (student, teacher)
        )
        expected = mlld.multi_level_loss(one, other, everything, temperature=2.0)
        assert torch.allclose(scaled.instance, expected.instance, rtol=1e-12)
        assert torch.equal(scaled.batch, plain.batch)
        assert torch.equal(scaled.classes, plain.classes)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = random_pair(2, 4, 5)
        chosen = mlld.Chosen.unsure(teacher)
        assert torch.autograd.gradcheck(
            lambda logits: torch.stack(
                mlld.multi_level_loss(logits, teacher, chosen, temperature=3.0)
            ).sum(),
            (student.requires_grad_(),),
        )

    def test_the_teachers_less_sure_half_is_chosen(self) -> None:
        teacher = torch.tensor([[5.0, 0, 0], [1, 0, 0], [0, 9, 0], [0, 0, 2.0]])
        chosen = mlld.Chosen.unsure(teacher)
        assert chosen.samples.tolist() == [False, True, False, True]
        assert chosen.classes.tolist() == [False, True, True]


class TestMLLD:
    def test_clean_sums_temperatures_and_views_over_the_unsure_half(self) -> None:
        student, teacher = both_views(3, 4, 5)
        actual = terms(student, teacher, "clean")
        sureness = teacher.logits.softmax(1).amax(1)
        kept = sureness.argsort()[:2].tolist()
        assert student.strong is not None
        assert teacher.strong is not None
        expected = sum(
            divergence(one[n], other[n], temperature) / 2
            for one, other in (
                (student.logits, teacher.logits),
                (student.strong.logits, teacher.strong.logits),
            )
            for temperature in (2, 3, 4, 5, 6)
            for n in kept
        )
        assert math.isclose(float(actual["instance"]), 0.9 * expected, rel_tol=1e-9)

    @pytest.mark.parametrize(("classes", "factor"), [(100, 1.0), (10, 0.1), (400, 4.0)])
    def test_batch_and_class_levels_keep_the_published_proportion(
        self, classes: int, factor: float
    ) -> None:
        """0.64 C/N and its square: at 64 samples, 1 where there are 100 classes."""
        student, teacher = both_views(3, 64, classes)
        params = mlld.MLLD.Params()
        method = mlld.MLLD(params, network(classes), network(classes))
        batch = scenes.batch([0] * 64)
        found = method.terms(student, teacher, batch, scenes.MOMENT)
        chosen = mlld.Chosen.unsure(teacher.logits)
        assert student.strong is not None
        assert teacher.strong is not None
        plain = mlld.added(
            mlld.multi_level_loss(*pair, chosen, temperature=temperature)
            for temperature in (4.0, 3.0, 5.0, 2.0, 6.0)
            for pair in (
                (student.logits, teacher.logits),
                (student.strong.logits, teacher.strong.logits),
            )
        )
        assert torch.allclose(found["instance"], 0.9 * plain.instance)
        assert torch.allclose(found["batch"], 0.9 * factor * plain.batch)
        assert torch.allclose(found["class"], 0.9 * factor**2 * plain.classes)

    def test_reference_scales_sums_and_repeats_the_weak_view(self) -> None:
        student, teacher = both_views(4, 4, 5)
        actual = terms(student, teacher, "reference")
        assert student.strong is not None
        assert teacher.strong is not None

        def mean(one: torch.Tensor, other: torch.Tensor, temperature: int) -> float:
            return sum(divergence(one[n], other[n], temperature) for n in range(4)) / 4

        weak = {
            temperature: mean(student.logits, teacher.logits, temperature)
            for temperature in (2, 3, 4, 5, 6)
        }
        strong = [
            mean(student.strong.logits, teacher.strong.logits, temperature)
            for temperature in (3, 4, 5)
        ]
        expected = 0.5 * sum(weak.values()) + sum(strong) + weak[2] + weak[6]
        assert math.isclose(float(actual["instance"]), 0.9 * expected, rel_tol=1e-9)
        levels = [
            mlld.multi_level_loss(
                student.logits,
                teacher.logits,
                mlld.Chosen.everything(teacher.logits),
                temperature=temperature,
            )
            for temperature in (2.0, 3.0, 4.0, 5.0, 6.0)
        ]
        batch = 0.9 * 0.5 * sum(float(level.batch) for level in levels)
        # Three of five classes are not above the median.
        classes = 0.9 * 0.6 * sum(float(level.classes) for level in levels)
        assert math.isclose(float(actual["batch"]), batch, rel_tol=1e-9)
        assert math.isclose(float(actual["class"]), classes, rel_tol=1e-9)

    def test_learns_the_labels_on_both_views(self) -> None:
        student, teacher = both_views(5, 4, 5)
        actual = terms(student, teacher, "clean")
        assert student.strong is not None
        labels = torch.tensor(LABELS[:4])
        expected = [
            torch.nn.functional.cross_entropy(logits, labels)
            for logits in (student.logits, student.strong.logits)
        ]
        assert torch.allclose(actual["task"], 0.1 * torch.stack(expected).sum(), rtol=1e-12)

    @pytest.mark.parametrize("variant", ["clean", "reference"])
    def test_is_zero_when_both_agree(self, variant: Variant) -> None:
        _, teacher = both_views(6, 4, 5)
        actual = terms(teacher, teacher, variant)
        assert list(actual) == ["task", "instance", "batch", "class"]
        assert [float(actual[name]) for name in ("instance", "batch", "class")] == [0, 0, 0]

    @pytest.mark.parametrize("variant", ["clean", "reference"])
    def test_ignores_a_constant_added_to_a_row(self, variant: Variant) -> None:
        student, teacher = both_views(7, 4, 5)
        assert student.strong is not None
        offset = torch.arange(4, dtype=torch.float64)[:, None]
        shifted = two_views(student.logits + offset, student.strong.logits - offset)
        one, other = terms(student, teacher, variant), terms(shifted, teacher, variant)
        for name in one:
            assert torch.allclose(one[name], other[name], rtol=1e-9), name

    @pytest.mark.parametrize("variant", ["clean", "reference"])
    @pytest.mark.parametrize("samples", [1, 2])
    def test_is_finite_for_the_smallest_batches_and_extreme_logits(
        self, samples: int, variant: Variant
    ) -> None:
        student, teacher = (
            two_views(sign * 1e4 * logits, sign * 1e4 * logits)
            for sign, logits in zip((1, -1), random_pair(8, samples, 3), strict=True)
        )
        student.logits.requires_grad_()
        loss = torch.stack(list(terms(student, teacher, variant).values())).sum()
        loss.backward()
        assert loss.isfinite()
        assert student.logits.grad is not None
        assert student.logits.grad.isfinite().all()

    def test_refuses_to_work_with_one_view(self) -> None:
        student, teacher = both_views(9, 4, 5)
        alone = scenes.features(student.logits)
        with pytest.raises(errors.BadRecipe, match="two views of every image"):
            terms(alone, teacher, "clean")

    def test_asks_for_a_strong_view_of_images_that_are_not_mixed(self) -> None:
        assert mlld.MLLD.uses_strong_view
        assert not mlld.MLLD.accepts_mixed
