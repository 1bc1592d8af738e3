"""What is known of a network once it is built, for whoever checks jobs without building any."""

from typing import Any

from workers.distill.config.descriptions import FEATURES
from workers.distill.methods.base import is_shown
from workers.distill.networks import shapes
from workers.distill.networks.interface import Network, batch_norms


def of(network: Network) -> dict[str, Any]:  # Any: JSON
    """Return what a network shows, its batch norms and gradients; hooks stay on the network."""
    network.enable_features(FEATURES)
    measured = shapes.measure(network)
    return {
        "shows": [name for name in FEATURES if is_shown(name, network, measured)],
        "has_batch_norm": bool(batch_norms(network)),
        "gives_gradients": network.torch_form() is not None,
        "limits": network.limits,
    }
