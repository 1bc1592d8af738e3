"""Which networks exist, and how one is built from a reference such as `retort/resnet20`.

Own networks stand in one explicit table. `timm/<name>` and `torchvision/<name>` are looked up in
those libraries, which are imported only when asked for.
"""

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic
import torch

from workers.distill import errors
from workers.distill.config import descriptions, rules, teachers
from workers.distill.config.descriptions import NetworkDescription
from workers.distill.config.job import Task
from workers.distill.networks import backbones, interface, predictions
from workers.distill.networks.dense import fcn, meta, own_detectors, segmenter
from workers.distill.networks.external import libraries as foreign_networks
from workers.distill.networks.graphs import network as graph
from workers.distill.networks.zoo import (
    convnet,
    mlp,
    mobilenetv1,
    mobilenetv2,
    resnet,
    reused,
    shufflev1,
    shufflev2,
    tiny_mobilenetv2,
    vgg,
    wrn,
)

Accepted = TypeVar("Accepted", bound=pydantic.BaseModel)

MOST_PARAMETERS = 2_000_000_000

ALL = ("stages", "pre_activations", "final", "norms", "classifier")
WITHOUT_NORMS = ("stages", "pre_activations", "final", "classifier")
WITHOUT_CLASSIFIER = ("stages", "pre_activations", "final", "norms")
LINEAR_STAGES = ("stages", "final", "classifier")
PYRAMID = ("stages", "final")
DENSE_DETECTOR = (*PYRAMID, "locations", "branches")
TWO_STAGE_DETECTOR = (*PYRAMID, "proposals")


@dataclass(frozen=True)
class NetworkEntry:
    """One line of the table.

    `parameters_100` counts them at 100 classes and 3 channels. Below `smallest_side` the last
    stages would have less than a pixel. `shows` is what `observe` shows besides logits and pooled
    features, in the words of `descriptions.FeatureName`. `composed_of` names the argument that
    chooses a part which `make` calls `build` for: it is checked there, and shows what the part
    shows. `shows_with` are features that are shown only where an argument is given, by argument.
    """

    family: str
    make: Callable[[Any, interface.Sizes], interface.Network]  # Any: the entry's own arguments
    parameters_100: int
    arguments: type[pydantic.BaseModel]
    smallest_side: int
    shows: tuple[str, ...]
    description: str
    composed_of: str | None = None
    only_teaches: bool = False
    """Whether it is what its file says, so that what it shows is known only of the file."""
    shows_with: tuple[tuple[str, str], ...] = ()
    task: Task = "classification"
    has_batch_norm: bool = True
    takes_any_size: bool = True
    """Whether its weights fit images of any size, above the smallest."""


def _small_resnet(
    depth: int, parameters: int, accepted: type[resnet.Arguments] = resnet.Arguments
) -> NetworkEntry:
    return NetworkEntry(
        "resnet",
        functools.partial(resnet.build, resnet.small(depth)),
        parameters,
        accepted,
        smallest_side=8,
        shows=ALL,
        description=f"Residual network for small images: {depth} layers, "
        f"stem and stages of {', '.join(map(str, accepted().widths))} channels.",
    )


def _deep_resnet(layout: resnet.Layout, parameters: int) -> NetworkEntry:
    is_large = layout.is_for_large_images
    depth = 2 + sum(layout.blocks) * (3 if layout.block is resnet.Bottleneck else 2)
    return NetworkEntry(
        "imagenet_resnet" if is_large else "resnet",
        functools.partial(resnet.build, layout),
        parameters,
        resnet.FourStageArguments,
        smallest_side=32 if is_large else 8,
        shows=ALL,
        description=f"Residual network for {'large' if is_large else 'small'} images: {depth} "
        "layers, four stages" + (", with torchvision's names." if is_large else "."),
    )


def _wrn(depth: int, parameters: int, accepted: type[wrn.Arguments]) -> NetworkEntry:
    return NetworkEntry(
        "wrn",
        functools.partial(wrn.build, depth),
        parameters,
        accepted,
        smallest_side=8,
        shows=ALL,
        description=f"Wide residual network for small images: {depth} layers, "
        f"stem and stages of {', '.join(map(str, accepted().widths))} channels.",
    )


def _vgg(depth: int, parameters: int) -> NetworkEntry:
    return NetworkEntry(
        "vgg",
        functools.partial(vgg.build, depth),
        parameters,
        vgg.Arguments,
        smallest_side=8,
        shows=ALL,
        description=f"Plain convolutions with batch norm for small images: {depth} layers.",
    )


def _reused_classifier(accepted: reused.Arguments, sizes: interface.Sizes) -> interface.Network:
    choice = accepted.backbone
    if choice.network == reused.REFERENCE:
        # Refused before it is built: arguments could nest without end.
        raise errors.UnknownNetwork(
            f"{reused.REFERENCE} cannot be its own backbone; choose another",
            network=reused.REFERENCE,
            argument="backbone",
        )
    backbone = build(
        choice.network,
        classes=sizes.classes,
        channels=sizes.channels,
        height=sizes.height,
        width=sizes.width,
        arguments=choice.arguments,
    )
    return reused.build(accepted, backbone)


NETWORKS: dict[str, NetworkEntry] = {
    "retort/resnet8": _small_resnet(8, 83_892),
    "retort/resnet14": _small_resnet(14, 181_108),
    "retort/resnet20": _small_resnet(20, 278_324),
    "retort/resnet32": _small_resnet(32, 472_756),
    "retort/resnet44": _small_resnet(44, 667_188),
    "retort/resnet56": _small_resnet(56, 861_620),
    "retort/resnet110": _small_resnet(110, 1_736_564),
    "retort/resnet8x4": _small_resnet(8, 1_233_540, resnet.WideArguments),
    "retort/resnet32x4": _small_resnet(32, 7_433_860, resnet.WideArguments),
    "retort/resnet18": _deep_resnet(
        resnet.small_with_four_stages(resnet.BasicBlock, 2, 2, 2, 2), 11_220_132
    ),
    "retort/resnet50": _deep_resnet(
        resnet.small_with_four_stages(resnet.Bottleneck, 3, 4, 6, 3), 23_705_252
    ),
    "retort/wrn_16_1": _wrn(16, 180_916, wrn.Arguments),
    "retort/wrn_16_2": _wrn(16, 703_284, wrn.WideArguments),
    "retort/wrn_40_1": _wrn(40, 569_780, wrn.Arguments),
    "retort/wrn_40_2": _wrn(40, 2_255_156, wrn.WideArguments),
    "retort/vgg8": _vgg(8, 3_965_028),
    "retort/vgg11": _vgg(11, 9_277_284),
    "retort/vgg13": _vgg(13, 9_462_180),
    "retort/vgg16": _vgg(16, 14_774_436),
    "retort/vgg19": _vgg(19, 20_086_692),
    "retort/mobilenetv2": NetworkEntry(
        "mobilenetv2",
        mobilenetv2.build,
        812_836,
        mobilenetv2.Arguments,
        smallest_side=16,
        shows=LINEAR_STAGES,
        description="Inverted residuals for small images, half the usual width.",
    ),
    "retort/tiny_mobilenetv2": NetworkEntry(
        "mobilenetv2",
        tiny_mobilenetv2.build,
        2_369_380,
        tiny_mobilenetv2.Arguments,
        smallest_side=8,
        shows=LINEAR_STAGES,
        description="Inverted residuals for images of 64x64.",
    ),
    "retort/shufflev1": NetworkEntry(
        "shufflenet",
        shufflev1.build,
        949_258,
        shufflev1.Arguments,
        smallest_side=8,
        shows=WITHOUT_NORMS,
        description="Grouped convolutions with shuffled channels for small images.",
    ),
    "retort/shufflev2": NetworkEntry(
        "shufflenet",
        shufflev2.build,
        1_355_528,
        shufflev2.Arguments,
        smallest_side=8,
        shows=WITHOUT_NORMS,
        description="Blocks over half of the channels, then shuffled, for small images.",
    ),
    "retort/imagenet_resnet18": _deep_resnet(
        resnet.large(resnet.BasicBlock, 2, 2, 2, 2), 11_227_812
    ),
    "retort/imagenet_resnet34": _deep_resnet(
        resnet.large(resnet.BasicBlock, 3, 4, 6, 3), 21_335_972
    ),
    "retort/imagenet_resnet50": _deep_resnet(
        resnet.large(resnet.Bottleneck, 3, 4, 6, 3), 23_712_932
    ),
    "retort/mobilenetv1": NetworkEntry(
        "mobilenetv1",
        mobilenetv1.build,
        3_309_476,
        mobilenetv1.Arguments,
        smallest_side=32,
        shows=ALL,
        description="Depthwise separable convolutions for large images.",
    ),
    reused.REFERENCE: NetworkEntry(
        "reused_classifier",
        _reused_classifier,
        1_473_256,
        reused.Arguments,
        smallest_side=1,
        shows=ALL,
        description="A backbone, a projector and a teacher's classifier: what simkd delivers. It "
        "shows what its backbone shows.",
        composed_of="backbone",
    ),
    "retort/convnet": NetworkEntry(
        "convnet",
        convnet.build,
        30_196,
        convnet.Arguments,
        smallest_side=4,
        shows=ALL,
        description="A layer a stage for the smallest images: stages of 16, 32, 64 channels.",
    ),
    "retort/mlp": NetworkEntry(
        "mlp",
        mlp.build,
        202_052,
        mlp.Arguments,
        smallest_side=1,
        shows=("classifier",),
        description="A perceptron for the smallest images, without batch norm: layers of 64 and 32 "
        "units. Its size grows with the image; parameters are those at 32 x 32.",
        has_batch_norm=False,
        takes_any_size=False,
    ),
    "retort/fcn": NetworkEntry(
        "fcn",
        fcn.build,
        35_268,
        fcn.Arguments,
        smallest_side=8,
        shows=WITHOUT_CLASSIFIER,
        description="A class for each pixel of small images: layers at full resolution, as many "
        "as `widths` has numbers.",
        task="segmentation",
    ),
    segmenter.REFERENCE: NetworkEntry(
        "segmenter",
        segmenter.build,
        919_548,
        segmenter.Arguments,
        smallest_side=32,
        shows=PYRAMID,
        description="A class for each pixel: a light head on a feature pyramid over a small "
        "residual network or a network of timm.",
        task="segmentation",
    ),
    "retort/fcos": NetworkEntry(
        "detector",
        own_detectors.build_fcos,
        1_010_945,
        own_detectors.FCOSArguments,
        smallest_side=32,
        shows=DENSE_DETECTOR,
        description="Boxes with classes: FCOS, one box per location, on a feature pyramid over a "
        "small residual network or a network of timm.",
        shows_with=(("reg_max", "distributions"),),
        task="detection",
    ),
    "retort/retinanet": NetworkEntry(
        "detector",
        own_detectors.build_retinanet,
        1_638_144,
        own_detectors.RetinaNetArguments,
        smallest_side=32,
        shows=DENSE_DETECTOR,
        description="Boxes with classes: RetinaNet, nine anchors per location, on a feature "
        "pyramid over a small residual network or a network of timm.",
        task="detection",
    ),
    "retort/fasterrcnn": NetworkEntry(
        "detector",
        own_detectors.build_fasterrcnn,
        1_838_688,
        own_detectors.FasterRCNNArguments,
        smallest_side=32,
        shows=TWO_STAGE_DETECTOR,
        description="Boxes with classes: Faster R-CNN, which classifies proposals, on a feature "
        "pyramid over a small residual network or a network of timm.",
        task="detection",
    ),
    teachers.GRAPH: NetworkEntry(
        "graph",
        graph.build,
        0,
        graph.Arguments,
        smallest_side=1,
        shows=(),
        description="A teacher in an ONNX file, from any framework; what it shows is found when "
        "the file is inspected.",
        has_batch_norm=False,
        only_teaches=True,
    ),
    teachers.PREDICTIONS: NetworkEntry(
        "predictions",
        predictions.build,
        0,
        predictions.Arguments,
        smallest_side=1,
        shows=(),
        description="A teacher whose predictions for the images of one data set are in a file.",
        has_batch_norm=False,
        only_teaches=True,
    ),
}


def build(
    reference: str,
    *,
    classes: int,
    channels: int,
    height: int,
    width: int,
    arguments: Mapping[str, Any],  # Any: JSON values, checked against the network's schema
) -> interface.Network:
    """Build a network with fresh weights, drawn from torch's global generator.

    With 0 classes it has no classifier, and answers with its embedding (`backbones`). Raises
    `UnknownNetwork` when the name is unknown, an argument is not accepted, or the network cannot be
    built for this size of image.
    """
    is_backbone = classes == 0 and reference not in teachers.ONLY_TEACHERS
    network = _built(
        reference,
        classes=backbones.BUILT_CLASSES if is_backbone else classes,
        channels=channels,
        height=height,
        width=width,
        arguments=arguments,
    )
    network.reference, network.arguments = reference, dict(arguments)
    network.classes, network.image_shape = classes, (channels, height, width)
    if is_backbone:
        backbones.remove_classifier(network)
    return network


def _built(
    reference: str,
    *,
    classes: int,
    channels: int,
    height: int,
    width: int,
    arguments: Mapping[str, Any],  # Any: as in `build`
) -> interface.Network:
    family, _, name = reference.partition("/")
    if min(channels, height, width) < 1 or classes < 0:
        raise errors.UnknownNetwork(
            f"channels, height and width must be positive, and classes not negative, got "
            f"{channels}, {height}, {width} and {classes}",
            network=reference,
        )
    if family in foreign_networks.LIBRARIES and name:
        return foreign_networks.build(
            family,
            name,
            classes=classes,
            channels=channels,
            height=height,
            width=width,
            arguments=_checked(reference, arguments, foreign_networks.Arguments),
        )
    entry = NETWORKS.get(reference)
    if entry is None:
        raise _unknown(reference)
    own = NetworkDescription(reference, smallest_side=entry.smallest_side, sides=(height, width))
    for fault in rules.of_smallest_side("student", own):
        raise errors.UnknownNetwork(fault.message, network=reference)
    accepted = _checked(reference, arguments, entry.arguments)
    sizes = interface.Sizes(classes, channels, height, width)
    if arguments and not entry.composed_of:
        # A few digits in an argument can ask for all the memory that a machine has.
        _check_size(reference, _count_parameters(reference, accepted.model_dump_json(), sizes))
    return entry.make(accepted, sizes)


def describe() -> list[dict[str, Any]]:  # Any: JSON for the catalog
    """Return the table of our own networks as the catalog publishes it."""
    return [
        {
            "name": name,
            "family": entry.family,
            "task": entry.task,
            "parameters_100": entry.parameters_100,
            "shows": list(entry.shows),
            "smallest_side": entry.smallest_side,
            "has_batch_norm": entry.has_batch_norm,
            "takes_any_size": entry.takes_any_size,
            "composed_of": entry.composed_of,
            "only_teaches": entry.only_teaches,
            "shows_with": dict(entry.shows_with),
            "arguments_schema": entry.arguments.model_json_schema(),
            "description": entry.description,
        }
        for name, entry in NETWORKS.items()
    ]


def described(reference: str, arguments: Mapping[str, Any]) -> NetworkDescription:
    """Return what is known of a network without building it."""
    return descriptions.network_of(_table(), reference, arguments)


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in describe()}


def foreign() -> dict[str, list[str]]:
    """Return the networks that timm and torchvision offer, sorted by name."""
    return {library: foreign_networks.names(library) for library in foreign_networks.LIBRARIES}


def foreign_arguments_schema() -> dict[str, Any]:  # Any: JSON for the catalog
    """Return which arguments the networks of other libraries take."""
    return foreign_networks.Arguments.model_json_schema()


def foreign_tasks() -> dict[str, Task]:
    """Return what the networks of other libraries are for, of those that are no classifiers."""
    return {
        f"{library}/{name}": task_name
        for library, names in foreign().items()
        for name in names
        if (task_name := foreign_networks.task(library, name)) != interface.Network.task
    }


def check_arguments(reference: str, arguments: Mapping[str, Any]) -> None:
    """Raise `UnknownNetwork` for an argument that one of our own networks does not accept."""
    _checked(reference, arguments, NETWORKS[reference].arguments)


def is_foreign(reference: str) -> bool:
    """Return whether a library that is installed has this network."""
    library, _, name = reference.partition("/")
    return library in foreign_networks.LIBRARIES and name in foreign_networks.names(library)


def task(reference: str) -> Task:
    """Return what a network is for, without building it; unknown ones count as classifiers."""
    if reference in NETWORKS:
        return NETWORKS[reference].task
    library, _, name = reference.partition("/")
    return foreign_networks.task(library, name)


# A job builds the same network several times: as student, as its baseline, and as its copy.
@functools.lru_cache(maxsize=256)
def _count_parameters(reference: str, arguments: str, sizes: interface.Sizes) -> int:
    """Return how many parameters one of our networks has, without memory for them.

    `arguments` are JSON, with defaults.
    """
    entry = NETWORKS[reference]
    with torch.device("meta"), meta.WithoutDraws():
        network = entry.make(entry.arguments.model_validate_json(arguments), sizes)
    return sum(parameter.numel() for parameter in network.parameters())


def _check_size(reference: str, count: int) -> None:
    if count > MOST_PARAMETERS:
        raise errors.UnknownNetwork(
            f"{reference} with these arguments has {count} parameters, more than {MOST_PARAMETERS}",
            network=reference,
        )


def _unknown(reference: str) -> errors.UnknownNetwork:
    candidates = [*NETWORKS, *(name.partition("/")[2] for name in NETWORKS)]
    close = difflib.get_close_matches(reference, candidates, n=1, cutoff=0.5)
    if close:
        nearest = close[0] if "/" in close[0] else f"retort/{close[0]}"
        advice = f"did you mean {nearest!r}?"
    else:
        advice = "names start with 'retort/', 'timm/' or 'torchvision/'"
    return errors.UnknownNetwork(f"there is no network {reference!r}; {advice}", network=reference)


def _checked(reference: str, arguments: Mapping[str, Any], accepted: type[Accepted]) -> Accepted:
    """Return the arguments, or name the first that the network does not accept."""
    for asked in rules.of_arguments(reference, arguments):
        raise errors.UnknownNetwork(asked.message, network=reference, argument=asked.field)
    try:
        return accepted.model_validate(dict(arguments))
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else ""
        if fault["type"] == "extra_forbidden":
            reason = f"has no argument {name!r}; it accepts {', '.join(accepted.model_fields)}"
        else:
            reason = f"does not accept argument {name!r}: {fault['msg']}"
        raise errors.UnknownNetwork(
            f"{reference} {reason}", network=reference, argument=name
        ) from error
