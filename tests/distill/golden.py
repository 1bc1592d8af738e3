"""Golden numbers: committed inputs and expected values that results are compared with."""

import json
import math
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "methods"


class Cases:
    """A file of nested numeric cases in float64."""

    def __init__(self, name: str, *, tolerance: float, relative: float = 0.0) -> None:
        self.content = json.loads((FOLDER / name).read_text())
        self.tolerance = tolerance
        self.relative = relative

    def case(self, *keys: str) -> Any:  # Any: numbers, lists, objects
        """Return the entry at this path; a key may be shortened to an unambiguous beginning."""
        entry = self.content
        for key in keys:
            full = key if key in entry else [name for name in entry if name.startswith(key)]
            if isinstance(full, list):
                (full,) = full
            entry = entry[full]
        return entry

    def tensor(self, *keys: str) -> torch.Tensor:
        """Return the entry at this path as float64."""
        return torch.tensor(self.case(*keys), dtype=torch.float64)

    def close(self, actual: torch.Tensor, expected: Any) -> bool:  # Any: numbers, lists, tensors
        """Return whether values agree within the file's tolerance."""
        target = torch.as_tensor(expected, dtype=actual.dtype)
        return torch.allclose(actual, target, rtol=self.relative, atol=self.tolerance)


class Checks(Cases):
    """A file of named checks, each with parameters and expected values, and common inputs."""

    def __init__(self, name: str) -> None:
        super().__init__(name, tolerance=0.0)
        self.tolerance = self.relative = float(self.content["tolerance"])
        self._checks = {check["name"]: check for check in self.content["checks"]}

    def tensor(self, *keys: str) -> torch.Tensor:
        """Return an input; numbers are float64, targets int64."""
        values = super().tensor("inputs", *keys)
        return values.long() if keys[0].startswith("target") else values

    def expected(self, name: str) -> dict[str, Any]:
        """Return the expected values of a check."""
        expected: dict[str, Any] = self._checks[name]["expected"]
        return expected

    def parameters(self, name: str) -> dict[str, Any]:
        """Return the parameters that a check was computed with."""
        parameters: dict[str, Any] = self._checks[name]["params"]
        return parameters


class DenseChecks(Checks):
    """Checks of dense tasks: inputs are filled by rule, row by row, from sines and cosines."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.relative = 0.0

    def inputs(self, name: str) -> dict[str, Any]:
        """Return the inputs of a check, as the file has them."""
        inputs: dict[str, Any] = self._checks[name]["inputs"]
        return inputs

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the student's and the teacher's maps (or logits) of a check."""
        shape = self.inputs(name)["shape"]
        return self.student(*shape), self.teacher(*shape)

    @staticmethod
    def student(*shape: int) -> torch.Tensor:
        """Return sin(0.7 k + 0.3) for k = 0, 1, ..."""
        return torch.sin(0.7 * torch.arange(math.prod(shape)).double() + 0.3).view(shape)

    @staticmethod
    def teacher(*shape: int) -> torch.Tensor:
        """Return cos(u) + 0.1 u with u = 0.5 k - 0.2 for k = 0, 1, ..."""
        angles = 0.5 * torch.arange(math.prod(shape)).double() - 0.2
        return (torch.cos(angles) + 0.1 * angles).view(shape)


CASES = Cases("data_free_checks.json", tolerance=1e-6)
"""The data-free family; written with six decimals."""
CHECKS = Checks("classification_checks.json")
"""The supervised families, of classification."""
DENSE = DenseChecks("dense_checks.json")
"""Detection and segmentation."""


class FederatedChecks(Cases):
    """Checks of the federated family: inputs and expected values by name, in six decimals."""

    def inputs(self, name: str, *keys: str) -> torch.Tensor:
        """Return an input of a check as float64."""
        return self.tensor("checks", name, "inputs", *keys)

    def expected(self, name: str, *keys: str) -> Any:  # Any: numbers, lists, objects
        """Return what a check expects."""
        return self.case("checks", name, "expected", *keys)


FEDERATED = FederatedChecks("federated_checks.json", tolerance=1e-6)
"""The federated family; written with six decimals."""
