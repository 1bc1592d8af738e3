import pytest
import torch
from torch import nn

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.methods.feature import srrl
from workers.distill.networks.interface import Features, Network


def rows(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestLosses:
    def test_of_features_equals_the_published_value(self) -> None:
        student, teacher = CHECKS.tensor("map_s"), CHECKS.tensor("map_t_same_channels")
        loss = srrl.matching_loss(student.mean((2, 3)), teacher.mean((2, 3)))
        assert CHECKS.close(loss, CHECKS.expected("srrl_fm")["loss"])

    def test_are_zero_for_the_teachers_own_embedding(self) -> None:
        pooled, weight, bias = rows(0, 5, 4), rows(1, 3, 4), rows(2, 3)
        logits = pooled @ weight.mT + bias
        assert float(srrl.matching_loss(pooled, pooled)) == 0
        # A linear layer computed twice, in another order.
        assert float(srrl.regression_loss(pooled, logits, weight, bias)) < 1e-25

    def test_of_logits_is_that_of_features_seen_through_the_classifier(self) -> None:
        student, teacher, weight, bias = rows(3, 5, 4), rows(4, 5, 4), rows(5, 3, 4), rows(6, 3)
        loss = srrl.regression_loss(student, teacher @ weight.mT + bias, weight, bias)
        expected = ((student - teacher) @ weight.mT).square().mean()
        assert torch.allclose(loss, expected, rtol=1e-9)

    def test_have_the_gradients_of_their_values(self) -> None:
        student, teacher = rows(7, 4, 3).requires_grad_(), rows(8, 4, 3)
        assert torch.autograd.gradcheck(lambda seen: srrl.matching_loss(seen, teacher), (student,))
        weight, bias, logits = rows(9, 2, 3), rows(10, 2), rows(11, 4, 2)
        assert torch.autograd.gradcheck(
            lambda seen: srrl.regression_loss(seen, logits, weight, bias), (student,)
        )


class TestSRRL:
    def test_teaches_through_the_frozen_classifier_of_the_teacher(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = srrl.SRRL(srrl.SRRL.Params(classifier_weight=2.0), student, teacher)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(5))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0, 1]), scenes.MOMENT)
        assert list(terms) == ["task", "srrl_features", "srrl_classifier"]
        assert student_out.final is not None
        classifier = teacher.pooled_classifier()
        assert classifier is not None
        pooled = method.connector(student_out.final).mean((2, 3))
        expected = (classifier(pooled) - teacher_out.logits).square().mean()
        assert torch.allclose(terms["srrl_classifier"], 2 * expected)
        assert torch.allclose(terms["srrl_features"], (pooled - teacher_out.pooled).square().mean())
        torch.stack(list(terms.values())).sum().backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_draws_the_connectors_first_weights_as_the_authors_do(self) -> None:
        torch.manual_seed(0)
        student = scenes.network(widths=(8, 8, 8, 256))
        method = srrl.SRRL(srrl.SRRL.Params(), student, scenes.network(widths=(8, 8, 8, 128)))
        weight = method.get_parameter("connector.0.0.weight").detach()
        assert weight.shape == (128, 256, 1, 1)
        # 32,768 draws: their standard deviation is known to 0.4 %.
        assert float(weight.std()) == pytest.approx((2 / 128) ** 0.5, rel=0.02)
        assert float(weight.abs().max()) > 3 * (2 / 128) ** 0.5, "normal, not uniform"

    def test_keeps_the_classifier_out_of_what_is_trained_and_saved(self) -> None:
        method = srrl.SRRL(srrl.SRRL.Params(), scenes.network(), scenes.other_network())
        assert all(name.startswith("connector.") for name in method.state_dict())
        assert all(name.startswith("connector.") for name, _ in method.named_parameters())

    @pytest.mark.parametrize("size", [0.0, 1e6])
    def test_is_finite_for_maps_of_any_size(self, size: float) -> None:
        method = srrl.SRRL(srrl.SRRL.Params(), scenes.network(), scenes.other_network())
        final = (size * rows(12, 2, 8, 2, 2).float()).requires_grad_()
        terms = method.terms(
            scenes.features(final=final),
            scenes.features(torch.zeros(2, 3), pooled=torch.zeros(2, 9)),
            scenes.batch([0, 1]),
            scenes.MOMENT,
        )
        assert gradients.is_finite(torch.stack(list(terms.values())), final)

    def test_refuses_a_teacher_without_a_linear_classifier(self) -> None:
        class Plain(Network):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(1, 1)
                self.reference, self.classes, self.image_shape = "plain", 3, (1, 1, 3)

            def observe(self, images: torch.Tensor) -> Features:
                return Features(logits=images.flatten(1), pooled=images.flatten(1))

        with pytest.raises(
            errors.IncompatibleNetworks,
            match=r"a linear classifier .* the teacher plain shows none",
        ):
            srrl.SRRL(srrl.SRRL.Params(), scenes.network(), Plain())
