"""How long work on an upload or export rests when a worker lacks something, and how often."""

from datetime import timedelta

MOST = 12
"""Claims that no worker could carry out, after which the work is given up."""
_LONGEST_SECONDS = 300.0


def delay(postponements: int) -> timedelta:
    """Return how long to rest after so many: doubling from a second, up to five minutes."""
    return timedelta(seconds=min(_LONGEST_SECONDS, 2.0 ** (postponements - 1)))
