"""Tests that need a CUDA device: without one they are deselected, not skipped.

`RETORT_TEST_DEVICE=cpu` runs them with the CPU in the place of the device, to check the tests
themselves where there is no such card.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.distill.conftest import process_settings as process_settings
from tests.gpu import scenes
from workers.distill.runtime import device


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is marked `gpu` where there is no device for it."""
    if scenes.is_available():
        return
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Compute in float32 where it is asked for, not in TF32; restore cuDNN's settings."""
    benchmark = torch.backends.cudnn.benchmark
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no network's latency for long: nobody here asks for it."""
    monkeypatch.setattr(device, "MEASURE_SECONDS", 0.001)


@pytest.fixture
def equal_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw all random numbers on the CPU, so that both devices see the same ones."""

    def moved(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        # Any: what torch's functions take.
        def drawn(*arguments: Any, device: Any = None, **named: Any) -> torch.Tensor:
            if device is None or torch.device(device).type != "cuda":
                return draw(*arguments, device=device, **named)
            return draw(*arguments, device="cpu", **named).to(device)

        return drawn

    def filled(fill: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def refill(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            if tensor.device.type != "cuda":
                return fill(tensor, *arguments, **named)
            return tensor.copy_(fill(torch.empty_like(tensor, device="cpu"), *arguments, **named))

        return refill

    for name in ("rand", "randn", "randperm", "randint"):
        monkeypatch.setattr(torch, name, moved(getattr(torch, name)))
    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, filled(getattr(torch.Tensor, name)))
