import numpy
import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.methods.feature import kdsvd

LAYOUTS: tuple[kdsvd.Layout, ...] = ("width", "channels")


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def stages(seed: int, channels: int = 3) -> list[torch.Tensor]:
    return [random_maps(2, channels, side, side, seed=seed + side) for side in (8, 5)]


def by_numpy(
    students: list[torch.Tensor], teachers: list[torch.Tensor], count: int, layout: str
) -> float:
    """Return the loss of one image after the other, each by a full decomposition."""
    total = 0.0
    for image in range(len(students[0])):
        before: tuple[numpy.ndarray, numpy.ndarray] | None = None
        for student, teacher in zip(students, teachers, strict=True):
            vectors = []
            for maps in (student[image], teacher[image]):
                channels, _, width = maps.shape
                rows = (
                    maps.reshape(-1, width) if layout == "width" else maps.reshape(channels, -1).T
                )
                _, values, right = numpy.linalg.svd(rows.numpy(), full_matrices=False)
                vectors.append((right, values))
            (ours, _), (theirs, values) = vectors
            theirs = theirs[:count]
            theirs = theirs * numpy.sign(
                theirs[numpy.arange(count), numpy.abs(theirs).argmax(1)][:, None]
            )
            cosines = ours[: count + 3] @ theirs.T
            best = numpy.abs(cosines).argmax(0)
            signs = numpy.sign(cosines[best, numpy.arange(count)])
            scale = (values[:count] / numpy.linalg.norm(values[:count]))[:, None]
            now = (ours[best] * signs[:, None] * scale, theirs * scale)
            if before is not None:
                kernels = [
                    numpy.exp(-((b[:, :, None] - a[:, None, :]) ** 2) / 8)
                    for a, b in zip(before, now, strict=True)
                ]
                total += ((kernels[0] - kernels[1]) ** 2).sum()
            before = now
    return total / len(students[0])


class TestKDSVDLoss:
    def test_equals_the_published_value(self) -> None:
        loss = kdsvd.kdsvd_loss(
            [CHECKS.tensor("map_s_8x8"), CHECKS.tensor("map_s")],
            [CHECKS.tensor("map_t_8x8"), CHECKS.tensor("map_t")],
            vectors=1,
            layout="width",
        )
        assert CHECKS.close(loss, CHECKS.expected("kdsvd_k1")["loss"])

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_equals_full_decompositions(self, count: int, layout: kdsvd.Layout) -> None:
        loss = kdsvd.kdsvd_loss(stages(0, 6), stages(50, 6), vectors=count, layout=layout)
        expected = by_numpy(stages(0, 6), stages(50, 6), count, layout)
        assert torch.allclose(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-8)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_is_zero_for_equal_maps_and_for_scaled_ones(self, layout: kdsvd.Layout) -> None:
        scaled = [-3 * maps for maps in stages(0)]
        for student in (stages(0), scaled):
            assert kdsvd.kdsvd_loss(student, stages(0), vectors=2, layout=layout) < 1e-20

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_has_the_gradient_of_its_value(self, layout: kdsvd.Layout) -> None:
        first, second = (random_maps(2, 2, side, side, seed=side) for side in (4, 3))
        teacher = [random_maps(2, 2, side, side, seed=10 + side) for side in (4, 3)]
        assert torch.autograd.gradcheck(
            lambda *student: kdsvd.kdsvd_loss(student, teacher, vectors=1, layout=layout),
            (first.requires_grad_(), second.requires_grad_()),
            fast_mode=True,
        )

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("value", [0.0, 1.0, 1e15])
    def test_is_finite_for_maps_of_one_value(self, value: float, layout: kdsvd.Layout) -> None:
        student = [torch.full((2, 3, side, side), value, requires_grad=True) for side in (8, 5)]
        teacher = [maps.float() for maps in stages(0)]
        loss = kdsvd.kdsvd_loss(student, teacher, vectors=2, layout=layout)
        loss.backward()
        assert loss.isfinite()
        assert all(maps.grad is not None and maps.grad.isfinite().all() for maps in student)

    def test_pools_the_larger_map(self) -> None:
        pooled = [torch.nn.functional.avg_pool2d(stages(0)[0], 2), stages(0)[1]]
        teacher = [random_maps(2, 4, 4, 4), stages(50)[1]]
        one, other = (
            kdsvd.kdsvd_loss(student, teacher, vectors=1, layout="width")
            for student in (stages(0), pooled)
        )
        assert torch.allclose(one, other, rtol=1e-9)


def build(teacher_stages: list[tuple[int, int, int]], **params: object) -> kdsvd.KDSVD:
    teacher = scenes.Pyramid(teacher_stages).eval().requires_grad_(False)
    return kdsvd.KDSVD(kdsvd.KDSVD.Params.model_validate(params), scenes.network(), teacher)


class TestKDSVD:
    def test_takes_half_precision(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = kdsvd.KDSVD(kdsvd.KDSVD.Params(), student, teacher)
        outputs = scenes.observed(student, teacher, scenes.pictures(4))
        given, wanted = (
            scenes.features(stages=[stage.half() for stage in one.stages]) for one in outputs
        )
        terms = method.terms(given, wanted, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert list(terms) == ["task", "kdsvd"]
        assert terms["kdsvd"].dtype == torch.float32

    def test_compares_channels_of_equally_wide_networks(self) -> None:
        student, teacher = scenes.network(), scenes.network(2).eval().requires_grad_(False)
        params = kdsvd.KDSVD.Params(layout="channels", vectors=2)
        method = kdsvd.KDSVD(params, student, teacher)
        assert scenes.terms_of(method, student, teacher, scenes.pictures(3))["kdsvd"] > 0

    def test_pairs_stages_of_one_size_where_networks_differ(self) -> None:
        method = build([(2, 6, 6), (3, 8, 8), (4, 4, 4), (5, 2, 2)])
        assert method.pairs == ((0, 1), (1, 2), (2, 3))

    def test_refuses_a_network_with_one_stage_and_names_it(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"teacher test/pyramid 1$"):
            build([(4, 8, 8)])

    def test_refuses_more_vectors_than_the_smallest_stage_has(self) -> None:
        with pytest.raises(
            errors.IncompatibleNetworks, match=r"stage 3 of the teacher test/pyramid.*has 2 sing"
        ):
            build([(4, 8, 8), (4, 4, 4), (4, 2, 2)], vectors=3)

    def test_refuses_channels_that_differ(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="needs equal channels"):
            build([(4, 8, 8), (7, 4, 4), (8, 2, 2)], layout="channels")
