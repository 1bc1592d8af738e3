import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from torch import nn

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.functional import classifiers
from workers.distill.methods.feature import catkd
from workers.distill.networks.interface import Network


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestCATLoss:
    @pytest.mark.parametrize("check", ["cat_unnormalised", "cat_normalised"])
    def test_equals_the_published_value(self, check: str) -> None:
        params = CHECKS.parameters(check)
        loss = catkd.cat_loss(
            CHECKS.tensor("map_s_8x8"),
            CHECKS.tensor("map_t_8x8"),
            side=params["cam_resolution"],
            normalize=params["normalize"],
        )
        assert CHECKS.close(loss, CHECKS.expected(check)["loss"])

    def test_of_one_cell_is_the_squared_difference_of_logits(self) -> None:
        student, teacher = maps(0, 3, 4, 4, 4), maps(1, 3, 4, 2, 2)
        loss = catkd.cat_loss(student, teacher, side=1, normalize=False)
        expected = (student.mean((2, 3)) - teacher.mean((2, 3))).square().mean()
        assert torch.allclose(loss, expected, rtol=1e-9)

    def test_normalised_ignores_the_strength_of_each_map(self) -> None:
        student, teacher = maps(2, 3, 4, 4, 4), maps(3, 3, 4, 4, 4)
        strength = torch.rand(3, 4, 1, 1, dtype=torch.float64) + 0.5
        one, other = (
            catkd.cat_loss(seen, teacher, side=2, normalize=True)
            for seen in (student, strength * student)
        )
        assert torch.allclose(one, other, rtol=1e-9)
        assert float(catkd.cat_loss(teacher, teacher, side=2, normalize=True)) == 0

    @pytest.mark.parametrize("normalize", [False, True])
    def test_has_the_gradient_of_its_value(self, normalize: bool) -> None:
        student, teacher = maps(4, 2, 3, 4, 4).requires_grad_(), maps(5, 2, 3, 2, 2)
        assert torch.autograd.gradcheck(
            lambda seen: catkd.cat_loss(seen, teacher, side=2, normalize=normalize), (student,)
        )

    @pytest.mark.parametrize("normalize", [False, True])
    def test_is_finite_for_maps_of_zeros(self, normalize: bool) -> None:
        student = torch.zeros(1, 3, 4, 4, requires_grad=True)
        loss = catkd.cat_loss(student, torch.zeros(1, 3, 4, 4), side=2, normalize=normalize)
        assert gradients.is_finite(loss, student)
        assert float(loss.detach()) == 0


class TestClassMaps:
    def test_average_to_the_logits(self) -> None:
        network = scenes.network()
        features = network.observe(scenes.pictures(3))
        maps_of = classifiers.class_maps(
            classifiers.last_map(features.final),
            *classifiers.layer(network.pooled_classifier()),
            add_bias=True,
        )
        # float32, in another order.
        assert torch.allclose(maps_of.mean((2, 3)), features.logits, atol=1e-5)

    def test_need_a_map_and_a_classifier(self) -> None:
        with pytest.raises(ValueError, match="no last map"):
            classifiers.last_map(None)
        with pytest.raises(ValueError, match="no classifier"):
            classifiers.layer(None)


def with_biases(network: Network, seed: int) -> nn.Linear:
    """Give the classifier biases that show, and return it."""
    classifier = network.pooled_classifier()
    assert classifier is not None
    assert classifier.bias is not None
    with torch.no_grad():
        classifier.bias.copy_(maps(seed, len(classifier.bias)))
    return classifier


class TestCATKD:
    def test_has_value_and_gradient_of_the_authors_code(self) -> None:
        student, teacher = scenes.network(size=(16, 16)), scenes.other_network(size=(16, 16))
        classifier, theirs = with_biases(student, 6), with_biases(teacher, 7)
        method = catkd.CATKD(catkd.CATKD.Params(catkd_weight=1.0), student, teacher)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4, (16, 16)))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        weight, bias = torch.autograd.grad(
            terms["catkd"], [classifier.weight, classifier.bias], allow_unused=True
        )
        # Their networks end in a 1x1 convolution without bias, into which the teacher's weight
        # alone is copied.
        assert student_out.final is not None
        assert teacher_out.final is not None
        ours = classifier.weight.detach()[:, :, None, None].requires_grad_()
        cam = F.conv2d(student_out.final.detach(), ours)
        their_cam = F.conv2d(teacher_out.final, theirs.weight.detach()[:, :, None, None])
        expected = F.mse_loss(
            F.adaptive_avg_pool2d(cam, (2, 2)), F.adaptive_avg_pool2d(their_cam, (2, 2))
        )
        (gradient,) = torch.autograd.grad(expected, ours)
        # float32: averaged before the classifier, not after.
        assert torch.allclose(terms["catkd"].detach(), expected.detach(), rtol=1e-5)
        assert torch.allclose(weight, gradient[:, :, 0, 0], rtol=1e-4, atol=1e-7)
        assert bias is None

    def test_adds_the_biases_only_where_asked_to(self) -> None:
        student, teacher = scenes.network(size=(16, 16)), scenes.other_network(size=(16, 16))
        classifier, theirs = with_biases(student, 6), with_biases(teacher, 7)
        outs = scenes.observed(student, teacher, scenes.pictures(4, (16, 16)))
        params = catkd.CATKD.Params(catkd_weight=1.0, side=1, bias=True)
        method = catkd.CATKD(params, student, teacher)
        terms = method.terms(*outs, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        # One cell with the biases: the logits themselves.
        expected = F.mse_loss(classifier(outs[0].pooled), theirs(outs[1].pooled))
        assert torch.allclose(terms["catkd"], expected, rtol=1e-4)

    def test_compares_the_maps_of_both_classifiers(self) -> None:
        student, teacher = scenes.network(size=(16, 16)), scenes.other_network(size=(16, 16))
        method = catkd.CATKD(catkd.CATKD.Params(bias=True), student, teacher)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4, (16, 16)))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert list(terms) == ["task", "catkd"]
        whole = [
            classifiers.class_maps(
                classifiers.last_map(features.final),
                *classifiers.layer(network.pooled_classifier()),
                add_bias=True,
            )
            for network, features in ((student, student_out), (teacher, teacher_out))
        ]
        expected = 15 * catkd.cat_loss(*whole, side=2, normalize=False)
        # float32: averaged after the classifier, not before.
        assert torch.allclose(terms["catkd"], expected, rtol=1e-4)
        terms["catkd"].backward()
        classifier = student.pooled_classifier()
        assert classifier is not None
        assert classifier.weight.grad is not None
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_trains_and_saves_nothing_of_its_own(self) -> None:
        method = catkd.CATKD(catkd.CATKD.Params(), scenes.network(), scenes.other_network())
        assert not list(method.parameters())
        assert not method.state_dict()

    def test_refuses_different_classes(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="teacher has 5, the student 3"):
            catkd.CATKD(catkd.CATKD.Params(), scenes.network(), scenes.other_network(classes=5))
