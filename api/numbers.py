"""Numbers in JSON, which has neither NaN nor infinities: those are written as text."""

import math


def in_json(value: float) -> float | str:
    """Return the number, or `"NaN"`, `"Infinity"`, `"-Infinity"`."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
