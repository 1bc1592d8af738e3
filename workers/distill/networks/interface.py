"""Interface of all networks: logits, pooled features and stages.

`forward(images)` returns logits alone, so a delivered student is an ordinary module;
`observe(images)` returns all features that a method may use. Only `Tap` uses forward hooks.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.distill.config.job import Task


@dataclass(frozen=True)
class Features:
    """Outputs of one forward pass.

    `stages` are the output maps of each stage, shallow to deep, without the stem: mostly after an
    activation; `pre_activations` are maps of the same shapes before the activation that ends a
    stage or follows it, or empty where a network has none. `final` is the map whose average over
    positions is `pooled`: often the last stage, or a last convolution of it; None where the
    embedding is no average (a class token). `strong` are the features of the batch's strong view;
    only the training loop sets it. Dense networks have logits for each position, [N, C, H, W] at
    the size of the image.
    """

    logits: Float[Tensor, "N C *S"]
    pooled: Float[Tensor, "N D"]
    stem: Float[Tensor, "N c h w"] | None = None
    stages: tuple[Tensor, ...] = ()
    pre_activations: tuple[Tensor, ...] = ()
    final: Float[Tensor, "N k i j"] | None = None
    strong: "Features | None" = None

    @classmethod
    def from_logits(cls, logits: Float[Tensor, "N C *S"]) -> "Features":
        """Return the features of a pass of which only the logits are read."""
        return cls(logits, pooled=logits.new_empty(len(logits), 0))


Observe = Callable[[Tensor], Features]
"""A network's `observe`, plain or compiled."""


@dataclass(frozen=True)
class NormInput:
    """Input of a batch norm in one forward pass, and its running moments."""

    name: str
    received: Float[Tensor, "N C h w"]
    mean: Float[Tensor, " C"]
    variance: Float[Tensor, " C"]


@dataclass(frozen=True)
class Sizes:
    """Number of classes and shape of an image that a network is built for."""

    classes: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class StageInfo:
    """Channels of a stage and the factor by which it is smaller than the image."""

    channels: int
    stride: int


class Network(nn.Module):
    """Base of every network that Retort builds, of its own or of a library.

    `reference`, `arguments`, `classes` and `image_shape` are the arguments of
    `networks.catalog.build`, which build the same network again. Logits are per image or per pixel,
    by `task`.
    """

    task: Task = "classification"
    reference: str = ""
    arguments: Mapping[str, Any] = MappingProxyType({})  # Any: JSON values
    classes: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    stages_info: tuple[StageInfo, ...] = ()
    pooled_width: int = 0

    def observe(self, images: Float[Tensor, "N c h w"]) -> Features:
        """Return logits and features of one forward pass; logits equal `forward(images)`."""
        raise NotImplementedError(f"{type(self).__name__} does not return features")

    def pooled_classifier(self) -> nn.Linear | None:
        """Return the linear layer from `pooled` to logits, or None where there is none."""
        return None

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return, stage by stage, the batch norm before its last activation, or nothing."""
        return ()

    def enable_features(self, wanted: Collection[str]) -> None:
        """Enable features that are off by default because they slow down every step.

        A method calls it with the features that it needs; most networks return all by default.
        """

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (typed here because `nn.Module.__call__` is not)."""
        logits: Tensor = super().__call__(images)
        return logits


class Tap:
    """Record inputs and outputs of named modules within a `with` block.

    `inputs[name]` and `outputs[name]` hold the tensors of the module's latest call. For networks of
    libraries; leaving the block removes every hook.
    """

    def __init__(
        self, network: nn.Module, outputs: Sequence[str] = (), *, inputs: Sequence[str] = ()
    ) -> None:
        known = dict(network.named_modules())
        for name in (*outputs, *inputs):
            if name not in known:
                raise KeyError(f"{type(network).__name__} has no module named {name!r}")
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._outputs = {name: known[name] for name in outputs}
        self._inputs = {name: known[name] for name in inputs}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Add the hooks."""
        for name, module in self._outputs.items():
            self._handles.append(module.register_forward_hook(self._keep_output(name)))
        for name, module in self._inputs.items():
            self._handles.append(module.register_forward_pre_hook(self._keep_input(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # Any: torch types the arguments and results of hooks so.
    def _keep_output(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.outputs[name] = output

        return keep

    def _keep_input(self, name: str) -> Any:
        def keep(_module: nn.Module, inputs: Any) -> None:
            self.inputs[name] = inputs[0]

        return keep


def batch_norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return the batch norms over maps that keep running moments, by name, in their order."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }


def observe_norms(
    network: Network, images: Float[Tensor, "N c h w"]
) -> tuple[Features, tuple[NormInput, ...]]:
    """Return a network's features and its batch norms' inputs; all hooks are removed.

    A norm that the forward pass does not use (an auxiliary head) is left out.
    """
    norms = batch_norms(network)
    with Tap(network, inputs=list(norms)) as tap:
        features = network.observe(images)
    received = tuple(
        NormInput(name, tap.inputs[name], norm.running_mean, norm.running_var)
        for name, norm in norms.items()
        if name in tap.inputs and norm.running_mean is not None and norm.running_var is not None
    )
    return features, received
