"""Checks the engine's signatures, shapes included, while tests run (see `addopts`)."""

from collections.abc import Callable
from typing import Any

import beartype
from beartype import roar

# Hints that cannot be checked from outside a class, or at all.
UNCHECKABLE = (
    roar.BeartypeDecorHintPep673Exception,  # `Self`: jaxtyping decorates methods one by one
    roar.BeartypeDecorHintPep3119Exception,  # a protocol that is not `runtime_checkable`
)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its hints checked at every call, or as it is where they cannot be."""
    try:
        return beartype.beartype(function)
    except UNCHECKABLE:
        return function
