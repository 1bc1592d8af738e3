"""What every loss promises of its gradient."""

import torch


def is_finite(loss: torch.Tensor, given: torch.Tensor) -> bool:
    """Return whether a loss (or each of several) and its gradient for `given` are finite."""
    loss.sum().backward()
    if given.grad is None:
        raise AssertionError("the loss has no gradient for what it was given")
    return bool(loss.isfinite().all() and given.grad.isfinite().all())
