"""The program of a card runs where only the packages that it names are installed.

Its answers are those that the engine scores, to the image.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import retort
from tests import isolation
from tests.contracts import source
from workers import card_program
from workers.distill.config.job import Input, JobConfig, Task
from workers.distill.data import dataset
from workers.distill.data.formats import classified, conversion, letterbox
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import evaluate
from workers.distill.export import outputs, preprocessing, standalone
from workers.distill.networks import catalog, interface

CLASSES = ["zero", "one", "a very long name, with a comma"]
COUNT = 24
STORED = (1, 28, 36)
"""Channels, height and width of the data set's images; pictures have other sizes."""
DRIVER = """
import contextlib, os, runpy, sys

for folder in sys.argv[1:]:
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.modules.pop("model", None)
    sys.argv = ["predict.py", *(f"pictures/{name}" for name in sorted(os.listdir("pictures")))]
    with open("said.txt", "w") as said, contextlib.redirect_stdout(said):
        runpy.run_path("predict.py", run_name="__main__")
    sys.path.remove(folder)
"""


@dataclass(frozen=True)
class Case:
    """A student whose program is run."""

    network: str
    arguments: dict[str, Any] = field(default_factory=dict)
    channels: int = 1
    sides: tuple[int, int] = (32, 32)

    @property
    def input(self) -> dict[str, Any]:
        """What the network expects."""
        moments = {"mean": [0.3] * self.channels, "std": [0.2] * self.channels}
        return {
            "channels": self.channels,
            "height": self.sides[0],
            "width": self.sides[1],
            **moments,
        }


CASES: dict[tuple[str, ...], list[Case]] = {
    ("torch", "safetensors", "pillow"): [
        Case("retort/resnet8", {"widths": [4, 4, 8, 16]}, sides=STORED[1:]),
        Case(
            "retort/reused_classifier",
            {
                "backbone": {"network": "retort/convnet", "arguments": {"widths": [4, 8]}},
                "channels": 8,
            },
            channels=3,
        ),
        Case("retort/fcn", {"widths": [4, 4]}),
    ],
    ("torch", "safetensors", "torchvision", "pillow"): [
        Case("retort/segmenter", {"width": 8, "blocks": 1, "fpn_channels": 32}),
        Case("retort/fcos", {"width": 8, "blocks": 1, "fpn_channels": 32, "agnostic_nms": True}),
        Case("torchvision/shufflenet_v2_x0_5"),
        Case("torchvision/lraspp_mobilenet_v3_large", channels=3),
        Case("torchvision/ssdlite320_mobilenet_v3_large"),
    ],
    ("torch", "timm", "safetensors", "pillow"): [
        Case("timm/resnet10t", {"drop_rate": 0.1}, channels=3),
        Case("timm/vit_tiny_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 24}),
    ],
}


def pictures(folder: Path) -> list[Path]:
    """Write smooth pictures of several sizes, and return their paths in order."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    paths = []
    for number in range(COUNT):
        coarse = generator.integers(0, 256, (5, 5), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((40 + number, 60 - number), Image.Resampling.BICUBIC)
        paths.append(folder / f"{number:02}.png")
        image.save(paths[-1])
    return paths


def build(case: Case, batch: torch.Tensor) -> interface.Network:
    """Return a network whose answers differ within a batch."""
    torch.manual_seed(0)
    network = catalog.build(
        case.network,
        classes=len(CLASSES),
        channels=case.channels,
        height=case.sides[0],
        width=case.sides[1],
        arguments=case.arguments,
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("head.classification_head"):
                parameter.normal_(0, 0.3)  # scores that are high enough, and all different
        network.train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # moments of the batch below alone
        if network.task != "detection":
            network(batch)
        network.eval()
        classifier = network.pooled_classifier()
        if classifier is not None:
            classifier.bias.sub_(network(batch).mean(0))
    return network


def deliver(case: Case, folder: Path, files: list[Path]) -> Callable[[], None]:
    """Write a student as a job does, with its program; return what compares the answers."""
    expected = Input.model_validate(case.input)
    network = build(case, inputs(expected, files))
    config = JobConfig.model_validate(
        {
            "task": network.task,
            "student": {
                "network": case.network,
                "arguments": case.arguments,
                "classes": len(CLASSES),
                "input": case.input,
            },
            "method": {"name": "ce"},
        }
    )
    reason = standalone.why_not(case.network, case.arguments)
    folder.mkdir()
    outputs.write(
        folder,
        config,
        CLASSES,
        network,
        dict.fromkeys(outputs.MEASURED),
        {},
        preprocessing=preprocessing.describe(network.task, expected, STORED),
        mirrored=False,
        standalone=standalone.write(network) if reason is None else reason,
    )
    said = json.loads((folder / "model.json").read_text())
    (folder / "predict.py").write_text("\n".join(card_program.lines(said)))
    (folder / "student.safetensors").rename(folder / "model.safetensors")
    (folder / "model.json").rename(folder / "config.json")
    (folder / "pictures").symlink_to(files[0].parent)
    answers = {"classification": images, "segmentation": masks, "detection": boxes}[network.task]
    return lambda: answers(folder, network, expected, files)


def rows(folder: Path) -> list[list[str]]:
    """Return what the program printed."""
    return [line.split("\t") for line in (folder / "said.txt").read_text().splitlines()]


@torch.inference_mode()
def images(folder: Path, network: interface.Network, expected: Input, files: list[Path]) -> None:
    """The program says of each picture what the engine says, and is right as often."""
    labelled = [classified.LabelledPicture(file, n % 3) for n, file in enumerate(files)]
    classified.write(
        folder / "dataset",
        dict.fromkeys(dataset.SPLITS, labelled),
        files[0].parent,
        classes=CLASSES,
        hints=conversion.InputHints(height=STORED[1], width=STORED[2]),
        notes=(),
        task="classification",
    )
    scored = evaluate.evaluate_file(folder / "model.safetensors", folder / "dataset", "test")
    names = [name for _, name, _ in rows(folder)]
    sure = [float(probability) for *_, probability in rows(folder)]
    right = sum(name == CLASSES[number % 3] for number, name in enumerate(names))
    split = dataset.load(folder / "dataset").split("test")
    probabilities, numbers = network(preprocessor(expected)(split.images)).softmax(1).max(1)
    assert names == [CLASSES[number] for number in numbers]
    assert sure == pytest.approx(probabilities.tolist(), abs=1e-4)
    assert right / COUNT == scored["accuracy"]
    assert right == scored["correct"]
    assert len(set(names)) > 1, "all pictures alike say nothing"


def preprocessor(expected: Input) -> Preprocessor:
    """Return what the engine prepares the data set's images with."""
    stored = Input.model_validate(Case("", channels=1, sides=STORED[1:]).input)
    return Preprocessor("student", expected, stored, torch.device("cpu"))


def inputs(expected: Input, files: list[Path]) -> torch.Tensor:
    """Return what the engine shows a network for dense tasks of these pictures."""
    canvas = letterbox.Canvas(*STORED[1:])
    placed = np.stack([canvas.place(Image.open(file)) for file in files])
    return preprocessor(expected)(torch.from_numpy(placed))


@torch.inference_mode()
def masks(folder: Path, network: interface.Network, expected: Input, files: list[Path]) -> None:
    """The program finds the same share of each class in each picture."""
    numbers = network(inputs(expected, files)).argmax(1)
    shares = {
        (f"pictures/{file.name}", CLASSES[number]): float((mask == number).float().mean())
        for file, mask in zip(files, numbers, strict=True)
        for number in mask.unique().tolist()
    }
    said = {(path, name): float(share) for path, name, share in rows(folder)}
    assert said == pytest.approx(shares, abs=1e-4)
    assert len(said) > COUNT, "one class a picture says nothing"


@torch.inference_mode()
def boxes(folder: Path, network: interface.Network, expected: Input, files: list[Path]) -> None:
    """The program prints the detections whose score is 0.3 or more."""
    found = []
    for file, table in zip(files, network(inputs(expected, files)), strict=True):
        for number, score, *corners in table.tolist():
            if number >= 0 and score >= 0.3:
                found.append((f"pictures/{file.name}", CLASSES[int(number)], score, *corners))
    said = [(path, name, *map(float, numbers)) for path, name, *numbers in rows(folder)]
    assert [row[:2] for row in said] == [row[:2] for row in found]
    for one, other in zip(said, found, strict=True):
        assert one[2] == pytest.approx(other[2], abs=1e-3)
        assert one[3:] == pytest.approx(other[3:], abs=0.06), "rounded to a tenth"
    assert len(said) > 3


@pytest.mark.slow
class TestProgram:
    @pytest.mark.parametrize("packages", CASES, ids=" ".join)
    def test_answers_as_the_engine_does_with_the_packages_that_it_names(
        self, packages: tuple[str, ...], tmp_path: Path
    ) -> None:
        """In one process for all networks: loading torch takes longer than all the rest."""
        files = pictures(tmp_path / "pictures")
        site = isolation.make_site(tmp_path / "site", *packages)
        compare = {}
        for number, case in enumerate(CASES[packages]):
            folder = tmp_path / str(number)
            compare[folder] = deliver(case, folder, files)
            said = json.loads((folder / "config.json").read_text())
            assert set(card_program.packages(said)) == set(packages)
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER)
        (tmp_path / "elsewhere").mkdir()
        ran = isolation.run(driver, *map(str, compare), site=site, folder=tmp_path / "elsewhere")
        assert ran.returncode == 0, ran.stderr[-3000:]
        for answers in compare.values():
            answers()


LAYER = "torch.nn.Conv2d(64, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)"
TRANSFORM = (
    "torchvision.models.detection.transform.GeneralizedRCNNTransform(64, 64, [0.0] * 64, "
    "[1.0] * 64, size_divisible=32, fixed_size=(64, 64))"
)
CALLS: dict[str, dict[str, Any] | None] = {
    "ours": None,
    "timm": {
        "function": "timm.create_model",
        "name": "vit_tiny_patch16_224",
        "keywords": {"pretrained": False, "num_classes": 3, "in_chans": 64, "img_size": (64, 64)},
        "replaced": {},
    },
    "torchvision": {
        "function": "torchvision.models.get_model",
        "name": "ssdlite320_mobilenet_v3_large",
        "keywords": {"weights": None, "num_classes": 4, "weights_backbone": None},
        "replaced": {"backbone.features.0.0.0": LAYER, "transform": TRANSFORM},
    },
}


class TestLines:
    @pytest.mark.parametrize("task", card_program.ANSWERS)
    @pytest.mark.parametrize("channels", [1, 3, 64])
    @pytest.mark.parametrize("call", CALLS)
    def test_have_80_columns_and_are_python(self, call: str, channels: int, task: Task) -> None:
        expected = Input.model_validate(Case("", channels=max(3, channels)).input)
        said = {
            "task": task,
            "classes": CLASSES,
            "needs": ["torch", "safetensors"] if call == "ours" else None,
            "library_call": CALLS[call],
            "preprocessing": preprocessing.describe(task, expected, (channels, *STORED[1:])),
        }
        lines = list(card_program.lines(said))
        compile("\n".join(lines), call, "exec")
        assert max(map(len, lines)) <= card_program.WIDTH, max(lines, key=len)


def test_retort_has_one_name_for_installers() -> None:
    named = tomllib.loads(source.text(Path("pyproject.toml")))["project"]["name"]
    assert card_program.DISTRIBUTION == retort.DISTRIBUTION == named
