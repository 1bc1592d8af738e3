"""Segmentation networks of torchvision with our network interface.

They return a dictionary of maps; here they return the logits of every pixel, as our own dense
networks do. Their parameters keep their names, so that checkpoints load unchanged. An auxiliary
classifier, where a checkpoint has one, is loaded but never run.
"""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.dense import meta

ACCEPTED = ("aux_loss",)
"""Arguments that reach torchvision, which drops others without a word."""


class Segmenter(interface.Network):
    """Mixin for a torchvision class: `observe`, and `forward` with the pixels' logits alone."""

    task = "segmentation"
    backbone: nn.Module
    classifier: nn.Module
    retort_stages: tuple[str, ...] = ()

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C h w"]:
        """Return the logits of every pixel, at the size of the images."""
        return self.observe(images).logits

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, also before they are upsampled, the backbone's maps and an average."""
        maps: Mapping[str, Tensor] = self.backbone(images)
        # LR-ASPP classifies a high and a low map together, the others one map.
        last = maps["high"] if "high" in maps else maps["out"]
        coarse = self.classifier(maps if "high" in maps else last)
        size = (images.shape[2], images.shape[3])
        logits = functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        return interface.Features(
            logits=logits,
            pooled=last.mean(dim=(2, 3)),
            stages=tuple(maps[name] for name in self.retort_stages),
            final=last,
            coarse_logits=coarse,
        )


@functools.cache
def names() -> tuple[str, ...]:
    """Return the segmentation networks that torchvision offers, sorted."""
    models = importlib.import_module("torchvision.models")
    return tuple(sorted(models.list_models(module=models.segmentation)))


def smallest_batch(name: str) -> int:
    """Return the least number of images that a network of torchvision can be trained on."""
    # DeepLab has a batch norm over an average of the whole image.
    return 2 if name.startswith("deeplabv3") else 1


def adopt(module: nn.Module, *, channels: int) -> Segmenter:
    """Turn a network of torchvision into one of ours, in place; its parameters keep their names."""
    # Any: assigning a widened class is legal for ordinary objects but unknown to the type checker.
    widened: Any = module
    widened.__class__ = _widened(widened.__class__)
    network: Segmenter = widened
    first = (part for part in network.classifier.modules() if isinstance(part, nn.Conv2d))
    # Every head begins with a convolution of the last map.
    network.pooled_width = next(first).in_channels
    _show_stages(network, channels)
    return network


def keywords(given: Mapping[str, Any]) -> dict[str, Any]:  # Any: arguments of the library
    """Return keyword arguments for torchvision; raises `ValueError` for unsupported ones."""
    for name in given:
        if name not in ACCEPTED:
            raise ValueError(f"it has no argument {name!r}; it accepts {', '.join(ACCEPTED)}")
    # The backbone's own weights would be fetched.
    return {"weights_backbone": None, **given}


def _show_stages(network: Segmenter, channels: int) -> None:
    """Let the backbone return its stages too: `layer1` to `layer4`, or the last map of each size.

    Strides count from the image; those of dilated stages are equal.
    """
    backbone: Any = network.backbone  # Any: torchvision's IntermediateLayerGetter
    returned = dict(backbone.return_layers)
    children = list(dict(backbone.named_children()))
    backbone.return_layers = {name: name for name in children}
    try:
        maps = meta.maps(backbone, channels, (meta.PROBE_SIDE, meta.PROBE_SIDE))
    finally:
        backbone.return_layers = returned
    chosen = [name for name in children if name.startswith("layer")]
    if not chosen:
        # The first map is the stem's.
        last_of = {maps[name].shape[2]: name for name in children[1:]}
        chosen = list(last_of.values())
    shown = {name: returned.get(name, f"stage_{name}") for name in chosen}
    backbone.return_layers = {**returned, **shown}
    network.retort_stages = tuple(shown.values())
    network.stages_info = tuple(meta.stage(maps[name], meta.PROBE_SIDE) for name in chosen)


@functools.cache
def _widened(kind: Any) -> type[nn.Module]:  # Any: a class, which mypy holds for unhashable
    return type(kind.__name__, (Segmenter, kind), {"__module__": __name__})
