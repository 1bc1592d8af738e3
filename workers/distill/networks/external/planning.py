"""Decides by a trial how to read the features of a library's network.

timm's `forward_intermediates` is used where its logits equal those of `forward`; else hooks at
modules that the caller names, at evenly spaced transformer blocks, or where the maps of the trunk
change their size. Its other features are found by `tracing`.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.networks import interface
from workers.distill.networks.external import observation, tracing

PROBE_SIDE = 64
"""Side at which stages are told apart: at the input's own size the last ones may all be 1x1."""
MOST_TOKEN_STAGES = 4
"""A transformer of equal blocks has no stages: so many of its blocks, evenly spaced, stand in."""
STEMS = ("stem", "act1", "conv1", "conv_stem", "relu", "bn1", "norm0", "norm1")
"""How timm's modules are called whose output is a stem, not a stage."""
TRUNKS = ("features", "layers", "blocks", "stages", "trunk_output")
"""Children whose own children are the steps of a trunk; other children of the root are steps."""


def make_plan(
    network: nn.Module, *, classes: int, images: Tensor, taps: Sequence[str] | None
) -> observation.Plan:
    """Decide how to read a network's features; `taps` names the stages' modules.

    Raises `UnknownNetwork` for a tap that does not exist, `ValueError` without a classifier.
    """
    classifier = _inner(network, _classifier_name(network, classes), classes, images)
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
        return _completed(
            network, _measured(network, observation.Plan(classifier, tuple(taps)), images), images
        )
    plan = _intermediates_plan(network, classifier, images)
    return _completed(network, plan or _tap_plan(network, classifier, images), images)


def watch(network: nn.Module, plan: observation.Plan) -> observation.Plan:
    """Return a plan that records the stages' pre-activations."""
    for name in plan.activations:
        module: Any = network.get_submodule(name)  # Any: an activation, whichever
        if hasattr(module, "inplace"):
            # In place it would overwrite the recorded tensor.
            module.inplace = False
    return replace(plan, watches=bool(plan.activations))


def _completed(network: nn.Module, plan: observation.Plan, images: Tensor) -> observation.Plan:
    """Return the plan with all that a recorded pass tells, as far as it holds for these images."""
    side = max(PROBE_SIDE, images.shape[2], images.shape[3])
    try:
        # At their own size the last maps may be single pixels, of which all is an average.
        traced = _traced(network, plan, observation.picture(images.shape[1], side, side))
    except (AssertionError, RuntimeError, ValueError):
        traced = _traced(network, plan, images)
    if traced.final is not None and not _is_pooled(observation.trial(network, traced, images)):
        traced = replace(traced, final=None)
    # Hooks are there already, so recording costs nothing.
    return traced if plan.indices else watch(network, traced)


def _is_pooled(features: interface.Features) -> bool:
    if features.final is None or not tracing.is_close(
        features.final.mean(dim=(2, 3)), features.pooled
    ):
        return False
    # A class token would pass for a map of one pixel.
    return not features.stages or features.final[0, 0].numel() >= features.stages[-1][0, 0].numel()


def _traced(network: nn.Module, plan: observation.Plan, images: Tensor) -> observation.Plan:
    with tracing.Recorder(network) as recorder:
        features = observation.trial(network, replace(plan, final=tracing.RETURNED), images)
    calls = recorder.calls
    # The very tensor, not an equal one: a last layer may start with zeros.
    is_linear = any(
        call.name == plan.classifier
        and isinstance(call.module, nn.Linear)
        and call.given is features.logits
        for call in calls
    )
    final: str | None = None
    if _is_pooled(features):
        final = tracing.RETURNED
    elif not plan.indices and features.stages:
        final = tracing.pooled_map(calls, features.pooled, features.stages[-1], plan.classifier)
    activations = tracing.stage_activations(calls, features.stages)
    return replace(
        plan,
        is_linear=is_linear,
        final=final,
        activations=activations,
        norms=tracing.stage_norms(network, calls, activations),
    )


def _classifier_name(network: nn.Module, classes: int) -> str:
    """Return the module whose input is the embedding."""
    own: Any = getattr(network, "get_classifier", None)  # Any: timm's method, where there is one
    chosen: Any = own() if own is not None else None
    chosen = chosen[0] if isinstance(chosen, (tuple, list)) else chosen
    # Those before it belong to earlier stages.
    chosen = chosen[-1] if isinstance(chosen, nn.ModuleList) else chosen
    last_name = ""
    name: str
    for name, module in network.named_modules():
        if chosen is not None:
            if module is chosen:
                return name
        elif (isinstance(module, nn.Linear) and module.out_features == classes) or (
            isinstance(module, nn.Conv2d) and module.out_channels == classes
        ):
            last_name = name
    if not last_name:
        raise ValueError("no classifier was found in it")
    return last_name


@torch.no_grad()
def _inner(network: nn.Module, name: str, classes: int, images: Tensor) -> str:
    """Return the linear layer inside a head that pools itself, or the head as it was named."""
    head = network.get_submodule(name)
    linear = [
        f"{name}.{path}"
        for path, part in head.named_modules()
        if path and isinstance(part, nn.Linear) and part.out_features == classes
    ]
    if len(linear) != 1:
        return name
    was_training = network.training
    network.eval()
    try:
        with interface.Tap(network, inputs=[name]) as tap:
            network(images)
    finally:
        network.train(was_training)
    taken = tap.inputs.get(name)
    return linear[0] if isinstance(taken, Tensor) and taken.dim() == 4 else name


def _intermediates_plan(
    network: nn.Module, classifier: str, images: Tensor
) -> observation.Plan | None:
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
        plan = observation.Plan(
            classifier, indices=tuple(chosen), stem_index=stem, direct=direct, stages=stages
        )
        if _agrees(network, plan, images):
            return plan
    return None


def _entries(described: Any) -> Sequence[dict[str, Any]]:  # Any: a list, or timm's FeatureInfo
    return described if isinstance(described, list) else list(described.info)


def _is_stem(module: str) -> bool:
    """Return whether timm's first feature is a stem, not a stage."""
    root, *_, leaf = (*module.split("."), module.rpartition(".")[2])
    return root.startswith((*STEMS, "layer0")) or leaf.startswith(STEMS)


def _spread(indices: range, entries: Sequence[dict[str, Any]]) -> list[int]:
    """Return all stages, or a few evenly spaced blocks of a network whose blocks are all alike."""
    reductions = {entries[index]["reduction"] for index in indices}
    if len(reductions) > 1 or len(indices) <= MOST_TOKEN_STAGES:
        return list(indices)
    count = len(indices)
    steps = range(1, MOST_TOKEN_STAGES + 1)
    return [indices[count * step // MOST_TOKEN_STAGES - 1] for step in steps]


@torch.no_grad()
def _agrees(network: nn.Module, plan: observation.Plan, images: Tensor) -> bool:
    """Return whether observing by this plan gives the logits of `forward` and the stages named."""
    was_training = network.training
    network.eval()
    try:
        expected = network(images)
        features = observation.observe(network, plan, images)
    # A model may lack a method or argument of timm's interface in any of these ways.
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        network.train(was_training)
    return (
        torch.equal(features.logits, expected)
        and all(stage.dim() == 4 for stage in features.stages)
        and [stage.shape[1] for stage in features.stages]
        == [stage.channels for stage in plan.stages]
    )


def _tap_plan(network: nn.Module, classifier: str, images: Tensor) -> observation.Plan:
    """Return a plan by hooks: at transformer blocks, or where the trunk's maps change size."""
    layers = getattr(getattr(network, "encoder", None), "layers", None)
    if isinstance(layers, nn.Sequential):
        blocks = [f"encoder.layers.{name}" for name, _ in layers.named_children()]
        alike = [{"reduction": 0}] * len(blocks)
        chosen = [blocks[index] for index in _spread(range(len(blocks)), alike)]
        return _measured(network, observation.Plan(classifier, tuple(chosen)), images)
    side = max(PROBE_SIDE, images.shape[2], images.shape[3])
    try:
        resolutions = _resolutions(
            network, observation.picture(images.shape[1], side, side), classifier
        )
    except (AssertionError, RuntimeError, ValueError):
        # Some networks take one size only.
        resolutions = _resolutions(network, images, classifier)
    names = list(resolutions)
    stem = names.pop(0) if names and _is_first_step(network, names[0]) else None
    return observation.Plan(
        classifier, tuple(names), stem, stages=tuple(resolutions[name] for name in names)
    )


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
    outside = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Dropout, nn.Flatten)
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
            maps = tracing.as_map(output, size)
            last[maps.shape[2], maps.shape[3]] = (name, _stage_info(maps, size))
    return {name: stage for _, (name, stage) in sorted(last.items(), reverse=True)}


def _stage_info(maps: Tensor, size: tuple[int, int]) -> interface.StageInfo:
    """Return channels and stride; the stride as a power of two, whatever the padding lost."""
    return interface.StageInfo(maps.shape[1], 2 ** round(math.log2(size[0] / maps.shape[2])))


def _measured(network: nn.Module, plan: observation.Plan, images: Tensor) -> observation.Plan:
    """Return the plan with channels and strides read from one trial."""
    size = (images.shape[2], images.shape[3])
    stages = observation.trial(network, plan, images).stages
    return replace(plan, stages=tuple(_stage_info(stage, size) for stage in stages))
