"""A teacher that is an ONNX graph: run by onnxruntime, or in torch where more than outputs is read.

onnxruntime gives logits, and an embedding where the graph has one among its outputs. Feature maps,
batch norms and gradients come from the same graph as a torch module, if it converts and agrees.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.files import prediction_table
from workers.distill.networks import interface
from workers.distill.networks.external import observation, planning
from workers.distill.networks.graphs import onnx_file
from workers.distill.networks.graphs.conversion import TorchGraph
from workers.distill.networks.graphs.onnx_file import Graph, Layout, Value
from workers.distill.networks.graphs.operators import NotConverted
from workers.distill.networks.zoo import arguments

IMAGES = 3
"""On so many images a graph is tried when it is read."""
TOLERANCE = 1e-3
"""onnxruntime and torch agree so far, relative to the largest number."""
CONVERSION_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Arguments(arguments.Arguments):
    """Arguments of a graph; what is left out is recognised when the file is inspected."""

    input: str | None = pydantic.Field(None, description="Name of the input that takes images.")
    output: str | None = pydantic.Field(None, description="Name of the output with the classes.")
    embedding: str | None = pydantic.Field(
        None, description="Name of an output with an embedding for each image, if there is one."
    )
    outputs: Literal["logits", "probabilities"] | None = pydantic.Field(
        None,
        description="What the output with the classes holds; of probabilities the log is read.",
    )
    layout: Layout | None = pydantic.Field(
        None, description="nchw: channels before height and width; nhwc: channels last."
    )
    batch: int | None = pydantic.Field(
        None,
        ge=1,
        le=4096,
        description="Images that the graph takes at a time, where it takes no other number.",
    )
    taps: list[str] | None = pydantic.Field(
        None,
        description="Values of the graph that are its stages, for feature methods; by default the "
        "last map of each size.",
    )


@dataclass(frozen=True)
class Ports:
    """How a graph is called and read, with nothing left open."""

    entry: Value
    output: str
    embedding: str | None
    outputs: Literal["logits", "probabilities"]
    layout: Layout
    batch: int | None


class OnnxNetwork(interface.FileNetwork):
    """An ONNX graph; only a teacher, since it cannot be trained.

    Built for 0 classes, its output is an embedding, and nothing else is read of it.
    """

    graph: TorchGraph | None

    def __init__(self, accepted: Arguments, sizes: interface.Sizes) -> None:
        super().__init__()
        self._accepted = accepted
        self._sizes = sizes
        self.task = "classification" if sizes.classes else "embedding"
        self.notes: list[str] = []
        """What was chosen and converted when the file was read."""
        self._order: list[int] | None = None
        self._wants_torch = False
        self.graph = None
        self._plan: observation.Plan | None = None
        # So that a device and a floating-point type are known, as of networks with parameters.
        self.register_buffer("_place", torch.zeros(0), persistent=False)

    # -- reading ----------------------------------------------------------------------------------

    def load_file(self, path: Path) -> list[str]:
        """Read the graph, try it on a few images, and convert it if possible; return notes.

        Raises `UploadRefused` for a graph that cannot teach.
        """
        graph = onnx_file.read(path)
        self.parameter_count = graph.parameters
        self.notes = [f"the graph was read by its operators of opset {graph.opset}"]
        self._ports = self._choose_ports(path, graph)
        wanted = [self._ports.output]
        if self._ports.embedding is not None:
            wanted.append(self._ports.embedding)
        self._session = onnx_file.Session(graph, wanted)
        self._try(path)
        if self._sizes.classes:
            self._convert(graph)
        else:
            self.limits = "of a graph without classes, nothing but its embedding is read"
            self.notes.append(f"{self.limits}; methods that compare feature maps cannot use it")
        return self.notes

    def chosen_arguments(self) -> dict[str, Any]:
        """Return the arguments with all that was recognised, so that nobody guesses again."""
        ports = self._ports
        found = {
            "input": ports.entry.name,
            "output": ports.output,
            "embedding": ports.embedding,
            "outputs": ports.outputs,
            "layout": ports.layout,
            "batch": ports.batch,
            "taps": self._accepted.taps,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _choose_ports(self, path: Path, graph: Graph) -> Ports:
        entry = _chosen(path, "input", graph.inputs, self._accepted.input)
        has_classes = self._sizes.classes > 0
        candidates, wanted = graph.outputs, self._accepted.output
        if wanted is None and self._accepted.embedding is not None:
            if has_classes:
                candidates = tuple(
                    one for one in candidates if one.name != self._accepted.embedding
                )
            else:
                wanted = self._accepted.embedding
        output = _chosen(path, "output", candidates, wanted)
        embedding = None
        if self._accepted.embedding is not None and has_classes:
            embedding = _chosen(path, "embedding", graph.outputs, self._accepted.embedding).name
        if entry.element not in (*onnx_file.FLOATS, onnx_file.BYTES):
            raise errors.UploadRefused(
                "not_images",
                f"the input {entry.in_words()} of {path.name} takes no floats and no bytes (ONNX's "
                f"type {entry.element}); name the one that takes images: arguments.input",
            )
        others = [one.name for one in graph.inputs if one.name != entry.name]
        if others:
            raise errors.UploadRefused(
                "several_inputs",
                f"{path.name} needs other inputs besides {entry.name}: {', '.join(others)}; export "
                "a graph that takes images alone",
            )
        layout = self._layout(path, entry)
        batch = self._accepted.batch
        side = entry.sides[0] if entry.sides else None
        if isinstance(side, int) and side > 0:
            if batch not in (None, side):
                raise errors.UploadRefused(
                    "batch",
                    f"arguments.batch is {batch}, and {path.name} takes {side} images at a time: "
                    "leave it out",
                )
            batch = side
            self.notes.append(
                f"the graph takes {side} image{'' if side == 1 else 's'} at a time: larger batches "
                "are cut, which is slower; export it with a batch of any size to avoid that"
            )
        return Ports(
            entry, output.name, embedding, self._accepted.outputs or "logits", layout, batch
        )

    def _layout(self, path: Path, entry: Value) -> Layout:
        """Return the order of sides, from those that the graph declares; checks them."""
        sizes = self._sizes
        sides = {
            "nchw": (sizes.channels, sizes.height, sizes.width),
            "nhwc": (sizes.height, sizes.width, sizes.channels),
        }
        declared = entry.sides[1:]
        if len(entry.sides) not in (0, 4):
            raise errors.UploadRefused(
                "not_images",
                f"the input {entry.in_words()} of {path.name} takes no batch of images; name the "
                "one that does: arguments.input",
            )
        wanted = [self._accepted.layout] if self._accepted.layout else ["nchw", "nhwc"]
        for layout in wanted:
            pairs = zip(declared, sides[layout], strict=False)
            if all(not isinstance(side, int) or side == own for side, own in pairs):
                if layout == "nhwc" and self._accepted.layout is None:
                    self.notes.append("the graph takes images with their channels last (nhwc)")
                return layout  # type: ignore[return-value]  # of the two literals
        given = f"{sizes.channels} channels, height {sizes.height}, width {sizes.width}"
        raise errors.UploadRefused(
            "input_shape",
            f"the input {entry.in_words()} of {path.name} does not take images of {given}; set "
            "input.channels, input.height and input.width to those of the graph",
        )

    def _try(self, path: Path) -> None:
        """Run the graph on images, one at a time and together, and check what it answers."""
        images = self._trial_images()
        alone = [self._tried(path, images[place : place + 1]) for place in range(len(images))]
        logits = np.concatenate([answers[0] for answers in alone])
        if not np.isfinite(logits).all():
            raise errors.UploadRefused(
                "not_finite",
                f"{path.name} answers with numbers that are not finite (NaN or infinity) in its "
                f"output {self._ports.output}; check mean, std and the range of pixels, and "
                "whether its training diverged",
            )
        if self._ports.batch is None:
            self._try_batch(images, logits)
        again = self._tried(path, images[:1])[0]
        if not np.allclose(again, logits[:1], rtol=TOLERANCE, atol=TOLERANCE):
            raise errors.UploadRefused(
                "random_answers",
                f"{path.name} answers the same image differently each time: it draws random "
                "numbers; export it in evaluation mode",
            )
        if not self._sizes.classes:
            self.pooled_width = logits.shape[1]
            return
        self._recognise_probabilities(path, logits)
        if self._ports.embedding is not None:
            self.pooled_width = alone[0][1].shape[1]

    def _trial_images(self) -> NDArray[np.float32]:
        shape = (IMAGES, self._sizes.channels, self._sizes.height, self._sizes.width)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    def _try_batch(self, images: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Choose batches of one image, with a note, where a batch gives no or other answers."""
        try:
            together = self._raw(images)[0]
            why = "answers otherwise"
            holds = np.allclose(
                together, expected, rtol=TOLERANCE, atol=TOLERANCE * _largest(expected)
            )
        except (ValueError, errors.UploadRefused) as error:
            holds, why = False, f"cannot be run ({_first_line(error)})"
        if not holds:
            self._ports = dataclasses.replace(self._ports, batch=1)
            self.notes.append(
                f"the graph {why} on more than one image at a time, whatever its input says: it is "
                "run image by image, which is slower"
            )

    def _tried(self, path: Path, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        try:
            answers = self._raw(images)
        except ValueError as error:
            raise errors.UploadRefused(
                "forward_failed", f"{path.name} cannot be run on an image: {_first_line(error)}"
            ) from error
        if not self._sizes.classes:
            self._check_embedding(path, self._ports.output, answers[0], len(images))
            return answers
        expected = (len(images), self._sizes.classes)
        if answers[0].shape != expected:
            raise errors.UploadRefused(
                "class_count",
                f"the output {self._ports.output} of {path.name} has shape "
                f"{list(answers[0].shape)}, expected {list(expected)} for {self._sizes.classes} "
                "classes; set classes, or name another output: arguments.output",
            )
        if self._ports.embedding is not None:
            self._check_embedding(path, self._ports.embedding, answers[1], len(images))
        return answers

    def _check_embedding(
        self, path: Path, name: str, answer: NDArray[np.float32], images: int
    ) -> None:
        if answer.ndim != 2 or len(answer) != images:
            ports = "arguments.output" if not self._sizes.classes else "arguments.embedding"
            raise errors.UploadRefused(
                "embedding_shape",
                f"the output {name} of {path.name} has shape {list(answer.shape)}; an embedding is "
                f"a row of numbers for each image, [{images}, D]: name another output: {ports}",
            )

    def _recognise_probabilities(self, path: Path, answers: NDArray[np.float32]) -> None:
        is_probable = prediction_table.are_probabilities(answers)
        if self._accepted.outputs == "probabilities" and not is_probable:
            raise errors.UploadRefused(
                "no_probabilities",
                f"arguments.outputs says probabilities, and the rows of {self._ports.output} in "
                f"{path.name} are not (from {answers.min():.4g} to {answers.max():.4g}, sums from "
                f"{answers.sum(1).min():.4g} to {answers.sum(1).max():.4g}); leave it out",
            )
        if is_probable and self._accepted.outputs is None:
            self._ports = dataclasses.replace(self._ports, outputs="probabilities")
            self.notes.append(
                f"the output {self._ports.output} holds probabilities: their logarithm is taken as "
                "the logits (arguments.outputs: logits takes them as they are)"
            )

    def _convert(self, graph: Graph) -> None:
        """Convert the graph to torch, and keep that if it answers as onnxruntime does."""
        try:
            converted = TorchGraph(
                graph,
                entry=self._ports.entry.name,
                end=self._end(graph),
                layout=self._ports.layout,
            )
            if self._ports.entry.element != 1:
                raise NotConverted("images that are not float32")
            self._check_equal(converted)
        except NotConverted as error:
            self.limits = f"its graph cannot be converted to torch: {error}"
        # Whatever an operator of a stranger's graph raises in torch, the graph still has its
        # outputs; what is lost is told.
        except CONVERSION_ERRORS as error:
            self.limits = (
                f"its graph cannot be converted to torch ({type(error).__name__}: "
                f"{_first_line(error)})"
            )
        else:
            self.graph = converted.eval().requires_grad_(False)
            self._make_plan()
        if self.limits is not None:
            kept = "logits and embedding" if self._ports.embedding is not None else "logits"
            lost = "feature maps and gradients" if self.graph is None else "feature maps"
            self.notes.append(f"{self.limits}; it teaches by its {kept}, without {lost}")

    def _end(self, graph: Graph) -> str:
        """Return the value before a final softmax, if there is one: its log-softmax is exact."""
        makers = {name: node for node in graph.proto.graph.node for name in node.output}
        last = makers.get(self._ports.output)
        is_softmax = last is not None and last.op_type == "Softmax"
        if self._ports.outputs == "probabilities" and is_softmax and last is not None:
            return str(last.input[0])
        return self._ports.output

    @torch.no_grad()
    def _check_equal(self, converted: TorchGraph) -> None:
        images = torch.from_numpy(self._trial_images())
        expected = self._by_runtime(images)[0]
        converted.eval()
        actual = self._scores(converted(images), of=converted)
        difference = float((actual - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise NotConverted(f"its logits differ from onnxruntime's by {difference:.3g}")

    def _make_plan(self) -> None:
        """Find stages, embedding and classifier in the converted graph."""
        if self.graph is None:
            return
        sizes = self._sizes
        taps = self._accepted.taps
        names = {step.gives[0]: step.child for step in self.graph.steps}
        unknown = [tap for tap in taps or () if tap not in names]
        if unknown:
            raise errors.UploadRefused(
                "taps",
                f"arguments.taps: the graph computes no value {unknown[0]!r}; its last ones are "
                f"{', '.join(list(names)[-8:])}",
            )
        chosen = None if taps is None else [names[tap] for tap in taps]
        try:
            self._plan = planning.make_plan(
                self.graph,
                classes=sizes.classes,
                images=observation.picture(sizes.channels, sizes.height, sizes.width),
                taps=chosen,
            )
            found = observation.trial(
                self.graph,
                self._plan,
                observation.picture(sizes.channels, sizes.height, sizes.width),
            )
        except (RuntimeError, ValueError) as error:
            self._plan = None
            self.limits = f"no feature maps were found in its graph ({_first_line(error)})"
            return
        self.stages_info = self._plan.stages
        if self._ports.embedding is None:
            self.pooled_width = found.pooled.shape[1]

    # -- use --------------------------------------------------------------------------------------

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the logits."""
        if self._runs_in_torch(images) and self.graph is not None:
            return self._ordered(self._scores(self.graph(images), of=self.graph))
        return self._ordered(self._by_runtime(images)[0])

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, the embedding where there is one, and feature maps where wanted."""
        if not self._runs_in_torch(images) or self.graph is None:
            logits, *embedding = self._by_runtime(images)
            if not self._sizes.classes:
                embedding = [logits]
            pooled = embedding[0] if embedding else logits.new_empty(len(logits), 0)
            return interface.Features(self._ordered(logits), pooled)
        if self._plan is None:
            logits = self._scores(self.graph(images), of=self.graph)
            return interface.Features.from_logits(self._ordered(logits))
        found = observation.observe(self.graph, self._plan, images)
        logits = self._ordered(self._scores(found.logits, of=self.graph))
        return interface.Features(
            logits,
            found.pooled,
            found.stem,
            found.stages,
            found.pre_activations,
            found.final,
        )

    def pooled_classifier(self) -> nn.Linear | None:
        """Return the linear layer from `pooled` to logits, if the converted graph has one."""
        if self.graph is None or self._plan is None or not self._plan.is_linear:
            return None
        layer = self.graph.get_submodule(self._plan.classifier)
        if not isinstance(layer, nn.Linear) or self._order is None:
            return layer if isinstance(layer, nn.Linear) else None
        ordered = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        ordered.weight.data = layer.weight[self._order]
        if layer.bias is not None:
            ordered.bias.data = layer.bias[self._order]
        return ordered.requires_grad_(False)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the norms found before the rectifiers that end the stages."""
        if self.graph is None or self._plan is None:
            return ()
        modules = (self.graph.get_submodule(name) for name in self._plan.norms)
        return tuple(norm for norm in modules if isinstance(norm, nn.BatchNorm2d))

    def enable_features(self, wanted: Collection[str]) -> None:
        """Run in torch from now on, if more is wanted than the graph's outputs give."""
        own = {"embedding"} if self._ports.embedding is not None else set()
        if set(wanted) - own and self.graph is not None:
            self._wants_torch = True
            if "pre_activations" in wanted and self._plan is not None:
                self._plan = planning.watch(self.graph, self._plan)

    def enable_gradients(self) -> None:
        """Run in torch from now on, where gradients flow to images; raises where it cannot."""
        if self.graph is None:
            raise errors.IncompatibleNetworks(
                f"{self.reference} gives no gradients: {self.limits}", network=self.reference
            )
        self._wants_torch = True

    def reorder_classes(self, order: Sequence[int]) -> None:
        """Make logit i what was logit `order[i]`."""
        self._order = list(order)

    def torch_form(self) -> nn.Module | None:
        """Return the converted graph, in which operations can be counted, or None."""
        return self.graph

    def _runs_in_torch(self, images: Tensor) -> bool:
        # On a card, copying every batch to the processor and back would cost most of the time.
        return self.graph is not None and (self._wants_torch or images.device.type != "cpu")

    def _scores(self, raw: Tensor, *, of: TorchGraph | None = None) -> Tensor:
        """Return logits from what the output holds."""
        if self._ports.outputs == "logits":
            return raw
        if of is not None and of.end != self._ports.output:
            return torch.log_softmax(raw.float(), dim=-1)
        return raw.float().clamp_min(prediction_table.SMALLEST_PROBABILITY).log()

    def _ordered(self, logits: Tensor) -> Tensor:
        return logits if self._order is None else logits[:, self._order]

    def _by_runtime(self, images: Tensor) -> list[Tensor]:
        found = self._raw(images.detach().float().cpu().contiguous().numpy())
        logits, *others = (torch.from_numpy(one).to(images.device) for one in found)
        return [self._scores(logits), *others]

    def _raw(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the outputs for images as the network expects them, in chunks if need be."""
        ports = self._ports
        arranged = images if ports.layout == "nchw" else images.transpose(0, 2, 3, 1)
        if ports.entry.element == onnx_file.BYTES:
            typed = np.clip(np.rint(arranged), 0, 255).astype(np.uint8)
        else:
            typed = arranged.astype(onnx_file.FLOATS[ports.entry.element])
        size = ports.batch or len(typed)
        parts: list[list[NDArray[Any]]] = []
        for start in range(0, len(typed), size):
            chunk = typed[start : start + size]
            lacking = (ports.batch or 0) - len(chunk)
            if lacking > 0:
                # The last rows are repeated, and their answers dropped.
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], lacking, axis=0)])
            parts.append(self._session.run(ports.entry.name, np.ascontiguousarray(chunk)))
        count = len(typed)
        return [
            np.concatenate([_by_row(part[place]) for part in parts])[:count].astype(np.float32)
            for place in range(len(parts[0]))
        ]


def build(accepted: Arguments, sizes: interface.Sizes) -> OnnxNetwork:
    """Return a network that is yet to read its file."""
    return OnnxNetwork(accepted, sizes)


def _by_row(answer: NDArray[Any]) -> NDArray[Any]:
    # Some graphs give [N, C, 1, 1].
    return answer.reshape(answer.shape[:2]) if math.prod(answer.shape[2:]) == 1 else answer


def _chosen(path: Path, role: str, values: Sequence[Value], name: str | None) -> Value:
    words = ", ".join(one.in_words() for one in values)
    if name is not None:
        found = next((one for one in values if one.name == name), None)
        if found is None:
            raise errors.UploadRefused(
                "unknown_port",
                f"arguments.{role} is {name!r}, and {path.name} has no such "
                f"{'input' if role == 'input' else 'output'}; it has {words}",
            )
        return found
    if len(values) != 1:
        raise errors.UploadRefused(
            "several_ports",
            f"{path.name} has {len(values)} {role}s: {words or 'none'}; name the one to use: "
            f"arguments.{role}",
        )
    return values[0]


def _largest(numbers: NDArray[np.float32]) -> float:
    return float(np.abs(numbers).max()) if numbers.size else 1.0


def _first_line(error: Exception) -> str:
    message = error.message if isinstance(error, errors.DistillError) else str(error)
    return message.strip().splitlines()[0][:300] if message.strip() else type(error).__name__
