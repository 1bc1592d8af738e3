import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from torch import nn

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.functional import kernels, patches
from workers.distill.methods.base import Terms
from workers.distill.methods.relation import pcka

AXES: list[patches.Axis] = ["channel", "batch", "position"]


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def published(axis: patches.Axis) -> list[torch.Tensor]:
    side = CHECKS.parameters("pcka_patch2")["patch"]
    return [
        patches.patch_rows(CHECKS.tensor(name), side=side, axis=axis)
        for name in ("pcka_s", "pcka_t")
    ]


def terms_of(method: pcka.PCKA, student: torch.Tensor, teacher: torch.Tensor) -> Terms:
    count = len(student)
    return method.terms(
        scenes.features(stages=[student] * 3),
        scenes.features(stages=[teacher] * 3),
        scenes.batch([0] * count),
        scenes.MOMENT,
    )


class TestPatchRows:
    @pytest.mark.parametrize("axis", AXES)
    def test_hold_every_value_once_in_the_row_of_its_patch(self, axis: patches.Axis) -> None:
        seen = maps(0, 2, 3, 4, 6)
        rows = patches.patch_rows(seen, side=2, axis=axis)
        assert (
            rows.shape == {"channel": (3, 6, 8), "batch": (2, 6, 12), "position": (4, 6, 6)}[axis]
        )
        # The second row of patches, third column.
        patch = seen[:, :, 2:4, 4:6]
        assert torch.equal(rows[:, 5].flatten().sort().values, patch.flatten().sort().values)
        if axis == "channel":
            assert torch.equal(rows[1, 5], patch[:, 1].flatten())
        if axis == "batch":
            assert torch.equal(rows[1, 5], patch[1].flatten())
        if axis == "position":
            assert torch.equal(rows[3, 5], patch[:, :, 1, 1].flatten())


class TestPCKALoss:
    @pytest.mark.parametrize(
        ("axis", "centered", "key"),
        [
            ("channel", False, "mean_cka_channel_uncentered"),
            ("channel", True, "mean_cka_channel_centered"),
            ("batch", False, "mean_cka_batch_uncentered"),
            ("position", False, "mean_cka_position_uncentered"),
        ],
    )
    def test_equals_the_published_value(self, axis: patches.Axis, centered: bool, key: str) -> None:
        loss = patches.alignment_gap(*published(axis), centered=centered)
        expected = CHECKS.expected("pcka_patch2")
        assert CHECKS.close(1 - loss, expected[key])
        if key == "mean_cka_channel_uncentered":
            # The released code's -10 * CKA.
            assert CHECKS.close(10 * loss - 10, expected["loss_w10_code"])

    @pytest.mark.parametrize("centered", [True, False])
    def test_transposed_is_that_of_exchanged_rows(self, centered: bool) -> None:
        one, other = published("channel")
        loss = patches.transposed_gap(one, other, centered=centered)
        expected = kernels.cka_gap(one.mT, other.mT, centered=centered).mean()
        assert torch.allclose(loss, expected, rtol=1e-9)

    @pytest.mark.parametrize("axis", AXES)
    def test_is_zero_when_both_agree(self, axis: patches.Axis) -> None:
        rows = patches.patch_rows(maps(1, 2, 3, 4, 4), side=2, axis=axis)
        # One minus a number that rounds to one.
        assert abs(float(patches.alignment_gap(rows, rows, centered=True))) < 1e-12

    def test_ignores_scale_and_shift_of_every_channel(self) -> None:
        student, teacher = maps(2, 2, 3, 4, 4), maps(3, 2, 3, 4, 4)
        scale = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)[:, None, None]
        one, other = (
            patches.alignment_gap(
                *(patches.patch_rows(each, side=2, axis="channel") for each in (seen, teacher)),
                centered=True,
            )
            for seen in (student, scale * student + scale)
        )
        assert torch.allclose(one, other, rtol=1e-9)

    def test_ignores_the_order_of_images(self) -> None:
        student, teacher = maps(4, 5, 3, 4, 4), maps(5, 5, 3, 4, 4)
        order = torch.randperm(5)
        one, other = (
            patches.alignment_gap(
                *(patches.patch_rows(each, side=2, axis="channel") for each in pair), centered=True
            )
            for pair in ((student, teacher), (student[order], teacher[order]))
        )
        assert torch.allclose(one, other, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = maps(6, 1, 2, 4, 4).requires_grad_(), maps(7, 1, 2, 4, 4)
        wanted = patches.patch_rows(teacher, side=2, axis="channel")

        def both(seen: torch.Tensor) -> torch.Tensor:
            rows = patches.patch_rows(seen, side=2, axis="channel")
            return patches.alignment_gap(rows, wanted, centered=True) + patches.transposed_gap(
                rows, wanted, centered=True
            )

        assert torch.autograd.gradcheck(both, (student,))


class TestPCKA:
    def test_compares_the_last_stage_in_quarters_where_maps_are_small(self) -> None:
        network = scenes.network()
        method = pcka.PCKA(pcka.PCKA.Params(), network, scenes.network(2))
        assert method.levels == [pcka.Level(index=-1, size=(2, 2), side=1)]
        student, teacher = maps(0, 3, 8, 2, 2), maps(1, 3, 8, 2, 2)
        terms = terms_of(method, student, teacher)
        assert list(terms) == ["task", "pcka", "pcka_transposed"]
        expected = kernels.cka_gap(
            student.permute(1, 2, 3, 0).flatten(1, 2),
            teacher.permute(1, 2, 3, 0).flatten(1, 2),
            centered=True,
        ).mean()
        assert torch.allclose(terms["pcka"], 15 * expected, rtol=1e-9)
        assert float(terms["pcka_transposed"]) == 0

    def test_cuts_large_maps_as_published_and_resizes_what_does_not_divide(self) -> None:
        pair = (scenes.network(size=(36, 64)), scenes.network(2, size=(36, 64)))
        method = pcka.PCKA(pcka.PCKA.Params(stages=[1]), *pair)
        assert method.levels == [pcka.Level(index=0, size=(48, 64), side=16)]
        small = pcka.PCKA(pcka.PCKA.Params(stages=[1, 2], patch=5), *pair)
        assert [level.size for level in small.levels] == [(40, 65), (20, 35)]
        student, teacher = maps(2, 2, 4, 36, 64), maps(3, 2, 4, 36, 64)
        term = terms_of(method, student, teacher)["pcka"]
        rows = [
            patches.patch_rows(
                F.interpolate(seen, (48, 64), mode="bilinear"), side=16, axis="channel"
            )
            for seen in (student, teacher)
        ]
        assert torch.allclose(term, 15 * patches.alignment_gap(*rows, centered=True), rtol=1e-9)

    def test_learns_one_connector_for_each_stage_of_other_channels(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        params = pcka.PCKA.Params(stages=[1, 3], transposed_weight=10.0)
        method = pcka.PCKA(params, student, teacher)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        torch.stack(list(terms.values())).sum().backward()
        weights = list(method.connectors.parameters())
        assert [weight.shape[:2] for weight in weights] == [(5, 4), (9, 8)]
        assert all(weight.grad is not None and weight.grad.any() for weight in weights)
        same = pcka.PCKA(params, student, scenes.network(2))
        assert all(isinstance(connector, nn.Identity) for connector in same.connectors)

    @pytest.mark.parametrize("images", [1, 2])
    def test_is_finite_for_the_smallest_batches_and_for_maps_of_zeros(self, images: int) -> None:
        method = pcka.PCKA(
            pcka.PCKA.Params(transposed_weight=1.0), scenes.network(), scenes.network(2)
        )
        for size in (0.0, 1.0, 1e12):
            student = (size * maps(4, images, 8, 2, 2)).float().requires_grad_()
            terms = terms_of(method, student, maps(5, images, 8, 2, 2).float())
            assert gradients.is_finite(torch.stack(list(terms.values())), student)

    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"patch": 8}, "the last stage of 2x2 cut into patches of 8x8 gives 1, of at least 3"),
            ({"stages": [1, 2], "patch": 4}, "stage 2 of 4x4 cut into patches of 4x4 gives 1"),
            ({"stages": [4]}, r"compares stage 4 .*, and the student returns 3 stages"),
        ],
    )
    def test_refuses_a_stage_that_has_no_patches_to_compare(
        self, params: dict[str, object], says: str
    ) -> None:
        wanted = pcka.PCKA.Params.model_validate(params)
        with pytest.raises(errors.IncompatibleNetworks, match=says):
            pcka.PCKA(wanted, scenes.network(), scenes.other_network())

    def test_refuses_a_map_of_one_pixel_which_looks_alike_everywhere(self) -> None:
        tiny = scenes.Pyramid([(2, 4, 4), (2, 1, 1)])
        with pytest.raises(errors.IncompatibleNetworks, match="is one pixel; choose stages"):
            pcka.PCKA(pcka.PCKA.Params(), tiny, scenes.network())
