"""Federated variants of one study whose clients do not train on the same images.

A method that exchanges predictions sets images of the training split aside as its open set; the
clients of another one train on all. Next to each other, those have had more images.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models_registry import catalog, errors
from workers.distill.config.federation import REMOTE, open_images_or_default

Method = Mapping[str, Any]  # Any: JSON


def warnings(methods: Sequence[Method]) -> list[list[errors.Fault]]:
    """Return for each complete method of a study what its submitter should know of the images.

    Only where nobody has chosen: `open_images` null leaves all images to the clients of a method
    that needs no open set, while other methods of the study have one.
    """
    asked = [_open_images(method) for method in methods]
    others = dict.fromkeys(
        (method["name"], images)
        for method, images in zip(methods, asked, strict=True)
        if images and _uses_open_set(method)
    )
    return [
        list(_of(method, others)) if images == 0 else []
        for method, images in zip(methods, asked, strict=True)
    ]


def _open_images(method: Method) -> int | float | None:
    """Return how many images are set aside, below 1 a share; None where no client is simulated."""
    federation = method.get("federation")
    if federation is None or federation["clients"] == REMOTE:
        return None
    asked = federation["open_images"]
    return open_images_or_default(asked, uses_open_set=_uses_open_set(method))


def _uses_open_set(method: Method) -> bool:
    exchange = catalog.describe_method(method["name"]).exchange
    return exchange is not None and exchange.uses_open_set


def _of(method: Method, others: Mapping[tuple[str, int | float], None]) -> Iterator[errors.Fault]:
    if not others or method["federation"]["open_images"] is not None:
        return
    name = method["name"]
    told = " and ".join(f"{other} ({images:g})" for other, images in others)
    values = " or ".join(dict.fromkeys(f"{images:g}" for _, images in others))
    yield errors.Fault(
        "/method/federation/open_images",
        "more_training_images",
        f"the clients of {name} train on all images, and those of {told} on what the open set "
        f"leaves; with federation.open_images {values}, {name} trains on the same images",
    )
