import torch

from tests.distill.golden import DENSE
from workers.distill.functional import standardization

NAME = "pkd_2x3x2x2"


def channels() -> list[torch.Tensor]:
    """Return the guide's maps as one row of values for each channel."""
    return [each.transpose(0, 1).flatten(1) for each in DENSE.pair(NAME)]


class TestZScoreGap:
    def test_equals_the_guide(self) -> None:
        found = standardization.z_score_gap(*channels())
        assert DENSE.close(found, DENSE.expected(NAME)["unbiased_std_reference"])

    def test_follows_from_the_correlation(self) -> None:
        student, teacher = channels()
        correlations = [
            torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(student, teacher, strict=True)
        ]
        apart = 1 - torch.stack(correlations).mean()
        wanted = DENSE.expected(NAME)
        count = student.shape[1]
        assert DENSE.close(apart, wanted["one_minus_mean_r"])
        assert DENSE.close((count - 1) / count * apart, wanted["factor_(n-1)/n_times_(1-r)"])
        # With the deviation over all values, the factor is gone.
        scores = [
            standardization.standardized(each, by="population", eps=standardization.GAP_EPS)
            for each in (student, teacher)
        ]
        assert DENSE.close((scores[0] - scores[1]).square().mean() / 2, wanted["biased_std"])

    def test_ignores_scale_and_shift_of_every_channel(self) -> None:
        student, teacher = channels()
        scale = torch.tensor([[0.5], [2.0], [7.0]], dtype=torch.float64)
        one = standardization.z_score_gap(student, teacher)
        other = standardization.z_score_gap(scale * student - scale, teacher)
        assert torch.allclose(one, other, rtol=1e-5)

    def test_has_the_gradient_of_its_value_and_none_where_a_channel_is_constant(self) -> None:
        student, teacher = channels()
        assert torch.autograd.gradcheck(
            lambda given: standardization.z_score_gap(given, teacher), (student.requires_grad_(),)
        )
        constant = torch.ones_like(teacher, requires_grad=True)
        standardization.z_score_gap(constant, teacher).backward()
        assert constant.grad is not None
        assert constant.grad.isfinite().all()
