"""A network as it is exported: images in, named tensors out, for a batch of any size."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.export import half_precision
from workers.distill.networks.dense.detectors import DenseDetector, DenseOutput
from workers.distill.networks.interface import Features, Network

EXAMPLES = 2
"""Images that a network is traced with: a batch of one would be taken for a constant."""
DETECTION_OUTPUTS = ("scores", "boxes")


class ExportedGraph(nn.Module):
    """What an export computes, in evaluation mode.

    It takes normalised images, or with `include_preprocessing` pixels of 0..255 as uint8, of the
    network's own size, and returns `logits` [N, C] or [N, C, H, W], or of a detector `scores`
    [N, L, C] and `boxes` [N, L, 4] (x1, y1, x2, y2 in pixels), of all L locations.
    """

    def __init__(self, network: Network, expected: Input, *, include_preprocessing: bool) -> None:
        super().__init__()
        self.network = network.eval()
        self.takes_pixels = include_preprocessing
        self.register_buffer("mean", torch.tensor(expected.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(expected.std)[:, None, None])
        self.shape = (expected.channels, expected.height, expected.width)
        if isinstance(network, DenseDetector):
            self.register_buffer("anchors", _anchors(network, self.shape))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs, in their order."""
        return DETECTION_OUTPUTS if isinstance(self.network, DenseDetector) else ("logits",)

    def example(self) -> Shaped[Tensor, "N c h w"]:
        """Return images of the right type and size to trace with."""
        images = torch.rand(EXAMPLES, *self.shape, generator=torch.Generator().manual_seed(0))
        return (images * 255).to(torch.uint8) if self.takes_pixels else images

    def normalised(self, images: Shaped[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        """Return what the network itself takes."""
        if not self.takes_pixels:
            return images
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (images.to(mean.dtype) / 255 - mean) / std

    def forward(self, images: Shaped[Tensor, "N c h w"]) -> tuple[Tensor, ...]:
        """Return the outputs in the order of `output_names`."""
        if not isinstance(self.network, DenseDetector):
            return (self.network(self.normalised(images)),)
        return self.located(self.network.observe(self.normalised(images)))

    def located(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return `scores` and `boxes` of what the detector answers."""
        output = features.detector
        if not isinstance(output, DenseOutput):
            raise TypeError(f"{type(output).__name__} has no boxes at locations")
        return output.scores(), output.boxes_from(self.get_buffer("anchors"))


class HalfPrecision(nn.Module):
    """A graph whose network computes in float16, between inputs and outputs of float32.

    Raises: `NotExportable` where float16 cannot hold its weights.
    """

    def __init__(self, graph: ExportedGraph) -> None:
        super().__init__()
        half_precision.compute_in_half(graph)
        self.inner = graph

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs as float32."""
        inputs = images if self.inner.takes_pixels else images.half()
        return tuple(output.float() for output in self.inner(inputs))


def trace(module: nn.Module, example: Tensor) -> Any:  # Any: torch.export.ExportedProgram
    """Return a program for a batch of any size. Raises: `NotExportable`."""
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=dynamic)
    # What torch's tracer and the network under it raise, in any of their layers.
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise errors.NotExportable(
            "the exporter cannot write this network for a batch of any size; it says: "
            f"{_first_line(error)}. Choose format torch_state_dict or hub"
        ) from error


def post_processing(network: Network) -> dict[str, Any] | None:  # Any: JSON
    """Return how outputs become detections, in numbers; None where nothing is left to do."""
    if not isinstance(network, DenseDetector):
        return None
    library: Any = network
    return {
        "score_threshold": library.score_thresh,
        "iou_threshold": library.nms_thresh,
        "across_classes": network.agnostic_nms,
        "most_detections": network.detections_per_image,
        "most_candidates": library.topk_candidates * len(network.stages_info),
        "steps": "Take the `most_candidates` highest of all scores that are above "
        "`score_threshold`, each a class at a location; suppress those whose box overlaps that of "
        "a higher score by an intersection over union above `iou_threshold`, within each class or "
        "`across_classes`; keep the `most_detections` highest.",
    }


def _anchors(network: DenseDetector, shape: tuple[int, int, int]) -> Float[Tensor, "L 4"]:
    with torch.no_grad():
        output = network.observe(torch.zeros(1, *shape)).detector
    if not isinstance(output, DenseOutput):
        raise TypeError(f"{type(output).__name__} has no anchors")
    return output.anchors()[0].float()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
