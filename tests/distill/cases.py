"""The numeric cases of the data-free family: one scene of logits, and what follows from it."""

import json
from pathlib import Path
from typing import Any

import torch

CONTENT = json.loads((Path(__file__).parent / "methods" / "data_free_checks.json").read_text())
TOLERANCE = 1e-6
"""The cases are written with six decimals."""


def case(*keys: str) -> Any:  # Any: numbers, lists, objects
    """Return the entry at this path; a key may be shortened to an unambiguous beginning."""
    found = CONTENT
    for key in keys:
        full = key if key in found else [name for name in found if name.startswith(key)]
        if isinstance(full, list):
            (full,) = full
        found = found[full]
    return found


def tensor(*keys: str) -> torch.Tensor:
    """Return the entry at this path as float64."""
    return torch.tensor(case(*keys), dtype=torch.float64)
