"""The guide's numeric checks: inputs and expected values in float64."""

import json
from pathlib import Path
from typing import Any

import torch

CONTENT = json.loads((Path(__file__).parent / "classification_checks.json").read_text())
TOLERANCE: float = CONTENT["tolerance"]


def tensor(name: str) -> torch.Tensor:
    """Return an input; numbers are float64, labels int64."""
    values = torch.tensor(CONTENT["inputs"][name], dtype=torch.float64)
    return values.long() if name.startswith("target") else values


def expected(name: str) -> dict[str, Any]:
    """Return the expected values of a check."""
    return next(check["expected"] for check in CONTENT["checks"] if check["name"] == name)


def close(found: torch.Tensor, wanted: Any) -> bool:
    """Return whether values agree within the guide's tolerance."""
    target = torch.as_tensor(wanted, dtype=found.dtype)
    return torch.allclose(found, target, rtol=TOLERANCE, atol=TOLERANCE)


def parameters(name: str) -> dict[str, Any]:
    """Return the parameters that a check was computed with."""
    return next(check["params"] for check in CONTENT["checks"] if check["name"] == name)
