"""Checkpoints of a library's network under names that its own functions, or its twin, explain.

timm brings with each family a function that renames what other programs write. And where timm and
torchvision have the same network, a file of the one is loaded into the twin there; the layers of
both are matched in the order in which they compute, and only a match that gives the same logits is
taken.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.networks import catalog, interface, readings
from workers.distill.networks.checkpoints import Contained
from workers.distill.networks.external import observation
from workers.distill.networks.layouts import OWN, NameLayout
from workers.distill.networks.readings import Choice, WeightsReading

LARGEST_DIFFERENCE = 1e-4
"""Of the logits of twins, relative to the largest: two ways to add the same numbers."""
SEED = 0
KINDS = ("weight", "bias", "running_mean", "running_var")
COMPUTED = ("relative_position_index", "attn_mask", readings.COUNTER)
"""Endings of keys of buffers that follow from the network's shape, or count its batches."""

TWINS: dict[str, str] = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mnasnet0_5": "mnasnet_050",
    "mnasnet0_75": "mnasnet_075",
    "mnasnet1_0": "mnasnet_100",
    "mnasnet1_3": "mnasnet_140",
    **{
        f"regnet_{kind}_{size}": f"regnet{kind}_{number}"
        for kind in "xy"
        for size, number in (
            ("400mf", "004"),
            ("800mf", "008"),
            ("1_6gf", "016"),
            ("3_2gf", "032"),
            ("8gf", "080"),
            ("16gf", "160"),
            ("32gf", "320"),
        )
    },
    **{
        name: name
        for name in (
            *("densenet121", "densenet161", "densenet169", "densenet201"),
            *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3"),
            *("efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7"),
            *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
            *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
            "inception_v3",
        )
    },
}
"""Networks of torchvision that timm has too, by their names there."""


@dataclass(frozen=True)
class Converted:
    """What a file says of a library's network under the names of another program."""

    readings: tuple[WeightsReading, ...] = ()
    hint: str = ""
    """What to do where the file is one of the twin, and the twins do not give the same logits."""


def of_file(network: interface.Network, contained: Contained, choice: Choice) -> Converted:
    """Return the readings of a file that timm's functions and the network's twin allow."""
    library, _, name = network.reference.partition("/")
    if library == "timm":
        found = tuple(_filtered(network, contained, choice))
        if any(reading.fits for reading in found):
            return Converted(found)
    reference = _twin_of(library, name.partition(".")[0])
    twin = None if reference is None else _built(network, reference)
    return Converted() if twin is None else _of_twin(network, twin, contained, choice)


# -- timm's own functions --------------------------------------------------------------------------


def _filtered(
    network: interface.Network, contained: Contained, choice: Choice
) -> Iterator[WeightsReading]:
    rename = _filter_of(network)
    if rename is None:
        return
    prefix = contained.largest()
    paths = [
        path for path in contained.below(prefix) if contained.places[path].outer == len(prefix)
    ]
    words = {path.removeprefix(prefix).partition(".")[0] for path in paths}
    prefixes = [prefix, *(f"{prefix}{word}." for word in words if len(words) == 1)]
    for start in prefixes:
        given = {path.removeprefix(start): contained.tensor(path) for path in paths}
        try:
            with torch.no_grad():
                renamed = dict(rename(dict(given), network))
        # Written for the files that timm publishes: of others anything may be missing.
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            continue
        state = {key: _unresized(key, tensor, given) for key, tensor in renamed.items()}
        expected = network.state_dict()
        others = [key for key in state if key not in expected]
        kept = {key: tensor for key, tensor in state.items() if key in expected}
        layout = NameLayout("the files that timm converts", OWN.sources)
        yield readings.compared(network, start, layout, kept, others, choice)


def _filter_of(network: interface.Network) -> Any:  # Any: a function of timm
    """Return the function by which timm renames the files of a network's family, if it has one."""
    for kind in type(network).__mro__:
        if kind.__module__.startswith("timm.models."):
            module = sys.modules[kind.__module__]
            for name in ("checkpoint_filter_fn", "_filter_fn"):
                function = getattr(module, name, None)
                if function is not None:
                    return lambda state, model: function(state, model)
    return None


def _unresized(key: str, tensor: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return what was given: timm interpolates positions without being asked."""
    before = given.get(key)
    return tensor if before is None or before.numel() == tensor.numel() else before


# -- twins -----------------------------------------------------------------------------------------


def _twin_of(library: str, name: str) -> str | None:
    if library == "torchvision":
        return f"timm/{TWINS[name]}" if name in TWINS else None
    if library != "timm":
        return None
    return next((f"torchvision/{other}" for other, twin in TWINS.items() if twin == name), None)


def _of_twin(
    network: interface.Network, twin: interface.Network, contained: Contained, choice: Choice
) -> Converted:
    converted, unequal = [], False
    for reading in readings.find(twin, contained, choice):
        if not reading.fits:
            continue
        with torch.no_grad():
            for key, target in twin.state_dict().items():
                if key in reading.state:
                    target.copy_(reading.state[key].reshape(target.shape))
        state = matched(twin, network)
        if state is None:
            unequal = True
            continue
        layout = NameLayout(f"{twin.reference}, which is the same network,", OWN.sources)
        converted.append(
            WeightsReading(
                reading.prefix, layout, state, aside=reading.aside, remarks=reading.remarks
            )
        )
    hint = (
        f"Its names and shapes are those of {twin.reference}, which computes something else: "
        "choose that network."
    )
    return Converted(tuple(converted), hint if unequal else "")


def _built(network: interface.Network, reference: str) -> interface.Network | None:
    channels, height, width = network.image_shape
    try:
        return catalog.build(
            reference,
            classes=network.classes,
            channels=channels,
            height=height,
            width=width,
            arguments={},
        )
    except errors.UnknownNetwork:
        return None


def matched(source: interface.Network, target: interface.Network) -> dict[str, Tensor] | None:
    """Return one network's weights under the names of another, or None where they are not equal.

    Tensors of the same kind and size are matched in the order in which they stand, then in the
    order in which their layers compute. `target` is left as it was.
    """
    channels, height, width = target.image_shape
    images = observation.picture(channels, height, width)
    theirs, own = source.state_dict(), target.state_dict()
    with torch.no_grad(), _evaluated(source), _evaluated(target):
        wanted = source(images)
        for order in (_as_they_stand, _as_they_compute):
            pairs = _pairs(order(source, images), theirs, order(target, images), own)
            if pairs is None:
                continue
            state = {key: theirs[name].reshape(own[key].shape) for key, name in pairs.items()}
            if _is_close(_answer_with(target, state, images), wanted):
                return {key: tensor.clone() for key, tensor in state.items()}
    return None


def _is_close(got: Tensor, wanted: Tensor) -> bool:
    largest = float(wanted.abs().max()) or 1.0
    return float((wanted - got).abs().max()) <= LARGEST_DIFFERENCE * largest


def _answer_with(network: interface.Network, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the logits that a network would give with other weights, and put its own back."""
    own = network.state_dict()
    before = {key: own[key].clone() for key in state}
    try:
        for key, tensor in state.items():
            own[key].copy_(tensor)
        return network(images)
    finally:
        for key, tensor in before.items():
            own[key].copy_(tensor)


@contextlib.contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _pairs(
    given: Sequence[str],
    theirs: Mapping[str, Tensor],
    wanted: Sequence[str],
    own: Mapping[str, Tensor],
) -> dict[str, str] | None:
    """Return which of the given keys stands for each of the wanted, if each has one."""
    sorted_given, sorted_wanted = _by_kind(given, theirs), _by_kind(wanted, own)
    counts = [
        {kind: len(keys) for kind, keys in each.items()} for each in (sorted_given, sorted_wanted)
    ]
    if counts[0] != counts[1]:
        return None
    return {
        key: name
        for kind, keys in sorted_wanted.items()
        for key, name in zip(keys, sorted_given[kind], strict=True)
    }


def _by_kind(keys: Sequence[str], state: Mapping[str, Tensor]) -> dict[tuple[str, int], list[str]]:
    kinds: dict[tuple[str, int], list[str]] = {}
    for key in keys:
        kind = next((word for word in KINDS if key.endswith(word)), "")
        kinds.setdefault((kind, state[key].numel()), []).append(key)
    return kinds


def _as_they_stand(network: interface.Network, _: Tensor) -> list[str]:
    return [key for key in network.state_dict() if not key.endswith(COMPUTED)]


def _as_they_compute(network: interface.Network, images: Tensor) -> list[str]:
    """Return the keys in the order in which layers compute; those of no layer follow."""
    called: dict[str, None] = {}
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.setdefault(name))
        for name, module in network.named_modules()
        if name
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    state = _as_they_stand(network, images)
    places = {name: place for place, name in enumerate(called)}
    return sorted(state, key=lambda key: places.get(key.rpartition(".")[0], len(places)))
