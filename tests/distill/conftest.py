"""Surroundings of the engine's tests: what a run sets for its process is put back."""

import signal
from collections.abc import Iterator

import pytest
import torch

from workers.distill.runtime import device


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Restore torch's global settings and the signal handler after each test."""
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    previous = signal.getsignal(signal.SIGTERM)
    with torch.random.fork_rng(devices=[]):
        yield
    enabled = torch.are_deterministic_algorithms_enabled()
    # Only when a test has changed it: the call loads the compiler, which takes seconds.
    if (enabled, torch.is_deterministic_algorithms_warn_only_enabled()) != (strict, warns):
        torch.use_deterministic_algorithms(strict, warn_only=warns)
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture(autouse=True)
def quick_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no network's latency for long in this process: a run does it for each network."""
    monkeypatch.setattr(device, "MEASURE_SECONDS", 0.001)
