"""Five kills of a running service; `make drill` sends a thousand."""

import pytest

from tests.drills import kills

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_five_kills_lose_and_double_nothing() -> None:
    with kills.running(seed=14) as drill:
        drill.learn()
        faults = drill.batch(5, ("engine", "supervisor", "api", "redis", "postgres"))
    assert not faults
    assert sum(drill.hits.values()) == 5
