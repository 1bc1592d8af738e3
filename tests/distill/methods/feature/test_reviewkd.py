from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.functional import map_distances
from workers.distill.methods.base import Moment
from workers.distill.methods.feature import reviewkd


class TestHCLLoss:
    def test_equals_the_published_values(self) -> None:
        small = (CHECKS.tensor("map_s"), CHECKS.tensor("map_t_same_channels"))
        large = (CHECKS.tensor("map_s_8x8"), CHECKS.tensor("map_t_8x8"))
        for name, pairs in (
            ("hcl_4x4", [small]),
            ("hcl_8x8", [large]),
            ("hcl_two_stages", [small, large]),
        ):
            loss = map_distances.multiscale_square(
                [one for one, _ in pairs], [other for _, other in pairs]
            )
            assert CHECKS.close(loss, CHECKS.expected(name)["loss"]), name

    def test_of_single_pixels_is_the_mean_squared_error(self) -> None:
        one, other = (CHECKS.tensor(name)[:, :, None, None] for name in ("emb_s", "emb_s"))
        other = other.flip(0)
        assert torch.equal(map_distances.multiscale_square([one], [other]), F.mse_loss(one, other))

    def test_of_a_constant_difference_is_its_square(self) -> None:
        student = CHECKS.tensor("map_s_8x8")
        loss = map_distances.multiscale_square([student + 3], [student])
        assert torch.allclose(loss, torch.tensor(9.0, dtype=torch.float64), rtol=1e-9)

    def test_pools_no_side_beyond_its_length(self) -> None:
        one, other = CHECKS.tensor("map_s_8x8"), CHECKS.tensor("map_t_8x8")
        one, other = one[:, :, :2, :6], other[:, :, :2, :6]
        grids = [(2, 6), (2, 4), (2, 2), (1, 1)]
        expected = sum(
            2.0**-place
            * F.mse_loss(F.adaptive_avg_pool2d(one, grid), F.adaptive_avg_pool2d(other, grid))
            for place, grid in enumerate(grids)
        )
        loss = map_distances.multiscale_square([one], [other])
        assert torch.allclose(loss, torch.as_tensor(expected) / 1.875, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student = CHECKS.tensor("map_s_8x8").requires_grad_()
        teacher = CHECKS.tensor("map_t_8x8")
        assert torch.autograd.gradcheck(
            lambda given: map_distances.multiscale_square([given], [teacher]), (student,)
        )


def fusion() -> reviewkd.Fusion:
    """Return the published check's block: single channels, norms in evaluation mode."""
    params = CHECKS.parameters("reviewkd_abf_tiny")
    block = reviewkd.Fusion(1, 1, 1, (params["out_shape"],) * 2, deepest=False).double().eval()
    assert block.attention is not None
    values: dict[str, Any] = {
        "enter.0.weight": [[[[params["conv1_weight"]]]]],
        "leave.0.weight": [[[[params["conv2_weight_all"]] * 3] * 3]],
        "attention.weight": params["attention_weight"],
        "attention.bias": params["attention_bias"],
    }
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    missing = block.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    return block


class TestFusion:
    def test_equals_the_published_values(self) -> None:
        expected = CHECKS.expected("reviewkd_abf_tiny")
        output, handed = fusion()(CHECKS.tensor("abf_x"), CHECKS.tensor("abf_residual"))
        assert CHECKS.close(output[0, 0], expected["output"])
        assert CHECKS.close(handed[0, 0], expected["residual_out"])

    def test_attention_is_a_convolution_of_both_side_by_side(self) -> None:
        torch.manual_seed(0)
        block = reviewkd.Fusion(3, 4, 5, (6, 6), deepest=False).double()
        assert block.attention is not None
        given, deeper = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 4, 3, 3).double()
        entered, grown = block.enter(given), F.interpolate(deeper, (6, 6), mode="nearest")
        weight = block.attention.weight[:, :, None, None]
        shares = F.conv2d(torch.cat([entered, grown], 1), weight, block.attention.bias).sigmoid()
        expected = entered * shares[:, :1] + grown * shares[:, 1:]
        assert torch.allclose(block(given, deeper)[1], expected, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        torch.manual_seed(1)
        block = reviewkd.Fusion(2, 2, 2, (3, 4), deepest=False).double()
        given = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        deeper = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
        # The outputs' mean has no gradient behind a batch norm, their mean square a tiny one.
        pattern = torch.sin(torch.arange(48, dtype=torch.float64)).reshape(2, 2, 3, 4)
        assert torch.autograd.gradcheck(
            lambda *both: sum((pattern * out).sum() for out in block(*both)), (given, deeper)
        )

    def test_starts_uniform_with_a_of_one(self) -> None:
        torch.manual_seed(2)
        block = reviewkd.Fusion(100, 50, 30, (4, 4), deepest=True)
        # Bound: sqrt(6 / ((1 + a^2) * inputs)).
        for layers, inputs in ((block.enter, 100), (block.leave, 450)):
            largest = float(layers.get_parameter("0.weight").detach().abs().max())
            bound = (3 / inputs) ** 0.5
            assert 0.98 * bound < largest < 1.0001 * bound

    def test_the_deepest_has_no_attention(self) -> None:
        assert reviewkd.Fusion(3, 4, 5, (1, 1), deepest=True).attention is None


class TestReviewKD:
    @pytest.mark.parametrize("student_maps", ["post", "pre"])
    @pytest.mark.parametrize("teacher_maps", ["post", "pre"])
    def test_teaches_all_fusions_whatever_maps_it_compares(
        self, student_maps: reviewkd.Maps, teacher_maps: reviewkd.Maps
    ) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        params = reviewkd.ReviewKD.Params(student_maps=student_maps, teacher_maps=teacher_maps)
        method = reviewkd.ReviewKD(params, student, teacher)
        terms = scenes.terms_of(method, student, teacher, scenes.pictures(2))
        terms["reviewkd"].backward()
        assert all(parameter.grad is not None for parameter in method.parameters())

    @pytest.mark.parametrize("which", ["post", "pre"])
    def test_compares_the_maps_asked_for(self, which: reviewkd.Maps) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        params = reviewkd.ReviewKD.Params(teacher_maps=which, warmup_epochs=0)
        method = reviewkd.ReviewKD(params, student, teacher)
        for block in method.fusions:
            # Every level now gives zeros, so the loss is that of zeros.
            torch.nn.init.zeros_(block.get_parameter("leave.1.weight"))
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(3))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2]), scenes.MOMENT)
        stages = teacher_out.stages if which == "post" else teacher_out.pre_activations
        targets = [teacher_out.pooled[:, :, None, None], *stages]
        expected = map_distances.multiscale_square(
            [torch.zeros_like(target) for target in targets], targets
        )
        assert torch.allclose(terms["reviewkd"], expected)

    @pytest.mark.parametrize(("epoch", "share"), [(1, 0.05), (10, 0.5), (20, 1.0), (240, 1.0)])
    def test_fades_in_by_whole_epochs(self, epoch: int, share: float) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        losses = []
        for warmup_epochs in (0, 20):
            params = reviewkd.ReviewKD.Params(warmup_epochs=warmup_epochs, reviewkd_weight=5.0)
            torch.manual_seed(4)
            method = reviewkd.ReviewKD(params, student, teacher).eval()
            moment = Moment(epoch=epoch, step=epoch, steps_per_epoch=1)
            images = scenes.pictures(3)
            student.eval()
            losses.append(scenes.terms_of(method, student, teacher, images, moment)["reviewkd"])
        assert torch.allclose(losses[1], share * losses[0], rtol=1e-5)

    def test_pairs_stages_of_one_size_where_networks_differ(self) -> None:
        teacher = scenes.Pyramid([(2, 6, 6), (3, 8, 8), (4, 4, 4), (5, 2, 2)]).eval()
        student = scenes.network()
        method = reviewkd.ReviewKD(reviewkd.ReviewKD.Params(teacher_maps="post"), student, teacher)
        assert method.pairs == ((0, 1), (1, 2), (2, 3))
        terms = scenes.terms_of(method, student, teacher, scenes.pictures(3))
        assert terms["reviewkd"].isfinite()

    def test_refuses_a_teacher_without_maps_before_activations(self) -> None:
        with pytest.raises(
            errors.IncompatibleNetworks,
            match=r"teacher test/pyramid shows none.*another teacher_maps",
        ):
            reviewkd.ReviewKD(
                reviewkd.ReviewKD.Params(teacher_maps="pre"),
                scenes.network(),
                scenes.Pyramid([(4, 8, 8)]),
            )

    def test_takes_the_maps_that_there_are_and_says_so(self) -> None:
        teacher = scenes.Pyramid([(3, 8, 8), (4, 4, 4), (5, 2, 2)])
        method = reviewkd.ReviewKD(reviewkd.ReviewKD.Params(), scenes.network(), teacher)
        assert method.facts() == {"teacher_maps": "post"}
        usual = reviewkd.ReviewKD(
            reviewkd.ReviewKD.Params(), scenes.network(), scenes.other_network()
        )
        assert (usual.teacher_maps, usual.facts()) == ("pre", {})

    def test_refuses_a_student_without_them_where_they_are_asked_for(self) -> None:
        with pytest.raises(
            errors.IncompatibleNetworks,
            match=r"student test/pyramid shows none.*another student_maps",
        ):
            reviewkd.ReviewKD(
                reviewkd.ReviewKD.Params(student_maps="pre"),
                scenes.Pyramid([(4, 8, 8)]),
                scenes.network(),
            )
