"""Networks of timm and torchvision with our network interface.

A library's module becomes a `Network` by a subclass of its class, not by wrapping it: its parameter
names stay the library's own, so its published checkpoints load unchanged and a delivered student
loads into the plain library. Weights are never fetched.
"""

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Collection
from typing import Any

import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.networks import interface
from workers.distill.networks.dense import detectors, segmenters
from workers.distill.networks.external import observation, planning
from workers.distill.networks.interface import LibraryCall

LIBRARIES = ("timm", "torchvision")


class Arguments(pydantic.BaseModel):
    """Arguments of foreign networks; everything else the libraries know stays at its default.

    A list, not free keywords: theirs include paths of files and addresses to fetch from.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    taps: list[str] | None = pydantic.Field(
        None,
        min_length=1,
        max_length=16,
        description="Modules whose outputs are the stages, shallow to deep.",
    )
    drop_rate: float | None = pydantic.Field(
        None, ge=0, lt=1, description="Dropout before the classifier (timm)."
    )
    drop_path_rate: float | None = pydantic.Field(
        None, ge=0, lt=1, description="Stochastic depth (timm)."
    )
    attn_drop_rate: float | None = pydantic.Field(
        None, ge=0, lt=1, description="Dropout of attention weights (timm)."
    )
    proj_drop_rate: float | None = pydantic.Field(
        None, ge=0, lt=1, description="Dropout after attention and MLP (timm)."
    )
    global_pool: str | None = pydantic.Field(
        None, pattern="^[a-z]{1,16}$", description="How the last map is pooled (timm)."
    )
    patch_size: int | None = pydantic.Field(
        None, ge=1, le=256, description="Side of a patch in pixels."
    )
    embed_dim: int | None = pydantic.Field(
        None, ge=1, le=8192, description="Width of a token (timm)."
    )
    depth: int | None = pydantic.Field(None, ge=1, le=256, description="Number of blocks (timm).")
    num_heads: int | None = pydantic.Field(
        None, ge=1, le=256, description="Attention heads of a block (timm)."
    )
    dropout: float | None = pydantic.Field(
        None, ge=0, lt=1, description="Dropout before the classifier (torchvision)."
    )
    stochastic_depth_prob: float | None = pydantic.Field(
        None, ge=0, lt=1, description="Stochastic depth (torchvision)."
    )
    width_mult: float | None = pydantic.Field(
        None, gt=0, le=8, description="Factor of all channels (torchvision, MobileNet)."
    )
    aux_loss: bool | None = pydantic.Field(
        None,
        description="Whether there is an auxiliary classifier (torchvision, segmentation): for "
        "checkpoints that hold one, with keys `aux_classifier.*`.",
    )
    detections_per_image: int | None = pydantic.Field(
        None, ge=1, le=1000, description="Most boxes of an image (torchvision, detection)."
    )
    score_threshold: float | None = pydantic.Field(
        None,
        ge=0,
        lt=1,
        description="Boxes with a lower score are left out (torchvision, detection).",
    )

    def keywords(self) -> dict[str, Any]:  # Any: keyword arguments of two libraries
        """Return the caller's arguments without our own `taps`."""
        return self.model_dump(exclude={"taps"}, exclude_none=True)


class Foreign(interface.Network):
    """Mixin for a library's class: returns features by its plan."""

    retort_plan: observation.Plan

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the logits; those of auxiliary classifiers are dropped."""
        answer: Any = super().forward(images)
        logits: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return logits

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, and stages where the network has maps."""
        return observation.observe(self, self.retort_plan, images)

    def pooled_classifier(self) -> nn.Linear | None:
        """Return the linear layer from `pooled` to logits, if trial showed it to be one."""
        plan = self.retort_plan
        module = self.get_submodule(plan.classifier) if plan.is_linear else None
        return module if isinstance(module, nn.Linear) else None

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the norms found before the rectifiers that end the stages."""
        modules = (self.get_submodule(name) for name in self.retort_plan.norms)
        return tuple(norm for norm in modules if isinstance(norm, nn.BatchNorm2d))

    def enable_features(self, wanted: Collection[str]) -> None:
        """Record the stages' pre-activations from now on, if they are wanted."""
        if "pre_activations" in wanted:
            self.retort_plan = planning.watch(self, self.retort_plan)


def names(library: str) -> list[str]:
    """Return the networks that a library offers and that can be trained here, sorted."""
    if library == "timm":
        return sorted(importlib.import_module("timm").list_models())
    models = importlib.import_module("torchvision.models")
    return sorted([*models.list_models(module=models), *segmenters.names(), *detectors.names()])


def task(library: str, name: str) -> Task:
    """Return what a network of a library is for."""
    if is_detector(library, name):
        return detectors.Detector.task
    return segmenters.Segmenter.task if is_segmenter(library, name) else interface.Network.task


def is_detector(library: str, name: str) -> bool:
    """Whether a network of a library gives boxes."""
    return library == "torchvision" and name in detectors.names()


def is_segmenter(library: str, name: str) -> bool:
    """Whether a network of a library gives the logits of every pixel."""
    return library == "torchvision" and name in segmenters.names()


def build(
    library: str,
    name: str,
    *,
    classes: int,
    channels: int,
    height: int,
    width: int,
    arguments: Arguments,
) -> interface.Network:
    """Build a foreign network with fresh weights and plan how to read its features.

    Raises `UnknownNetwork` when the library has no such network or cannot build it so.
    """
    reference = f"{library}/{name}"
    # timm writes the weights it would fetch after a dot; the network is the same without.
    if name.partition(".")[0] not in names(library):
        raise _unknown(library, name)
    make = _timm if library == "timm" else _torchvision
    try:
        if is_segmenter(library, name):
            return _segmenter(name, classes, channels, arguments)
        if is_detector(library, name):
            return _detector(name, classes, channels, (height, width), arguments)
        module, call = make(name, classes, channels, (height, width), arguments.keywords())
        network = adopt(module)
        network.library_call = call
        probe = observation.picture(channels, height, width)
        plan = planning.make_plan(network, classes=classes, images=probe, taps=arguments.taps)
        network.retort_plan = plan
        network.stages_info = plan.stages
        network.pooled_width = observation.trial(network, plan, probe).pooled.shape[1]
    except errors.UnknownNetwork:
        raise
    # What a library raises for a size or an argument it cannot take is not documented: all of
    # these mean that this network cannot be built, and its own words are the best reason.
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise errors.UnknownNetwork(
            f"{reference} cannot be built for {classes} classes and images of "
            f"{channels}x{height}x{width} with arguments "
            f"{arguments.model_dump(exclude_none=True)}: {reason}",
            network=reference,
        ) from error
    return network


def adopt(module: nn.Module) -> Foreign:
    """Turn a foreign module into a network, in place; its parameters keep their names."""
    # Any: assigning a widened class is legal for ordinary objects but unknown to the type checker.
    widened: Any = module
    widened.__class__ = _widened(widened.__class__)
    network: Foreign = widened
    return network


@functools.cache
def _widened(kind: Any) -> type[nn.Module]:  # Any: a class, which mypy holds for unhashable
    # One class for each foreign class: the compiler guards on it.
    return type(kind.__name__, (Foreign, kind), {"__module__": __name__})


def _unknown(library: str, name: str) -> errors.UnknownNetwork:
    close = difflib.get_close_matches(name, names(library), n=1)
    advice = f"; did you mean '{library}/{close[0]}'?" if close else ""
    return errors.UnknownNetwork(
        f"{library} has no network {name!r}{advice}", network=f"{library}/{name}"
    )


def _timm(
    name: str, classes: int, channels: int, size: tuple[int, int], keywords: dict[str, Any]
) -> tuple[nn.Module, LibraryCall]:
    create = importlib.import_module("timm").create_model
    given = {"pretrained": False, "num_classes": classes, "in_chans": channels, **keywords}
    try:
        module: nn.Module = create(name, img_size=size, **given)
        given["img_size"] = size
    except TypeError as error:
        # Convolutional networks take any size and know no such argument.
        if "img_size" not in str(error):
            raise
        module = create(name, **given)
    return module, LibraryCall("timm.create_model", name, given, {})


def _torchvision(
    name: str, classes: int, channels: int, size: tuple[int, int], keywords: dict[str, Any]
) -> tuple[nn.Module, LibraryCall]:
    given = {"weights": None, "num_classes": classes, **keywords}
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise ValueError(f"it takes square images only, got {size[0]}x{size[1]}")
        given["image_size"] = size[0]
    if name.startswith("maxvit_"):
        given["input_size"] = size
    if name in {"googlenet", "inception_v3"}:
        # Both warn that their start values will change, unless told which to use.
        given["init_weights"] = True
    return _of_torchvision(name, given, channels)


def _segmenter(
    name: str, classes: int, channels: int, arguments: Arguments
) -> segmenters.Segmenter:
    given = segmenters.keywords(arguments.model_dump(exclude_none=True))
    given = {"weights": None, "num_classes": classes, **given}
    module, call = _of_torchvision(name, given, channels)
    network = segmenters.adopt(module, channels=channels)
    network.library_call = call
    network.smallest_batch = segmenters.smallest_batch(name)
    return network


def _detector(
    name: str, classes: int, channels: int, size: tuple[int, int], arguments: Arguments
) -> detectors.Detector:
    detectors.check_size(name, size)
    given = detectors.keywords(name, arguments.model_dump(exclude_none=True))
    counted = detectors.library_classes(name, classes)
    given = {"weights": None, "num_classes": counted, **given}
    module, call = _of_torchvision(name, given, channels)
    network = detectors.adopt(module, classes=classes, channels=channels, size=size)
    replaced = {**call.replaced, "transform": detectors.plain_transform(network, size, channels)}
    network.library_call = dataclasses.replace(call, replaced=replaced)
    network.smallest_batch = detectors.smallest_batch(name)
    return network


def _of_torchvision(
    name: str, keywords: dict[str, Any], channels: int
) -> tuple[nn.Module, LibraryCall]:
    module: nn.Module = importlib.import_module("torchvision.models").get_model(name, **keywords)
    replaced = _set_channels(module, channels)
    return module, LibraryCall("torchvision.models.get_model", name, keywords, replaced)


def _set_channels(module: nn.Module, channels: int) -> dict[str, str]:
    """Replace the first convolution where torchvision offers no argument for its channels.

    Returns what was replaced, as `LibraryCall` says it.
    """
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels == channels:
                return {}
            fresh = nn.Conv2d(
                channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]  # torch types it as any-length tuple
                layer.stride,  # type: ignore[arg-type]  # the same
                layer.padding,  # type: ignore[arg-type]  # the same
                bias=layer.bias is not None,
            )
            parent, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(parent), leaf, fresh)
            return {path: f"torch.nn.{fresh!r}"}
    return {}
