"""Weights that change from round to round; the first round has number 0."""


def geometric(start: float, ratio: float, round_index: int, *, floor: float = 0.0) -> float:
    """Return max(floor, start * ratio^round_index)."""
    return max(floor, start * ratio**round_index)


def linear(start: float, round_index: int, rounds: int) -> float:
    """Return start * (1 - round_index / rounds), which reaches 0 after the last round."""
    return start * (1 - round_index / rounds)


def relative_weight(share: float) -> float:
    """Return share / (1 - share): the weight beside a loss of weight 1 instead of 1 - share.

    Raises `ValueError` unless the share is in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and below 1, got {share}")
    return share / (1 - share)
