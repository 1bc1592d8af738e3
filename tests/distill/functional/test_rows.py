import pytest
import torch

from tests.distill.golden import CASES
from workers.distill.functional.divergences import softened_kl
from workers.distill.functional.rows import per_image, rows

TEACHER = CASES.tensor("inputs", "teacher_logits")
STUDENT = CASES.tensor("inputs", "student_logits")


def as_maps(logits: torch.Tensor) -> torch.Tensor:
    """Return four rows as two images of one line with two pixels."""
    return logits.view(2, 1, 2, -1).permute(0, 3, 1, 2)


def apart(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    return softened_kl(rows(student), rows(teacher), temperature=temperature)


class TestRows:
    def test_are_the_logits_themselves_without_positions(self) -> None:
        assert rows(TEACHER) is TEACHER

    def test_go_through_an_image_before_the_next(self) -> None:
        assert torch.equal(rows(as_maps(TEACHER)), TEACHER)

    def test_take_lines_one_after_the_other(self) -> None:
        logits = torch.arange(2 * 3 * 4 * 5).double().view(2, 3, 4, 5)
        lines = rows(logits)
        assert lines.shape == (40, 3)
        assert torch.equal(lines[1 * 20 + 2 * 5 + 3], logits[1, :, 2, 3])

    def test_lead_gradients_back_to_the_positions(self) -> None:
        logits = as_maps(TEACHER).clone().requires_grad_()
        weights = torch.arange(12).double().view(4, 3)
        (rows(logits) * weights).sum().backward()
        assert logits.grad is not None
        assert torch.equal(logits.grad, as_maps(weights))


class TestPerImage:
    def test_leaves_one_value_an_image_alone(self) -> None:
        values = torch.tensor([3.0, 5.0])
        assert per_image(values, 2) is values

    def test_averages_over_the_positions_of_each_image(self) -> None:
        values = torch.tensor([1.0, 3.0, 10.0, 20.0], dtype=torch.float64)
        assert per_image(values, 2).tolist() == [2.0, 15.0]


class TestSoftenedKLOfRows:
    @pytest.mark.parametrize("temperature", [1, 4, 20])
    def test_equals_the_guide(self, temperature: int) -> None:
        divergence = temperature**2 * apart(STUDENT, TEACHER, float(temperature))
        assert torch.allclose(
            divergence, CASES.tensor(f"kd_each_T{temperature}"), rtol=0, atol=CASES.tolerance
        )
        assert float(divergence.mean()) == pytest.approx(
            CASES.case(f"kd_mean_T{temperature}"), abs=CASES.tolerance
        )

    def test_over_all_entries_is_smaller_by_the_classes(self) -> None:
        divergence = float(apart(STUDENT, TEACHER).mean()) / TEACHER.shape[1]
        assert divergence == pytest.approx(CASES.case("kl_element_mean_T1"), abs=CASES.tolerance)

    def test_equals_the_guide_after_a_step(self) -> None:
        divergence = apart(CASES.tensor("student_logits_step1"), TEACHER)
        assert torch.allclose(
            divergence, CASES.tensor("kd_each_step1"), rtol=0, atol=CASES.tolerance
        )

    def test_of_maps_equals_the_guide(self) -> None:
        divergence = apart(as_maps(STUDENT), as_maps(TEACHER))
        images = per_image(divergence, 2)
        mean = float(divergence.mean())
        assert mean == pytest.approx(CASES.case("seg", "kd_per_pixel_mean"), abs=CASES.tolerance)
        assert torch.allclose(
            images, CASES.tensor("seg", "kd_per_image"), rtol=0, atol=CASES.tolerance
        )
        undivided = float(divergence.sum() / 2)
        expected = CASES.case("seg", "kd_batchmean_no_pixel_division")
        assert undivided == pytest.approx(expected, abs=CASES.tolerance)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_has_the_gradient_of_its_value(self, temperature: float) -> None:
        given = [as_maps(each).clone().requires_grad_() for each in (STUDENT, TEACHER)]
        assert torch.autograd.gradcheck(
            lambda student, teacher: per_image(apart(student, teacher, temperature), 2), given
        )

    def test_of_extreme_logits_is_finite(self) -> None:
        student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4]], requires_grad=True)
        teacher = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 1e4]], requires_grad=True)
        divergence = apart(student, teacher)
        divergence.sum().backward()
        assert divergence.tolist() == [2e4, 0.0]
        for each in (student, teacher):
            assert each.grad is not None
            assert each.grad.isfinite().all()
