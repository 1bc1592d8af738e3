"""How good methods were where they were measured, by task; without torch.

The figures are those of `measured_methods.json`. `python -m benchmarks.classification --write` and
`python -m benchmarks.dense_figures --write` make it, each its own tasks: on the digits and on
scenes composed of them, so they are a first guess for other data and not a promise.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

PATH = Path(__file__).parents[1] / "measured_methods.json"

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """How far a method ended from the same student alone, in points (percent), with one balance."""

    difference: float
    lowest: float
    """Of the means of the pairs of networks."""
    seeds: int
    pairs: int


@functools.cache
def figures() -> dict[str, Json]:
    """Return what was measured by task: `made_with`, `measured_on`, and `methods` by balance."""
    content: dict[str, Json] = json.loads(PATH.read_text())
    return content


def measured_on(task: str | None) -> str | None:
    """Return on what the methods of a task were measured, or None where none was."""
    found = figures().get(task or "")
    return None if found is None else str(found["measured_on"])


def of(name: str, *, balance: str | None, task: str | None) -> Measured | None:
    """Return what is known of a method in a task, with a balance; None: it has no balance."""
    by_balance = figures().get(task or "", {}).get("methods", {}).get(name, {})
    found = next(iter(by_balance.values()), None) if balance is None else by_balance.get(balance)
    return None if found is None else Measured(**found)
