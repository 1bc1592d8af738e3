"""How a network that we did not write is observed: decided once, by trial, then followed.

timm's `forward_intermediates` is used where its logits equal those of `forward`; else hooks at
modules that the caller names, at evenly spaced transformer blocks, or where the maps of the trunk
change their size.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.networks import interface

PROBE_SIDE = 64
"""Side at which stages are told apart: at the input's own size the last ones may all be 1x1."""
MOST_TOKEN_STAGES = 4
"""A transformer of equal blocks has no stages: so many of its blocks, evenly spaced, stand in."""
TRUNKS = ("features", "layers", "blocks", "stages", "trunk_output")
"""Children whose own children are the steps of a trunk; other children of the root are steps."""


@dataclass(frozen=True)
class Plan:
    """How a foreign network is observed: decided once, by one trial forward pass."""

    classifier: str
    taps: tuple[str, ...] = ()
    stem_tap: str | None = None
    indices: tuple[int, ...] = ()
    stem_index: int | None = None
    direct: bool = False
    stages: tuple[interface.StageInfo, ...] = ()


def picture(channels: int, height: int, width: int) -> Tensor:
    """Return a smooth test picture, made without touching any random generator."""
    count = channels * height * width
    return torch.sin(torch.arange(count, dtype=torch.float32)).reshape(1, channels, height, width)


def observe(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    """Return what one forward pass shows, found as planned."""
    if plan.indices:
        return _observe_intermediates(network, plan, images)
    return _observe_taps(network, plan, images)


@torch.no_grad()
def trial(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    """Observe in evaluation mode, so that nothing is learned or drawn; the mode is restored."""
    was_training = network.training
    network.eval()
    try:
        return observe(network, plan, images)
    finally:
        network.train(was_training)


def make_plan(
    network: nn.Module, *, classes: int, images: Tensor, taps: Sequence[str] | None
) -> Plan:
    """Decide how to observe a network; `taps` names the modules whose outputs are the stages.

    Raises `UnknownNetwork` for a tap that does not exist, `ValueError` without a classifier.
    """
    classifier = _classifier_name(network, classes)
    if taps is not None:
        known = dict(network.named_modules())
        for name in taps:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise errors.UnknownNetwork(
                    f"taps: the network has no module {name!r}"
                    + (f"; did you mean {close[0]!r}?" if close else ""),
                    argument="taps",
                )
        return _measured(network, Plan(classifier, tuple(taps)), images)
    plan = _intermediates_plan(network, classifier, images)
    return plan if plan is not None else _tap_plan(network, classifier, images)


def _classifier_name(network: nn.Module, classes: int) -> str:
    """Return the module whose input is the embedding."""
    own: Any = getattr(network, "get_classifier", None)  # Any: timm's method, where there is one
    chosen: Any = own() if own is not None else None
    chosen = chosen[0] if isinstance(chosen, (tuple, list)) else chosen
    found = ""
    name: str
    for name, module in network.named_modules():
        if chosen is not None:
            if module is chosen:
                return name
        elif (isinstance(module, nn.Linear) and module.out_features == classes) or (
            isinstance(module, nn.Conv2d) and module.out_channels == classes
        ):
            found = name
    if not found:
        raise ValueError("no classifier was found in it")
    return found


def _intermediates_plan(network: nn.Module, classifier: str, images: Tensor) -> Plan | None:
    """Return a plan by timm's own interface, or None where its logits differ from `forward`."""
    described = getattr(network, "feature_info", None)
    if not hasattr(network, "forward_intermediates") or not described:
        return None
    entries = [dict(entry) for entry in _entries(described)]
    stem = 0 if _is_stem(str(entries[0].get("module", ""))) else None
    chosen = _spread(range(0 if stem is None else 1, len(entries)), entries)
    stages = tuple(
        interface.StageInfo(entries[index]["num_chs"], entries[index]["reduction"])
        for index in chosen
    )
    for direct in (True, False):
        plan = Plan(
            classifier, indices=tuple(chosen), stem_index=stem, direct=direct, stages=stages
        )
        if _agrees(network, plan, images):
            return plan
    return None


def _entries(described: Any) -> Sequence[dict[str, Any]]:  # Any: a list, or timm's FeatureInfo
    return described if isinstance(described, list) else list(described.info)


def _is_stem(module: str) -> bool:
    """Return whether timm's first feature is a stem, not a stage."""
    root = module.split(".")[0]
    return root.startswith(("stem", "act1", "conv1", "conv_stem", "relu", "bn1", "norm1"))


def _spread(indices: range, entries: Sequence[dict[str, Any]]) -> list[int]:
    """Return all stages, or a few evenly spaced blocks of a network whose blocks are all alike."""
    reductions = {entries[index]["reduction"] for index in indices}
    if len(reductions) > 1 or len(indices) <= MOST_TOKEN_STAGES:
        return list(indices)
    count = len(indices)
    steps = range(1, MOST_TOKEN_STAGES + 1)
    return [indices[count * step // MOST_TOKEN_STAGES - 1] for step in steps]


@torch.no_grad()
def _agrees(network: nn.Module, plan: Plan, images: Tensor) -> bool:
    """Return whether observing by this plan gives the logits of `forward` and the stages named."""
    was_training = network.training
    network.eval()
    try:
        expected = network(images)
        seen = observe(network, plan, images)
    # A model may lack a method or argument of timm's interface in any of these ways.
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        network.train(was_training)
    return (
        torch.equal(seen.logits, expected)
        and all(stage.dim() == 4 for stage in seen.stages)
        and [stage.shape[1] for stage in seen.stages] == [stage.channels for stage in plan.stages]
    )


def _observe_intermediates(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    model: Any = network  # Any: timm's methods, present because the plan was tried
    wanted = list(plan.indices) if plan.stem_index is None else [plan.stem_index, *plan.indices]
    final, maps = model.forward_intermediates(images, indices=wanted, output_fmt="NCHW")
    if plan.direct and not getattr(model, "drop_rate", 0):
        # Without hooks the whole pass compiles into one graph.
        pooled = model.forward_head(final, pre_logits=True)
        logits = model.get_classifier()(pooled)
    else:
        with interface.Tap(network, inputs=[plan.classifier]) as tap:
            logits = model.forward_head(final)
        pooled = tap.inputs[plan.classifier]
    stem = None if plan.stem_index is None else maps[0]
    return interface.Features(
        logits=logits[0] if isinstance(logits, tuple) else logits,
        pooled=_flat(pooled),
        stem=stem,
        stages=tuple(maps if stem is None else maps[1:]),
    )


def _observe_taps(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    tapped = plan.taps if plan.stem_tap is None else (plan.stem_tap, *plan.taps)
    with interface.Tap(network, tapped, inputs=[plan.classifier]) as tap:
        logits = network(images)
    size = (images.shape[2], images.shape[3])
    maps = {name: _as_map(output, size) for name, output in tap.outputs.items()}
    return interface.Features(
        logits=logits,
        pooled=_flat(tap.inputs[plan.classifier]),
        stem=None if plan.stem_tap is None else maps[plan.stem_tap],
        stages=tuple(maps[name] for name in plan.taps),
    )


def _flat(pooled: Tensor) -> Tensor:
    """Return the embedding of a classifier, also of one that convolves before it pools."""
    return pooled if pooled.dim() == 2 else pooled.mean(dim=(2, 3))


def _as_map(output: Any, size: tuple[int, int]) -> Tensor:  # Any: whatever the module returned
    """Return [N, C, H, W] from maps in either layout, or from tokens."""
    if not isinstance(output, Tensor) or output.dim() not in (3, 4):
        raise ValueError("a tapped module returns neither maps nor tokens; tap another one")
    ratio = size[0] / size[1]
    if output.dim() == 4:
        _, first, second, third = output.shape
        is_last = first == round(second * ratio) and second != round(third * ratio)
        return output.permute(0, 3, 1, 2) if is_last else output
    samples, tokens, channels = output.shape
    rows = math.isqrt(int(tokens * ratio))
    columns = int(rows / ratio)
    # Class and register tokens come first and have no place on the map.
    grid = output[:, tokens - rows * columns :]
    return grid.transpose(1, 2).reshape(samples, channels, rows, columns)


def _tap_plan(network: nn.Module, classifier: str, images: Tensor) -> Plan:
    """Return a plan by hooks: at transformer blocks, or where the trunk's maps change size."""
    layers = getattr(getattr(network, "encoder", None), "layers", None)
    if isinstance(layers, nn.Sequential):
        blocks = [f"encoder.layers.{name}" for name, _ in layers.named_children()]
        alike = [{"reduction": 0}] * len(blocks)
        chosen = [blocks[index] for index in _spread(range(len(blocks)), alike)]
        return _measured(network, Plan(classifier, tuple(chosen)), images)
    side = max(PROBE_SIDE, images.shape[2], images.shape[3])
    try:
        found = _resolutions(network, picture(images.shape[1], side, side), classifier)
    except (AssertionError, RuntimeError, ValueError):
        # Some networks take one size only.
        found = _resolutions(network, images, classifier)
    names = list(found)
    stem = names.pop(0) if names and _is_first_step(network, names[0]) else None
    return Plan(classifier, tuple(names), stem, stages=tuple(found[name] for name in names))


def _steps(network: nn.Module) -> dict[str, nn.Module]:
    """Return the steps of the trunk by name, in the order of their definition."""
    steps: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if name in TRUNKS:
            steps.update({f"{name}.{part}": step for part, step in child.named_children()})
        else:
            steps[name] = child
    return steps


def _is_first_step(network: nn.Module, name: str) -> bool:
    """Return whether a step is the stem: no more than one layer with weights ends by it."""
    layers = 0
    for step, module in _steps(network).items():
        layers += sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in module.modules())
        if step == name:
            break
    return layers <= 1 or name.startswith("stem")


@torch.no_grad()
def _resolutions(
    network: nn.Module, images: Tensor, classifier: str
) -> dict[str, interface.StageInfo]:
    """Return the last step of the trunk at each size of map, shallow to deep."""
    outside = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Dropout, nn.Flatten)
    names = [
        name
        for name, step in _steps(network).items()
        if not isinstance(step, outside)
        and name.split(".")[0] != classifier.split(".")[0]
        and "aux" not in name.lower()
    ]
    was_training = network.training
    network.eval()
    try:
        with interface.Tap(network, names) as tap:
            network(images)
    finally:
        network.train(was_training)
    size = (images.shape[2], images.shape[3])
    last: dict[tuple[int, int], tuple[str, interface.StageInfo]] = {}
    for name in names:
        output = tap.outputs.get(name)
        if isinstance(output, Tensor) and output.dim() == 4:
            maps = _as_map(output, size)
            last[maps.shape[2], maps.shape[3]] = (name, _stage_info(maps, size))
    return {name: stage for _, (name, stage) in sorted(last.items(), reverse=True)}


def _stage_info(maps: Tensor, size: tuple[int, int]) -> interface.StageInfo:
    """Return channels and stride; the stride as a power of two, whatever the padding lost."""
    return interface.StageInfo(maps.shape[1], 2 ** round(math.log2(size[0] / maps.shape[2])))


def _measured(network: nn.Module, plan: Plan, images: Tensor) -> Plan:
    """Return the plan with channels and strides read from one trial."""
    size = (images.shape[2], images.shape[3])
    stages = trial(network, plan, images).stages
    return replace(plan, stages=tuple(_stage_info(stage, size) for stage in stages))
