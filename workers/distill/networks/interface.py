"""Interface of all networks: logits, pooled features and stages.

`forward(images)` returns logits alone, so a delivered student is an ordinary module;
`observe(images)` returns all features that a method may use. Only `Tap` uses forward hooks.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.distill.config.job import Task


@dataclass(frozen=True)
class Proposals:
    """Boxes that a two-stage detector classifies, image after image.

    `boxes` has one tensor [R, 4] per image: x1, y1, x2, y2 in the pixels of `image_size` (height,
    width). `labels` are the classes of all of them, in the same order; K, the number of classes,
    stands for background.
    """

    boxes: tuple[Tensor, ...]
    labels: Int[Tensor, " R"]
    image_size: tuple[int, int]


@runtime_checkable
class DetectorOutput(Protocol):
    """What a detector gives for one batch; boxes are in the pixels of `image_size` (height, width).

    Targets are [N, M, 7]: class, x1, y1, x2, y2, area, flag. Rows without a class (-1), flagged
    rows and boxes without an area are left out.
    """

    image_size: tuple[int, int]

    def losses(self, targets: Float[Tensor, "N M 7"]) -> dict[str, Tensor]:
        """Return the parts of the task loss by name; two-stage detectors need training mode."""
        ...

    def detections(self) -> Float[Tensor, "N D 6"]:
        """Return class, score, x1, y1, x2, y2, sorted by score; padding has class -1."""
        ...


@runtime_checkable
class DenseDetectorOutput(DetectorOutput, Protocol):
    """Output of a detector that classifies locations or anchors, level by level, finest first.

    L counts all of them: rows, columns and then the boxes of one location. `boxes_per_location` has
    one number per level. `box_deltas` are in the code of the network's own head.
    """

    level_sizes: tuple[tuple[int, int], ...]
    boxes_per_location: tuple[int, ...]
    box_deltas: Float[Tensor, "N L 4"]
    centerness: Float[Tensor, "N L"] | None
    box_distributions: Float[Tensor, "N L 4 R"] | None
    """Logits of the distances 0 to R - 1 of each side of a box, where the head has them."""

    def anchors(self) -> list[Tensor]:
        """Return the anchors [L, 4] of each image (x1, y1, x2, y2 in pixels), equal for all."""
        ...

    def assigned(self, targets: Float[Tensor, "N M 7"]) -> Int[Tensor, "N L"]:
        """Return the class that each location learns: -1 is background, -2 is ignored."""
        ...


@dataclass(frozen=True)
class HeadPrediction:
    """What a dense head says at each location: logits of classes, and boxes in pixels."""

    logits: Float[Tensor, "N K L"]
    boxes: Float[Tensor, "N L 4"]


@runtime_checkable
class BranchedDetectorOutput(DenseDetectorOutput, Protocol):
    """Output of a dense head with a branch for classes and one for boxes.

    Each is a row of `head_convs` convolutions before its last layer. Maps are lists, one a level.
    """

    head_convs: int

    def predicted_boxes(self) -> Float[Tensor, "N L 4"]:
        """Return the box of each location: x1, y1, x2, y2 in pixels."""
        ...

    def branch_maps(
        self, levels: Sequence[Tensor], convs: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of both branches after so many convolutions, before an activation."""
        ...

    def predict_from(
        self, class_maps: Sequence[Tensor], box_maps: Sequence[Tensor], convs: int
    ) -> HeadPrediction:
        """Return what the rest of this head says of maps such as `branch_maps` returns."""
        ...


@runtime_checkable
class AnchoredDetectorOutput(DetectorOutput, Protocol):
    """Output of a detector whose locations have boxes of their own, which its own are coded by."""

    def level_anchors(self) -> tuple[Float[Tensor, "h w K 4"], ...]:
        """Return the anchors of each level, finest first: x1, y1, x2, y2 in pixels."""
        ...


@runtime_checkable
class TwoStageDetectorOutput(DetectorOutput, Protocol):
    """Output of a detector that classifies proposals."""

    def sample_proposals(self, targets: Float[Tensor, "N M 7"]) -> Proposals:
        """Return the proposals that `losses` learns from with equal targets; drawn once a batch."""
        ...

    def roi_logits(self, proposals: Proposals) -> Float[Tensor, "R C"]:
        """Return logits of K + 1 classes, background last, on this network's own maps."""
        ...


@dataclass(frozen=True)
class Features:
    """Outputs of one forward pass.

    `stages` are the output maps of each stage, shallow to deep, without the stem: mostly after an
    activation; `pre_activations` are maps of the same shapes before the activation that ends a
    stage or follows it, or empty where a network has none. `final` is the map whose average over
    positions is `pooled`: often the last stage, or a last convolution of it; None where the
    embedding is no average (a class token). `strong` are the features of the batch's strong view;
    only the training loop sets it. Networks for segmentation have logits for each position,
    [N, C, H, W] at the size of the image; `coarse_logits` are the same before they were upsampled,
    where they were. Detectors have logits for each location or anchor, [N, C, L] without a
    background, level by level, and none ([N, C, 0]) where proposals are classified; all else is in
    `detector`.
    """

    logits: Float[Tensor, "N C *S"]
    pooled: Float[Tensor, "N D"]
    stem: Float[Tensor, "N c h w"] | None = None
    stages: tuple[Tensor, ...] = ()
    pre_activations: tuple[Tensor, ...] = ()
    final: Float[Tensor, "N k i j"] | None = None
    strong: "Features | None" = None
    coarse_logits: Float[Tensor, "N C i2 j2"] | None = None
    detector: DetectorOutput | None = None

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


@dataclass(frozen=True)
class LibraryCall:
    """The call that builds a network of a library as the plain library has it."""

    function: str
    """Such as `timm.create_model`."""
    name: str
    keywords: dict[str, Any]  # Any: arguments of the library
    replaced: dict[str, str]
    """Parts, in Python, that take the place of the library's own, by their path."""

    def without(self, path: str) -> "LibraryCall":
        """Return the call with an identity in the place of the part at a path."""
        return replace(self, replaced={**self.replaced, path: "torch.nn.Identity()"})


class Network(nn.Module):
    """Base of every network that Retort builds, of its own or of a library.

    `reference`, `arguments`, `classes` and `image_shape` are the arguments of
    `networks.catalog.build`, which build the same network again. Logits are per image, per pixel or
    per box, by `task`; a backbone has 0 classes, and its embedding in their place. `smallest_batch`
    is the least number of images to train on: batch norms over a map of one pixel need two.
    `library_call` builds it without Retort, where a library has it.
    """

    task: Task = "classification"
    reference: str = ""
    arguments: Mapping[str, Any] = MappingProxyType({})  # Any: JSON values
    classes: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    stages_info: tuple[StageInfo, ...] = ()
    pooled_width: int = 0
    smallest_batch: int = 1
    library_call: LibraryCall | None = None
    can_run: bool = True
    """Whether it computes what it says of images, whichever they are."""
    limits: str | None = None
    """Why it shows less than others, to end a sentence with."""
    removed_classifier: str | None = None
    """Where the classifier stood that was taken out, so that it answers with its embedding; None:
    it is as it was built."""
    parameter_count: int | None = None
    """Where its numbers are no parameters of torch; None: they are."""

    def observe(self, images: Float[Tensor, "N c h w"]) -> Features:
        """Return logits and features of one forward pass; logits equal `forward(images)`."""
        raise NotImplementedError(f"{type(self).__name__} does not return features")

    def pooled_classifier(self) -> nn.Linear | None:
        """Return the linear layer from `pooled` to logits, or None where there is none."""
        return None

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return, stage by stage, the batch norm before its last activation, or nothing."""
        return ()

    def current_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's tensors under today's names, where older files had others."""
        return dict(state)

    def enable_features(self, wanted: Collection[str]) -> None:
        """Enable features that are off by default because they slow down every step.

        A method calls it with the features that it needs; most networks return all by default.
        """

    def skip_features(self, unused: Collection[str]) -> None:
        """Leave out features that nothing reads, where that saves time; logits may become empty.

        A teacher's copy is told so (`run.teacher_factory`); most networks return all anyway.
        """

    def enable_gradients(self) -> None:
        """Let gradients flow to the images; raises `IncompatibleNetworks` where none can."""

    def torch_form(self) -> nn.Module | None:
        """Return what computes the logits in torch: itself; None where something else does."""
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (typed here because `nn.Module.__call__` is not)."""
        logits: Tensor = super().__call__(images)
        return logits


class FileNetwork(Network):
    """A network that is what its file says, and not an architecture that a file has weights for.

    It only teaches: nothing of it is trained, and it is never delivered.
    """

    def load_file(self, path: Path) -> list[str]:
        """Read the file; return what was chosen or converted. Raises `UploadRefused`."""
        raise NotImplementedError(f"{type(self).__name__} reads no file")

    def reorder_classes(self, order: Sequence[int]) -> None:
        """Make logit i what was logit `order[i]`."""
        raise NotImplementedError(f"{type(self).__name__} has no order of classes")


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
