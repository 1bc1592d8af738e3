"""The former place of `networks.weights`, which loading snippets of issued model cards name.

Importable until version 0.3.
"""

import warnings

from workers.distill.networks.weights import rebuild

__all__ = ["rebuild"]

warnings.warn(
    "workers.distill.weights is now workers.distill.networks.weights; the old name goes away with "
    "version 0.3",
    DeprecationWarning,
    stacklevel=2,
)
