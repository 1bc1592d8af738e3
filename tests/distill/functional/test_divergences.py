import pytest
import torch

from tests.distill.golden import CASES
from workers.distill.functional import divergences

TEACHER = CASES.tensor("inputs", "teacher_logits")
STUDENT = CASES.tensor("inputs", "student_logits")


def as_maps(logits: torch.Tensor) -> torch.Tensor:
    """Return four rows as two images of one line with two pixels."""
    return logits.view(2, 1, 2, -1).permute(0, 3, 1, 2)


class TestScaledKL:
    @pytest.mark.parametrize("temperature", [1, 4, 20])
    def test_equals_the_guide_for_images_and_for_positions(self, temperature: int) -> None:
        for shape in (torch.clone, as_maps):
            divergence = divergences.scaled_kl(
                shape(STUDENT), shape(TEACHER), temperature=float(temperature)
            )
            expected = CASES.case(f"kd_mean_T{temperature}")
            assert float(divergence) == pytest.approx(expected, abs=CASES.tolerance)

    def test_tends_to_the_squared_difference_of_centred_logits_over_twice_the_classes(self) -> None:
        centred = [each - each.mean(1, keepdim=True) for each in (STUDENT, TEACHER)]
        limit = (centred[0] - centred[1]).square().sum(1).mean() / (2 * TEACHER.shape[1])
        divergence = divergences.scaled_kl(STUDENT, TEACHER, temperature=1e4)
        # The next term falls with the temperature.
        assert torch.allclose(divergence, limit, rtol=1e-3)

    def test_has_the_gradient_of_its_value(self) -> None:
        given = [as_maps(each).clone().requires_grad_() for each in (STUDENT, TEACHER)]
        assert torch.autograd.gradcheck(
            lambda student, teacher: divergences.scaled_kl(student, teacher, temperature=4.0),
            given,
        )
