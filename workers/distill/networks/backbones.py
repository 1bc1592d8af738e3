"""Networks without their classifier: they answer with the embedding that it was computed from.

A backbone is the same network with an identity in the place of its linear classifier, so that all
other weights keep their names: files of timm with `num_classes=0`, and of torchvision whose last
layer was removed, load as they are.
"""

from torch import nn

from workers.distill import errors
from workers.distill.config.descriptions import BACKBONE
from workers.distill.networks.interface import Network

BUILT_CLASSES = 1000
"""Classes of the classifier that a backbone is built with before it is taken out."""


def remove_classifier(network: Network) -> None:
    """Make a network answer with its embedding [N, D], in place.

    Raises `UnknownNetwork` for one whose logits are no linear function of an embedding.
    """
    path = classifier_path(network)
    if path is None:
        raise errors.UnknownNetwork(
            f"{network.reference or type(network).__name__} has no linear classifier on an "
            "embedding, so it cannot be had without one; choose another network",
            network=network.reference,
        )
    network.set_submodule(path, nn.Identity())
    network.removed_classifier = path
    network.task, network.classes = BACKBONE, 0
    call = network.library_call
    if call is not None:
        network.library_call = call.without(path)


def classifier_path(network: Network) -> str | None:
    """Return where the linear layer from embedding to logits stands, or None without one."""
    classifier = network.pooled_classifier()
    if classifier is None:
        return None
    return next((name for name, part in network.named_modules() if part is classifier), None)
