import pytest
import torch

from workers.distill.functional import singular


def matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def projector(given: torch.Tensor) -> torch.Tensor:
    """Return what does not depend on signs: the projections onto each of two vectors."""
    vectors, _ = singular.right_vectors(given, 2)
    columns = vectors.mT[..., None]
    return columns @ columns.mT


class TestRightVectors:
    @pytest.mark.parametrize("shape", [(3, 7, 4), (3, 4, 7), (3, 5, 5)])
    def test_equals_the_decomposition_up_to_signs(self, shape: tuple[int, int, int]) -> None:
        given = matrices(*shape)
        _, values, rows = torch.linalg.svd(given, full_matrices=False)
        vectors, actual = singular.right_vectors(given, 3)
        # The Gram matrix squares singular values, so digits are lost in the smaller ones.
        assert torch.allclose(actual, values[:, :3], rtol=1e-8)
        cosines = (vectors.mT @ rows[:, :3].mT).abs()
        assert torch.allclose(cosines, torch.eye(3, dtype=torch.float64), atol=1e-8)

    @pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5)])
    def test_has_the_gradient_of_its_value(self, shape: tuple[int, int, int]) -> None:
        given = matrices(*shape, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(projector, (given,))

    @pytest.mark.parametrize(
        "given",
        [
            torch.eye(4).expand(2, 4, 4),
            torch.zeros(2, 5, 4),
            torch.ones(2, 5, 4),
            torch.tensor([[1.0, torch.nan], [torch.inf, 2.0]]).expand(1, 2, 2),
        ],
        ids=["equal values", "zeros", "rank one", "not finite"],
    )
    def test_value_and_gradient_are_finite(self, given: torch.Tensor) -> None:
        wanted = given.clone().requires_grad_()
        vectors, values = singular.right_vectors(wanted, 2)
        (vectors * torch.arange(2.0)).sum().backward()
        assert vectors.isfinite().all()
        assert values.isfinite().all()
        assert wanted.grad is not None
        assert wanted.grad.isfinite().all()
