"""Clients that train alone: what each has without the federation.

The lower bound of a federated method, and its baseline. Nothing travels.

Source: common practice; the "standalone" of arXiv 1811.11479.
"""

from typing import ClassVar

from workers.distill.methods.base import Source
from workers.distill.methods.federated.base import Delivers, FederatedMethod


class Local(FederatedMethod):
    """Train each client on its own images alone."""

    name = "local"
    title = "Local training without exchange"
    source = Source("Training each client alone", venue="common practice")
    delivers: ClassVar[Delivers] = "client"
    exchanges = False

    class Params(FederatedMethod.Params):
        """Only the federation."""

    params: Params
