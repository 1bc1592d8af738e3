"""Patches of maps give the guide's values, and losses of patches those of loops over channels."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill import gradients
from tests.distill.golden import DENSE
from workers.distill.functional import kernels, patches, relations

PUBLISHED = DENSE.inputs("pcka_2x3x4x4_p2")["patch"]


def random_maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestAlignment:
    @pytest.mark.parametrize(
        ("axis", "centered", "key"),
        [
            ("channel", False, "sim_channel_uncentred"),
            ("batch", False, "sim_batch_uncentred"),
            ("position", False, "sim_position_uncentred"),
            ("channel", True, "sim_channel_centred"),
        ],
    )
    def test_equals_the_guide(self, axis: patches.Axis, centered: bool, key: str) -> None:
        pair = DENSE.pair("pcka_2x3x4x4_p2")
        cut = patches.pair_rows(*pair, side=PUBLISHED, axis=axis)
        gap = patches.alignment_gap(*cut, centered=centered)
        assert DENSE.close(1 - gap, DENSE.expected("pcka_2x3x4x4_p2")[key])

    def test_is_the_released_codes_loss_but_for_a_constant(self) -> None:
        wanted = DENSE.expected("pcka_2x3x4x4_p2")
        cut = patches.pair_rows(*DENSE.pair("pcka_2x3x4x4_p2"), side=PUBLISHED)
        gap = patches.alignment_gap(*cut, centered=False)
        transposed = patches.transposed_gap(*cut, centered=False)
        assert DENSE.close(gap, wanted["loss_one_minus"])
        assert DENSE.close(10 * gap - 10, wanted["loss_reference_w10_no_inter"])
        assert DENSE.close(1 - transposed, wanted["sim_inter_channel"])
        both = 10 * (gap + transposed) - 20
        assert DENSE.close(both, wanted["loss_reference_w10_with_inter"])

    def test_resizes_what_does_not_divide(self) -> None:
        cut = patches.pair_rows(*DENSE.pair("pcka_resize_1x2x5x3_p2"), side=2)
        wanted = DENSE.expected("pcka_resize_1x2x5x3_p2")["sim_channel_uncentred"]
        assert cut[0].shape == (2, 6, 4)
        assert DENSE.close(1 - patches.alignment_gap(*cut, centered=False), wanted)

    def test_of_a_single_patch_is_skipped(self) -> None:
        student, teacher = DENSE.pair("pcka_single_patch")
        student.requires_grad_()
        cut = patches.pair_rows(student, teacher, side=2)
        gap = patches.alignment_gap(*cut, centered=False)
        gap.backward()
        assert DENSE.expected("pcka_single_patch")["sim"] == 1
        assert float(gap.detach()) == 0
        assert student.grad is not None
        assert not student.grad.any()

    def test_a_dead_channel_counts_as_not_aligned_without_a_gradient(self) -> None:
        student, teacher = random_maps(0, 2, 3, 4, 4), random_maps(1, 2, 3, 4, 4)
        student[:, 1] = 0
        student.requires_grad_()
        gap = patches.alignment_gap(*patches.pair_rows(student, teacher, side=2), centered=False)
        gap.backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()
        assert not student.grad[:, 1].any()
        alive = patches.alignment_gap(
            *patches.pair_rows(student[:, [0, 2]], teacher[:, [0, 2]], side=2), centered=False
        )
        assert torch.allclose(gap, (2 * alive + 1) / 3, rtol=1e-12)


class TestLargeChannelsLastMaps:
    """Large channels-last maps are cut in another way, which must not be seen."""

    def test_are_cut_like_others_and_have_their_gradient(self) -> None:
        plain = random_maps(0, 2, 64, 64, 128).float()
        assert plain.numel() == patches.LARGE
        turned = plain.contiguous(memory_format=torch.channels_last)
        found, slopes = [], []
        for given in (plain.requires_grad_(), turned.requires_grad_()):
            rows = patches.patch_rows(given, side=16)
            factors = random_maps(1, *rows.shape).float()
            (gradient,) = torch.autograd.grad((rows * factors).sum(), given)
            found.append(rows)
            slopes.append(gradient)
        assert torch.equal(*found)
        assert torch.equal(*slopes)

    def test_may_be_differentiated_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patches, "LARGE", 1)
        maps = random_maps(2, 2, 2, 2, 4).contiguous(memory_format=torch.channels_last)
        maps.requires_grad_()
        assert torch.autograd.gradcheck(lambda one: patches.patch_rows(one, side=2), (maps,))
        assert torch.autograd.gradgradcheck(lambda one: patches.patch_rows(one, side=2), (maps,))


class TestPairRows:
    def test_brings_maps_of_other_strides_to_the_larger_ones_multiple(self) -> None:
        student, teacher = random_maps(2, 1, 2, 6, 4), random_maps(3, 1, 2, 3, 7)
        one, other = patches.pair_rows(student, teacher, side=4)
        assert one.shape == other.shape == (2, 4, 16)
        wanted = F.interpolate(teacher, (8, 8), mode="bilinear", align_corners=False)
        assert torch.equal(other[1, 1].view(4, 4), wanted[0, 1, :4, 4:])


class TestFittingSide:
    @pytest.mark.parametrize(
        ("height", "width", "side"),
        [(128, 200, 16), (64, 64, 16), (24, 24, 6), (8, 40, 2), (4, 4, 1), (2, 9, 1)],
    )
    def test_leaves_sixteen_patches_where_it_can(self, height: int, width: int, side: int) -> None:
        assert patches.fitting_side(height, width) == side
        size = patches.padded_size(height, width, side=side)
        assert math.prod(size) // side**2 >= min(patches.ENOUGH_PATCHES, height * width)


class TestUncentredForms:
    def test_equal_those_of_the_rows(self) -> None:
        one, other = random_maps(3, 3, 6, 5), random_maps(4, 3, 6, 5)
        wanted = 1 - kernels.cka(one, other, centered=False).mean()
        found = patches.alignment_gap(one, other, centered=False)
        assert torch.allclose(found, wanted, rtol=1e-12)
        wanted = 1 - kernels.cka(one.mT, other.mT, centered=False).mean()
        found = patches.transposed_gap(one, other, centered=False)
        assert torch.allclose(found, wanted, rtol=1e-12)

    @pytest.mark.parametrize("size", [0.0, 1e-20, 1e12])
    def test_are_finite_for_maps_of_any_size(self, size: float) -> None:
        rows = (size * random_maps(5, 2, 4, 6).float()).requires_grad_()
        other = random_maps(6, 2, 4, 6).float()
        for gap in (patches.alignment_gap, patches.transposed_gap):
            assert gradients.is_finite(gap(rows, other, centered=False), rows)


class TestOlderLosses:
    """Each is computed again channel by channel, patch by patch."""

    SIDE = 2

    def cut(self) -> tuple[torch.Tensor, torch.Tensor]:
        student, teacher = random_maps(4, 2, 3, 4, 6), random_maps(5, 2, 3, 4, 6)
        return patches.pair_rows(student, teacher, side=self.SIDE)

    def test_softened_is_the_divergence_of_each_patch(self) -> None:
        one, other = self.cut()
        divergences = [
            F.kl_div(
                (s / 4).log_softmax(0), (t / 4).log_softmax(0), reduction="sum", log_target=True
            )
            for channel, target in zip(one, other, strict=True)
            for s, t in zip(channel, target, strict=True)
        ]
        wanted = 16 * torch.stack(divergences).mean()
        assert len(divergences) == 3 * 6
        assert torch.allclose(patches.softened(one, other, temperature=4.0), wanted, rtol=1e-9)

    def test_standardized_is_one_less_the_correlation_of_each_patch(self) -> None:
        one, other = self.cut()
        correlations = [
            torch.corrcoef(torch.stack([s, t]))[0, 1]
            for channel, target in zip(one, other, strict=True)
            for s, t in zip(channel, target, strict=True)
        ]
        count = one.shape[2]
        wanted = (count - 1) / count * (1 - torch.stack(correlations).mean())
        # 1e-6 is added to the deviations.
        assert torch.allclose(patches.standardized(one, other), wanted, atol=1e-5)

    def test_correlations_are_averaged_over_channels(self) -> None:
        one, other = self.cut()
        found = relations.correlation_gaps(one, other, temperature=4.0)
        each = [
            relations.correlation_gaps(s, t, temperature=4.0)
            for s, t in zip(one, other, strict=True)
        ]
        assert torch.allclose(found.inter, torch.stack([gap.inter for gap in each]).mean())
        assert torch.allclose(found.intra, torch.stack([gap.intra for gap in each]).mean())

    def test_attention_has_unit_norm_in_each_patch(self) -> None:
        maps = random_maps(6, 2, 3, 4, 6)
        found = patches.attention(maps, side=self.SIDE, power=2.0)
        strength = maps.square().mean(1)[:, 2:4, 4:6].flatten()
        assert found.shape == (6, 8)
        assert torch.allclose(found[5], strength / strength.norm(), rtol=1e-12)

    def test_have_the_gradients_of_their_values(self) -> None:
        student, teacher = random_maps(7, 1, 2, 4, 4).requires_grad_(), random_maps(8, 1, 2, 4, 4)

        def total(maps: torch.Tensor) -> torch.Tensor:
            cut = patches.pair_rows(maps, teacher, side=2)
            attention = patches.attention(maps, side=2, power=2.0)
            target = patches.attention(teacher, side=2, power=2.0)
            return (
                patches.softened(*cut, temperature=2.0)
                + patches.standardized(*cut)
                + (attention - target).square().mean()
            )

        assert torch.autograd.gradcheck(total, (student,))
