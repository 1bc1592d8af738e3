"""How many bytes the values of a round's messages take, before headers, per client.

The engine counts the messages that it really encodes; these are the figures of the papers, to
compare methods before a run. `value_bytes` is 4 in float32 and 2 in float16.
"""

from collections.abc import Sequence


def label_table_bytes(*, rows: int, classes: int, value_bytes: int = 4, counts: int = 0) -> int:
    """Return the size of a row per label (FD), and of `counts` sample counts of 4 bytes."""
    return value_bytes * rows * classes + 4 * counts


def prediction_bytes(
    *, samples: int, classes: int, value_bytes: int = 4, indices: bool = False
) -> int:
    """Return the size of a row per open sample (DS-FL), and of their indices of 4 bytes."""
    return value_bytes * samples * classes + (4 * samples if indices else 0)


def weight_bytes(parameters: int, *, value_bytes: int = 4) -> int:
    """Return the size of weights (FedAvg)."""
    return value_bytes * parameters


def seed_bytes(seeds: int, image_shape: Sequence[int]) -> int:
    """Return the size of raw images of 8 bits a value (FAug's seed samples)."""
    size = seeds
    for side in image_shape:
        size *= side
    return size
