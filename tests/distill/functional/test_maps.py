import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import DENSE
from workers.distill.functional import maps


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestAverageTo:
    @pytest.mark.parametrize("size", [(8, 6), (4, 6), (4, 3), (2, 2), (3, 4), (5, 6), (16, 12)])
    def test_equals_adaptive_pooling(self, size: tuple[int, int]) -> None:
        given = random_maps(2, 3, 8, 6)
        expected = F.adaptive_avg_pool2d(given, size)
        assert torch.allclose(maps.average_to(given, size), expected, rtol=1e-12)

    def test_leaves_equal_sizes_alone(self) -> None:
        given = random_maps(2, 3, 8, 6)
        assert maps.average_to(given, (8, 6)) is given


class TestPoolToSmaller:
    def test_takes_the_smaller_of_each_side(self) -> None:
        one, other = maps.pool_to_smaller(random_maps(2, 3, 8, 4), random_maps(2, 5, 4, 6))
        assert one.shape == (2, 3, 4, 4)
        assert other.shape == (2, 5, 4, 4)


class TestNearest:
    def test_takes_the_label_under_the_centre(self) -> None:
        labels = torch.arange(24).reshape(1, 4, 6).to(torch.uint8)
        found = maps.nearest(labels, (2, 3))
        assert found.tolist() == [[[7, 9, 11], [19, 21, 23]]]
        assert found.dtype == torch.uint8

    @pytest.mark.parametrize("size", [(4, 6), (3, 5), (7, 2), (9, 13), (1, 1)])
    def test_equals_exact_nearest_interpolation(self, size: tuple[int, int]) -> None:
        labels = torch.arange(2 * 24).reshape(2, 4, 6)
        wanted = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")
        assert torch.equal(maps.nearest(labels, size), wanted[:, 0].long())

    def test_leaves_equal_sizes_alone(self) -> None:
        labels = torch.zeros(1, 4, 6, dtype=torch.int64)
        assert maps.nearest(labels, (4, 6)) is labels


class TestResize:
    def test_keeps_planes_and_leaves_equal_sizes_alone(self) -> None:
        plane = torch.arange(4.0)[None, None, :, None] + 10 * torch.arange(4.0)
        found = maps.resize(plane, (8, 8))
        # Half a pixel is 1/4 of the old ones; the border is not extrapolated.
        assert torch.allclose(found[0, 0, 3, 3], torch.tensor(1.25 + 12.5))
        assert maps.resize(plane, (4, 4)) is plane


class TestFocalAttention:
    def test_equals_the_guide(self) -> None:
        name = "fgd_attention_T_1x2x2x2"
        teacher, temperature = DENSE.teacher(1, 2, 2, 2), DENSE.inputs(name)["temp"]
        spatial = maps.spatial_attention(teacher, temperature=temperature)
        channel = maps.channel_attention(teacher, temperature=temperature)
        assert DENSE.close(spatial.flatten(), DENSE.expected(name)["spatial"])
        assert DENSE.close(channel.flatten(), DENSE.expected(name)["channel"])

    def test_has_mean_one(self) -> None:
        given = random_maps(3, 4, 2, 5)
        for found in (
            maps.spatial_attention(given, temperature=0.5).flatten(1),
            maps.channel_attention(given, temperature=0.5),
        ):
            assert torch.allclose(found.mean(1), torch.ones(3, dtype=torch.float64), rtol=1e-12)


class TestAttention:
    @pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 4.0])
    def test_has_unit_norm(self, power: float) -> None:
        attention = maps.attention(random_maps(3, 4, 2, 5), power=power)
        assert attention.shape == (3, 10)
        assert torch.allclose(attention.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-12)

    def test_knows_no_signs(self) -> None:
        given = random_maps(3, 4, 2, 5)
        assert torch.equal(maps.attention(given, power=3.0), maps.attention(-given, power=3.0))

    def test_of_zeros_is_zeros(self) -> None:
        assert not maps.attention(torch.zeros(2, 3, 4, 4), power=2.0).any()


def squares(*sides: int) -> list[tuple[int, int, int]]:
    return [(7, side, side) for side in sides]


class TestPairBySize:
    def test_equally_many_stages_meet_one_by_one(self) -> None:
        pairs = maps.pair_by_size(squares(16, 8, 4), squares(32, 16, 8))
        assert pairs == ((0, 0), (1, 1), (2, 2))

    def test_fewer_stages_meet_those_of_their_size(self) -> None:
        # ResNet50 and MobileNetV1 at 224x224.
        pairs = maps.pair_by_size(squares(28, 14, 7), squares(56, 28, 14, 7))
        assert pairs == ((0, 1), (1, 2), (2, 3))

    def test_is_the_same_from_the_other_side(self) -> None:
        pairs = maps.pair_by_size(squares(56, 28, 14, 7), squares(28, 14, 7))
        assert pairs == ((1, 0), (2, 1), (3, 2))

    def test_a_longer_list_is_cut_at_its_end_where_sizes_agree(self) -> None:
        pairs = maps.pair_by_size(squares(32, 16, 8), squares(32, 16, 8, 4))
        assert pairs == ((0, 0), (1, 1), (2, 2))

    def test_equal_token_grids_meet_from_the_shallow_end(self) -> None:
        assert maps.pair_by_size(squares(4, 4), squares(4, 4, 4)) == ((0, 0), (1, 1))

    def test_looks_at_both_sides_of_a_map(self) -> None:
        teachers = [(3, 8, 4), (3, 4, 8), (3, 4, 4)]
        assert maps.pair_by_size([(5, 4, 8), (5, 4, 4)], teachers) == ((0, 1), (1, 2))


class TestAtLeastFloat:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_raises_half_precision(self, dtype: torch.dtype) -> None:
        assert maps.at_least_float(torch.ones(2, dtype=dtype)).dtype == torch.float32

    def test_keeps_what_is_more(self) -> None:
        given = torch.ones(2, dtype=torch.float64)
        assert maps.at_least_float(given) is given
