"""All clients' images in one place: what the federation would have if data could move.

The upper bound of a federated method. A single client holds the union of the parts; open images
stay outside, as in the other methods.

Source: common practice; the "centralized" of arXiv 2008.06180.
"""

from typing import ClassVar

from workers.distill.methods.base import Source
from workers.distill.methods.federated.base import Delivers, FederatedMethod


class Centralised(FederatedMethod):
    """Train one network on the images of all clients."""

    name = "centralised"
    title = "Training on the union of the clients' data"
    source = Source("Training on pooled data", venue="common practice")
    delivers: ClassVar[Delivers] = "client"
    exchanges = False
    pools = True

    class Params(FederatedMethod.Params):
        """Only the federation."""

    params: Params
