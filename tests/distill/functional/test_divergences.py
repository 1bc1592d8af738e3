import pytest
import torch

from tests.distill.golden import CASES, DENSE
from workers.distill.functional import divergences
from workers.distill.functional.rows import rows

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


class TestScaledKLOfPixels:
    NAME = "pixel_kd_2x3x2x2"

    @pytest.mark.parametrize("temperature", [1, 4])
    def test_equals_the_guide(self, temperature: int) -> None:
        found = divergences.scaled_kl(*DENSE.pair(self.NAME), temperature=float(temperature))
        assert DENSE.close(found, DENSE.expected(self.NAME)[f"tau{temperature}"])

    def test_equals_the_guide_without_ignored_pixels(self) -> None:
        inputs = DENSE.inputs(self.NAME)
        counted = torch.tensor(inputs["labels"]) != inputs["ignore"]
        found = divergences.scaled_kl(*DENSE.pair(self.NAME), temperature=1.0, counted=counted)
        assert DENSE.close(found, DENSE.expected(self.NAME)["tau1_ignore_masked"])

    def test_weighs_pixels_by_what_each_counts(self) -> None:
        student, teacher = DENSE.pair(self.NAME)
        weights = torch.arange(8, dtype=student.dtype).reshape(2, 2, 2) / 10
        apart = (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1)
        wanted = float((apart * weights).sum()) / 2.8
        found = divergences.scaled_kl(student, teacher, temperature=1.0, counted=weights)
        assert float(found) == pytest.approx(wanted, rel=1e-12)

    def test_is_zero_where_no_pixel_counts(self) -> None:
        student, teacher = DENSE.pair(self.NAME)
        student.requires_grad_()
        counted = torch.zeros(2, 2, 2, dtype=torch.bool)
        loss = divergences.scaled_kl(student, teacher, temperature=1.0, counted=counted)
        loss.backward()
        assert float(loss.detach()) == 0
        assert student.grad is not None
        assert not student.grad.any()


class TestChannelKL:
    NAME = "cwd_2x3x2x2"

    @pytest.mark.parametrize("temperature", [1, 4])
    def test_equals_the_guide(self, temperature: int) -> None:
        found = divergences.channel_kl(*DENSE.pair(self.NAME), temperature=float(temperature))
        wanted = DENSE.expected(self.NAME)
        assert DENSE.close(found, wanted[f"tau{temperature}"])
        if temperature == 1:
            assert DENSE.close(3 * found, wanted["tau1_weight3"])

    def test_ignores_a_constant_added_to_a_channel(self) -> None:
        student, teacher = DENSE.pair(self.NAME)
        shift = torch.tensor([1.0, -3.0, 7.0], dtype=torch.float64)[:, None, None]
        one, other = (
            divergences.channel_kl(each, teacher, temperature=1.0)
            for each in (student, student + shift)
        )
        assert torch.allclose(one, other, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = DENSE.pair(self.NAME)
        assert torch.autograd.gradcheck(
            lambda given: divergences.channel_kl(given, teacher, temperature=4.0),
            (student.requires_grad_(),),
        )


class TestDecoupledKL:
    NAME = "dkd_roi_4x5"

    def test_equals_the_guide_with_background_as_a_class(self) -> None:
        inputs, wanted = DENSE.inputs(self.NAME), DENSE.expected(self.NAME)
        labels = torch.tensor(inputs["labels"])
        for alpha, beta, key in (
            (1.0, 0.0, "tckd"),
            (0.0, 1.0, "nckd"),
            (inputs["alpha"], inputs["beta"], "total"),
        ):
            found = divergences.decoupled_kl(
                *DENSE.pair(self.NAME), labels, alpha=alpha, beta=beta, temperature=inputs["tau"]
            )
            assert DENSE.close(found.mean(), wanted[key])

    def test_of_pixels_is_the_divergence_where_the_teachers_doubt_is_the_weight(self) -> None:
        # KL = TCKD + (1 - p_y of the teacher) * NCKD, pixel by pixel.
        student, teacher = (rows(each) for each in DENSE.pair("pixel_kd_2x3x2x2"))
        labels = torch.tensor([0, 1, 2, 0, 1, 2, 1, 0])
        parts = [
            divergences.decoupled_kl(
                student, teacher, labels, alpha=alpha, beta=1 - alpha, temperature=1.0
            )
            for alpha in (1.0, 0.0)
        ]
        doubt = 1 - teacher.softmax(1).gather(1, labels[:, None]).squeeze(1)
        whole = divergences.softened_kl(student, teacher, temperature=1.0)
        assert torch.allclose(parts[0] + doubt * parts[1], whole, rtol=1e-9)


class TestBinaryKL:
    def test_is_the_divergence_of_two_coins(self) -> None:
        student, teacher = DENSE.student(3, 4), DENSE.teacher(3, 4)
        found = divergences.binary_kl(student, teacher, temperature=2.0, focus=0.0)
        ours, theirs = ((each / 2).sigmoid() for each in (student, teacher))
        wanted = 4 * sum(
            (q * (q / p).log() for p, q in ((ours, theirs), (1 - ours, 1 - theirs))),
            torch.zeros(3, 4),
        )
        assert torch.allclose(found, wanted, rtol=1e-9)
        focused = divergences.binary_kl(student, teacher, temperature=2.0, focus=2.0)
        assert torch.allclose(focused, wanted * (ours - theirs).square(), rtol=1e-9)

    @pytest.mark.parametrize("focus", [0.0, 0.5, 2.0])
    def test_has_a_gradient_that_is_a_number_where_both_agree(self, focus: float) -> None:
        logits = torch.tensor([0.0, 80.0, -300.0], requires_grad=True)
        divergences.binary_kl(
            logits, logits.detach(), temperature=1.0, focus=focus
        ).sum().backward()
        assert logits.grad is not None
        assert torch.allclose(logits.grad, torch.zeros(3))

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = DENSE.student(3, 2).requires_grad_(), DENSE.teacher(3, 2)
        assert torch.autograd.gradcheck(
            lambda given: divergences.binary_kl(given, teacher, temperature=2.0, focus=2.0),
            (student,),
        )
