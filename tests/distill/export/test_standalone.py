"""`model.py` of every network of ours: the same tensors, the same answers, no import of Retort."""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.distill.export import source_bundle, source_modules, standalone
from workers.distill.networks import catalog, interface, weights
from workers.distill.networks.zoo import resnet

# Few channels, so that 30 networks take no time.
NARROW: dict[str, dict[str, Any]] = {
    "ThreeStages": {"widths": [4, 4, 8, 8]},
    "FourStageArguments": {"widths": [4, 4, 8, 8, 8]},
    "vgg": {"widths": [4, 4, 8, 8, 8]},
    "mobilenetv1": {"width_multiplier": 0.1},
    "mobilenetv2": {"width_multiplier": 0.1},
    "shufflev1": {"widths": [36, 48, 60]},
    "shufflev2": {"widths": [4, 8, 8], "last_width": 8},
    "reused_classifier": {
        "backbone": {"network": "retort/convnet", "arguments": {"widths": [4, 8]}},
        "channels": 8,
    },
    "segmenter": {"width": 8, "blocks": 1, "fpn_channels": 32},
    "detector": {"width": 8, "blocks": 1, "fpn_channels": 32, "score_threshold": 0.0},
}
MORE: list[tuple[str, dict[str, Any]]] = [
    ("retort/fcos", {**NARROW["detector"], "reg_max": 16, "agnostic_nms": True}),
    ("retort/segmenter", {"backbone": "timm/resnet10t", "fpn_channels": 32}),
    (
        "retort/reused_classifier",
        {"backbone": {"network": "retort/wrn_16_1", "arguments": {}}, "channels": 8},
    ),
]


def narrow(reference: str) -> dict[str, Any]:
    """Return arguments that make a network of the table small."""
    entry, name = catalog.NETWORKS[reference], reference.partition("/")[2]
    for key in (name.removeprefix("tiny_"), entry.family, entry.arguments.__name__):
        if key in NARROW:
            return NARROW[key]
    return NARROW["ThreeStages"] if entry.family in ("resnet", "wrn") else {}


STUDENTS = [name for name, entry in catalog.NETWORKS.items() if not entry.only_teaches]


def shallowest() -> list[str]:
    """Return the first student of each kind; the others have more of the same blocks."""
    kinds: dict[object, str] = {}
    for reference in STUDENTS:
        entry = catalog.NETWORKS[reference]
        function = getattr(entry.make, "func", entry.make)
        given = getattr(entry.make, "args", (None,))[0]
        block = None
        if isinstance(given, resnet.Layout):
            block = given.block, given.is_for_large_images
        kinds.setdefault((function, block, entry.arguments), reference)
    return list(kinds.values())


def load(text: str) -> Any:  # Any: a module whose names a type checker does not know
    """Return the module of a text."""
    module = types.ModuleType("model")
    module.__file__ = "model.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "model", module)  # where dataclasses look
        exec(compile(text, "model.py", "exec"), vars(module))
    return module


def config(network: interface.Network) -> dict[str, Any]:
    """Return what `build_network` reads of config.json."""
    channels, height, width = network.image_shape
    return {
        "network": network.reference,
        "arguments": json.loads(json.dumps(dict(network.arguments))),
        "classes": [str(number) for number in range(network.classes)],
        "input": {"channels": channels, "height": height, "width": width},
    }


def build(reference: str, arguments: dict[str, Any]) -> interface.Network:
    """Return a network with moments of its batch norms that are not those of the start."""
    torch.manual_seed(0)
    network = catalog.build(
        reference, classes=4, channels=3, height=32, width=32, arguments=arguments
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
    return network.eval()


class TestWrite:
    @pytest.mark.parametrize(
        ("reference", "arguments"),
        [*((reference, narrow(reference)) for reference in shallowest()), *MORE],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_builds_the_same_network(self, reference: str, arguments: dict[str, Any]) -> None:
        network = build(reference, arguments)
        made = standalone.write(network)
        assert not re.search(r"(import|from) (workers|jaxtyping|pydantic)", made.text)
        copied = load(made.text).build_network(config(network))
        assert copied.state_dict().keys() == network.state_dict().keys()
        copied.load_state_dict(network.state_dict())
        images = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            expected, answer = network(images), copied.eval()(images)
        assert answer.shape == expected.shape
        assert torch.allclose(answer, expected, atol=1e-6)
        if network.task == "detection":
            assert (expected[..., 0] >= 0).any(), "padding alone says nothing"

    @pytest.mark.parametrize("reference", STUDENTS)
    def test_knows_the_defaults_of_arguments_that_are_left_out(self, reference: str) -> None:
        with torch.device("meta"):
            network = catalog.build(
                reference, classes=4, channels=3, height=64, width=64, arguments={}
            )
            copied = load(standalone.write(network).text).build_network(config(network))
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        assert {name: tensor.shape for name, tensor in copied.state_dict().items()} == shapes

    def test_reads_the_files_beside_it(self, tmp_path: Path) -> None:
        network = build("retort/resnet8", NARROW["ThreeStages"])
        weights.save_student(tmp_path / "model.safetensors", network, {"format": "pt"})
        (tmp_path / "config.json").write_text(json.dumps(config(network)))
        made = load(standalone.write(network).text)
        loaded, read = made.load(tmp_path)
        assert read["network"] == "retort/resnet8"
        assert not loaded.training
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(loaded(images), network(images))
        with pytest.raises(ValueError, match=r"describes retort/mlp, this file builds"):
            made.build_network({**read, "network": "retort/mlp"})

    @pytest.mark.parametrize(
        ("reference", "arguments", "packages"),
        [
            ("retort/resnet8", {}, ("torch", "safetensors")),
            ("retort/fcn", {}, ("torch", "safetensors")),
            ("retort/fcos", {}, ("torch", "safetensors", "torchvision")),
            (
                "retort/segmenter",
                {"backbone": "timm/resnet10t"},
                ("torch", "safetensors", "torchvision", "timm"),
            ),
        ],
    )
    def test_says_which_packages_it_needs(
        self, reference: str, arguments: dict[str, Any], packages: tuple[str, ...]
    ) -> None:
        made = standalone.write(build(reference, arguments))
        assert made.packages == packages
        assert f"It needs {', '.join(packages[:-1])} and {packages[-1]}." in made.text


class TestWhyNot:
    def test_is_said_of_networks_of_libraries_and_of_their_maps(self) -> None:
        assert standalone.why_not("retort/resnet8", {}) is None
        assert "torchvision/resnet18 is a network of another library" in str(
            standalone.why_not("torchvision/resnet18", {})
        )
        own = {"network": "retort/resnet8", "arguments": {}}
        assert standalone.why_not("retort/reused_classifier", {"backbone": own}) is None
        foreign = {"network": "timm/resnet10t", "arguments": {}}
        reason = standalone.why_not("retort/reused_classifier", {"backbone": foreign})
        assert reason is not None
        assert "timm/resnet10t" in reason


class TestBundle:
    def test_refuses_what_has_no_place_in_a_file_of_its_own(self) -> None:
        bundle = source_bundle.Bundle()
        with pytest.raises(source_modules.CannotBundleError, match="needs pydantic"):
            bundle.add("workers.distill.networks.zoo.resnet", "FourStageArguments")

    def test_leaves_out_what_nothing_mentions(self) -> None:
        text = standalone.write(build("retort/resnet8", {})).text
        for name in ("Bottleneck", "stage_norms", "last_norm", "DetectorOutput", "Float["):
            assert name not in text

    def test_gives_one_of_two_equal_names_another(self) -> None:
        """`build` and `_convolution` would be of the projector and of its backbone alike."""
        text = standalone.write(build(*MORE[2])).text
        assert "def reused_build(" in text
        assert "def wrn_build(" in text
