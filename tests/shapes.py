"""Checks the engine's signatures, shapes included, while tests run (see `addopts`)."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import beartype
from beartype import roar

# Hints that cannot be checked from outside a class, or at all.
UNCHECKABLE = (
    roar.BeartypeDecorHintPep673Exception,  # `Self`: jaxtyping decorates methods one by one
    roar.BeartypeDecorHintPep3119Exception,  # a protocol that is not `runtime_checkable`
)
# Every function whose hints are to be checked.
FUNCTIONS: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its hints checked at every call, or as it is where they cannot be.

    The check is made at the first call: making those of all functions takes each process of the
    tests seconds, and most call few of them.
    """
    FUNCTIONS.add(function)
    made: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(check_of(function))
        return made[0](*args, **kwargs)

    return check


def check_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its hints checked, or as it is where they cannot be."""
    try:
        return beartype.beartype(function)
    except UNCHECKABLE:
        return function
