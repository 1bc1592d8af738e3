"""The Python client of Retort: `retort.connect()` returns a connection to a server."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retort.client import Client, connect

__all__ = ["Client", "connect"]

DISTRIBUTION = "retort-distill"
"""What an installer calls this package; `retort` on the public index is another project."""


def __getattr__(name: str) -> Any:
    # Loaded on first use: `retort --help` imports this package too, and needs no HTTP.
    if name in __all__:
        return getattr(importlib.import_module("retort.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
