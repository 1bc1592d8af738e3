"""Reads the features of a library's network by a plan, which `planning` makes once."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.distill.networks import interface
from workers.distill.networks.external import tracing


@dataclass(frozen=True)
class Plan:
    """How a library's network is read: decided once, by one trial forward pass.

    `final` names the module that makes the map which is pooled, or is `tracing.RETURNED`.
    `activations` name the modules that end the stages and `norms` the layers before them; they are
    recorded from the start only where hooks are needed anyway, since hooks keep a pass from being
    compiled into one graph.
    """

    classifier: str
    taps: tuple[str, ...] = ()
    stem_tap: str | None = None
    indices: tuple[int, ...] = ()
    stem_index: int | None = None
    direct: bool = False
    stages: tuple[interface.StageInfo, ...] = ()
    is_linear: bool = False
    final: str | None = None
    activations: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    watches: bool = False

    @property
    def watched(self) -> tuple[str, ...]:
        """Return the modules whose inputs are recorded: the activations, where they are wanted."""
        return self.activations if self.watches else ()


def picture(channels: int, height: int, width: int) -> Tensor:
    """Return a smooth test picture, made without touching any random generator."""
    count = channels * height * width
    return torch.sin(torch.arange(count, dtype=torch.float32)).reshape(1, channels, height, width)


def observe(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    """Return the features of one forward pass, by the plan."""
    if plan.indices:
        return _observe_intermediates(network, plan, images)
    return _observe_taps(network, plan, images)


@torch.no_grad()
def trial(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    """Observe in evaluation mode, so that nothing is updated or drawn; the mode is restored."""
    was_training = network.training
    network.eval()
    try:
        return observe(network, plan, images)
    finally:
        network.train(was_training)


def _observe_intermediates(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    model: Any = network  # Any: timm's methods, present because the plan was tried
    wanted = list(plan.indices) if plan.stem_index is None else [plan.stem_index, *plan.indices]
    with _tap(network, plan) as tap:
        last, maps = model.forward_intermediates(images, indices=wanted, output_fmt="NCHW")
    if plan.direct and not getattr(model, "drop_rate", 0):
        # Without hooks the whole pass compiles into one graph.
        pooled = model.forward_head(last, pre_logits=True)
        logits = model.get_classifier()(pooled)
    else:
        with interface.Tap(network, inputs=[plan.classifier]) as head:
            logits = model.forward_head(last)
        pooled = head.inputs[plan.classifier]
    stem = None if plan.stem_index is None else maps[0]
    pooled = _flat(pooled)
    return interface.Features(
        logits=logits[0] if isinstance(logits, tuple) else logits,
        pooled=pooled,
        stem=stem,
        stages=tuple(maps if stem is None else maps[1:]),
        pre_activations=tuple(tap.inputs[name] for name in plan.watched),
        final=None if plan.final is None else tracing.as_pooled_map(last, pooled, images),
    )


def _tap(network: nn.Module, plan: Plan) -> Any:  # Any: a tap, or what stands in for none
    return interface.Tap(network, inputs=plan.watched) if plan.watched else contextlib.nullcontext()


def _observe_taps(network: nn.Module, plan: Plan, images: Tensor) -> interface.Features:
    final = None if plan.final in (None, tracing.RETURNED) else plan.final
    outputs = [name for name in (plan.stem_tap, *plan.taps, final) if name is not None]
    with interface.Tap(network, outputs, inputs=[plan.classifier, *plan.watched]) as tap:
        logits = network(images)
    size = (images.shape[2], images.shape[3])
    stem, stages = plan.stem_tap, plan.taps
    maps = {
        name: tracing.as_map(tap.outputs[name], size)
        for name in ((stem, *stages) if stem is not None else stages)
    }
    pooled = _flat(tap.inputs[plan.classifier])
    return interface.Features(
        logits=logits,
        pooled=pooled,
        stem=None if stem is None else maps[stem],
        stages=tuple(maps[name] for name in stages),
        pre_activations=tuple(tap.inputs[name] for name in plan.watched),
        final=None if final is None else tracing.as_pooled_map(tap.outputs[final], pooled, images),
    )


def _flat(pooled: Tensor) -> Tensor:
    """Return the embedding of a classifier, also of one that convolves before it pools."""
    return pooled if pooled.dim() == 2 else pooled.mean(dim=(2, 3))
