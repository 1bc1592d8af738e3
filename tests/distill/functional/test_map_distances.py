import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import DENSE
from workers.distill.functional import map_distances

NAME = "at_sp_mimic_2x3x2x2"


def random_maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestMeanSquare:
    def test_equals_the_guide(self) -> None:
        student, teacher = DENSE.pair(NAME)
        found = map_distances.mean_square([student], [teacher], by_variance=False)
        assert DENSE.close(found, DENSE.expected(NAME)["mse"])

    def test_sums_levels_and_ignores_their_magnitude_by_variance(self) -> None:
        student, teacher = random_maps(0, 2, 3, 4, 4), random_maps(1, 2, 3, 4, 4)
        alone = map_distances.mean_square([student], [teacher], by_variance=True)
        twice = map_distances.mean_square(
            [student, 100 * student], [teacher, 100 * teacher], by_variance=True
        )
        assert torch.allclose(twice, 2 * alone, rtol=1e-9)
        mean = teacher.mean().expand_as(teacher)
        unexplained = map_distances.mean_square([mean], [teacher], by_variance=True)
        assert torch.allclose(unexplained, torch.ones(()).double(), rtol=1e-9)

    def test_of_a_constant_teacher_is_finite(self) -> None:
        student = random_maps(2, 1, 2, 2, 2).requires_grad_()
        map_distances.mean_square(
            [student], [torch.zeros_like(student)], by_variance=True
        ).backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()


class TestMultiscaleSquare:
    def test_equals_the_guide(self) -> None:
        wanted = DENSE.expected("hcl_1x2x5x5")
        for shape, key in (((1, 2, 5, 5), "h5"), ((1, 2, 2, 2), "h2_1x2x2x2")):
            found = map_distances.multiscale_square(
                [DENSE.student(*shape)], [DENSE.teacher(*shape)]
            )
            assert DENSE.close(found, wanted[key])


class TestSumOfSquares:
    def test_equals_the_guide_without_dropped_positions(self) -> None:
        student, teacher = DENSE.pair(NAME)
        found = map_distances.sum_of_squares(student, teacher) / len(student)
        assert DENSE.close(found, DENSE.expected(NAME)["mgd_unmasked_alpha1"])

    def test_counts_only_what_has_a_weight(self) -> None:
        student, teacher = random_maps(3, 2, 3, 2, 2), random_maps(4, 2, 3, 2, 2)
        weights = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
        weights[1, 0, 0, 1] = 3
        found = map_distances.sum_of_squares(student, teacher, weights)
        wanted = 3 * (student - teacher)[1, :, 0, 1].square().sum()
        assert torch.allclose(found, wanted, rtol=1e-12)


class TestFeatureRichness:
    def test_equals_the_guide(self) -> None:
        wanted = DENSE.expected("frs_level")
        teacher_out = DENSE.teacher(1, 3, 2, 2)
        weights = map_distances.confidence(teacher_out)
        assert DENSE.close(weights.flatten(), wanted["mask"])
        feature = map_distances.weighted_square(
            DENSE.student(1, 2, 2, 2), DENSE.teacher(1, 2, 2, 2), weights
        )
        assert DENSE.close(feature, wanted["feature"])
        entropy = map_distances.weighted_bce(DENSE.student(1, 3, 2, 2), teacher_out, weights)
        assert DENSE.close(entropy, wanted["class"])

    def test_without_any_weight_is_zero(self) -> None:
        student, teacher = random_maps(5, 1, 2, 2, 2).requires_grad_(), random_maps(6, 1, 2, 2, 2)
        nothing = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        total = map_distances.weighted_square(student, teacher, nothing)
        total = total + map_distances.weighted_bce(student, teacher, nothing)
        total.backward()
        assert float(total.detach()) == 0
        assert student.grad is not None
        assert not student.grad.any()

    def test_has_the_gradient_of_its_value(self) -> None:
        teacher, weights = random_maps(7, 1, 3, 2, 2), random_maps(8, 1, 1, 2, 2).exp()
        student = random_maps(9, 1, 3, 2, 2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda given: (
                map_distances.weighted_square(given, teacher, weights)
                + map_distances.weighted_bce(given, teacher, weights)
                + map_distances.mean_square([given], [teacher], by_variance=True)
            ),
            (student,),
        )

    def test_class_term_is_least_where_both_agree(self) -> None:
        teacher, weights = random_maps(10, 1, 3, 2, 2), torch.ones(1, 1, 2, 2).double()
        student = teacher.clone().requires_grad_()
        map_distances.weighted_bce(student, teacher, weights).backward()
        assert student.grad is not None
        assert torch.allclose(student.grad, torch.zeros_like(student), atol=1e-12)
        entropy = F.binary_cross_entropy(teacher.sigmoid(), teacher.sigmoid(), reduction="sum")
        found = map_distances.weighted_bce(teacher, teacher, weights)
        assert torch.allclose(found, entropy / 4, rtol=1e-9)


class TestDropPositions:
    @pytest.mark.parametrize("share", [0.0, 0.65, 1.0])
    def test_drops_all_channels_of_a_position(self, share: float) -> None:
        maps = torch.ones(20, 3, 10, 10)
        found = map_distances.drop_positions(
            maps, share=share, generator=torch.Generator().manual_seed(0)
        )
        assert torch.equal(found, found[:, :1].expand_as(found))
        # Of 2000 positions; a standard deviation is about 0.01.
        assert float((found == 0).float().mean()) == pytest.approx(share, abs=0.05)
        assert set(found.unique().tolist()) <= {0.0, 1.0}
