"""Exports by task, format and precision: read again, they answer as the original does."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from tests.distill import folders
from workers.distill import errors
from workers.distill.config.exports import ExportChoice
from workers.distill.config.job import Input
from workers.distill.data import boxes, dataset
from workers.distill.export import boxes as chosen_boxes
from workers.distill.export import (
    checks,
    graph,
    half_precision,
    onnx_graph,
    openvino_model,
    program,
)
from workers.distill.networks import catalog, interface, weights

NARROW: dict[str, Any] = {"width": 8, "blocks": 1, "fpn_channels": 32, "score_threshold": 0.0}
SCENE = Input(channels=3, height=32, width=32, mean=[0.4] * 3, std=[0.2] * 3)
FOUND = {
    "images": 10,
    "decisions": 10,
    "decisions_equal": 10,
    "decisions_of": "images",
    "metric": "accuracy",
    "accuracy": 0.9,
    "original_accuracy": 0.9,
    "drop": 0.0,
}


def built(network: str, arguments: dict[str, Any], size: Input) -> interface.Network:
    torch.manual_seed(0)
    return catalog.build(
        network,
        classes=3,
        channels=size.channels,
        height=size.height,
        width=size.width,
        arguments=arguments,
    ).eval()


def write_scenes(folder: Path, task: str) -> None:
    """Write a data set with a box, or a mask, in each image."""
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels: tuple[torch.Tensor, ...] = (torch.randint(0, 3, (6, 32, 32), dtype=torch.uint8),)
    if task == "detection":
        rows = torch.tensor([[[1.0, 4, 4, 20, 20, 256, boxes.ORDINARY]]])
        labels = (rows.repeat(6, 1, 1), torch.ones(6))
    record = dataset.DatasetRecord(
        task=task,
        classes=["a", "b", "c"],
        splits=dict.fromkeys(("train", "validation", "test"), 6),
        input=SCENE,
    )
    dataset.write(folder, record, dict.fromkeys(dataset.SPLITS, (images, *labels)))


def made(
    workdir: Path,
    network: str,
    arguments: dict[str, Any],
    size: Input,
    task: str,
    *,
    built_before: interface.Network | None = None,
    **choice: Any,
) -> dict[str, Any]:
    """Export a network, untrained unless one is given, and return the report."""
    (workdir / "model").mkdir(exist_ok=True)
    file = workdir / "model" / "model.safetensors"
    network_itself = built_before or built(network, arguments, size)
    weights.save_student(file, network_itself, {"format": "pt"})
    request = {
        "name": "student@1",
        "network": network,
        "arguments": arguments,
        "classes": ["a", "b", "c"],
        "task": task,
        "input": size.model_dump(mode="json"),
        "choice": {"max_drop": 1.0, **choice},
    }
    return program.make(program.ExportRequest.model_validate_json(json.dumps(request)), workdir)


SEGMENTER: tuple[str, dict[str, Any], Input] = (
    "retort/segmenter",
    {name: NARROW[name] for name in ("width", "blocks", "fpn_channels")},
    SCENE,
)


def with_large_variances(network: interface.Network, images: torch.Tensor) -> interface.Network:
    """Let a pyramid's maps grow as training does, and have the batch norms behind measure them."""
    with torch.no_grad():
        for weight in network.get_submodule("backbone.fpn").parameters():
            weight.mul_(30)
        network.train()
        for _ in range(20):
            network(images)
    return network.eval()


CONVNET = ("retort/convnet", {"widths": [4, 8]}, Input.model_validate(folders.INPUT))


@pytest.mark.slow
class TestGraphs:
    def test_in_int8_are_calibrated_and_take_pixels(self, tmp_path: Path) -> None:
        folders.make_dataset(tmp_path / "dataset")
        report = made(
            tmp_path,
            *CONVNET,
            "classification",
            format="onnx",
            precision="int8",
            include_preprocessing=True,
        )
        found = report["measured"]["checks"]
        assert found["decisions"] == found["images"] == 20
        assert 0 < found["largest_logit_difference"] < 0.2
        assert found["drop"] is not None
        assert any("41 of 41 training images" in note for note in report["notes"])
        model = onnx.load(tmp_path / "export" / "model.onnx")
        assert "DequantizeLinear" in {node.op_type for node in model.graph.node}
        described = json.loads((tmp_path / "export" / "export.json").read_text())
        assert described["input"]["type"] == "uint8"
        assert described["input"]["shape"] == ["batch", 1, 8, 8]

    def test_of_a_detector_are_compared_after_their_documented_steps(self, tmp_path: Path) -> None:
        write_scenes(tmp_path / "dataset", "detection")
        size = ("retort/fcos", NARROW, SCENE)
        report = made(tmp_path, *size, "detection", format="onnx", precision="float16")
        found = report["measured"]["checks"]
        assert found["metric"] == "ap"
        assert found["decisions_of"] == "locations"
        assert found["largest_box_difference"] < 0.5
        described = json.loads((tmp_path / "export" / "export.json").read_text())
        assert described["outputs"] == ["scores", "boxes"]
        assert described["post_processing"]["iou_threshold"] == 0.5

    def test_of_torch_hold_half_precision_of_a_segmenter(self, tmp_path: Path) -> None:
        write_scenes(tmp_path / "dataset", "segmentation")
        report = made(
            tmp_path, *SEGMENTER, "segmentation", format="torch_export", precision="float16"
        )
        found = report["measured"]["checks"]
        assert found["decisions"] == 6 * 32 * 32
        assert 0 < found["largest_logit_difference"] < 0.05
        loaded: Any = torch.export.load(tmp_path / "export" / "model.pt2")
        (logits,) = loaded.module()(torch.rand(1, 3, 32, 32))
        assert logits.shape == (1, 3, 32, 32)

    @pytest.mark.parametrize(("precision", "most"), [("float32", 1e-4), ("float16", 0.05)])
    def test_of_openvino_answer_as_the_original_for_any_batch(
        self, tmp_path: Path, precision: str, most: float
    ) -> None:
        write_scenes(tmp_path / "dataset", "segmentation")
        report = made(
            tmp_path,
            *SEGMENTER,
            "segmentation",
            format="openvino",
            precision=precision,
            include_preprocessing=True,
        )
        found = report["measured"]["checks"]
        assert found["decisions"] == 6 * 32 * 32
        assert found["largest_logit_difference"] < most
        assert report["refusal"] is None
        assert {"model.xml", "model.bin", "export.json"} == set(report["files"])
        assert "openvino" in report["measured"]["library_versions"]
        model = openvino_model.OpenvinoModel(tmp_path / "export" / "model.xml", threads=1)
        (logits,) = model(torch.zeros(5, 3, 32, 32, dtype=torch.uint8))
        assert logits.shape == (5, 3, 32, 32)

    def test_of_openvino_need_its_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(errors.NotExportable, match=r"retort-distill\[openvino\]"):
            made(tmp_path, *CONVNET, "classification", format="openvino")


class TestWeights:
    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_alone_load_by_name(self, tmp_path: Path, precision: str) -> None:
        report = made(
            tmp_path, *CONVNET, "classification", format="torch_state_dict", precision=precision
        )
        state = torch.load(tmp_path / "export" / "model.pth", weights_only=True)
        network = built(*CONVNET)
        network.load_state_dict(state)
        weights_alone = [state[name] for name, _ in network.named_parameters()]
        assert {tensor.dtype for tensor in weights_alone} == {getattr(torch, precision)}
        assert report["measured"]["checks"]["images"] == checks.NOISE_IMAGES
        assert report["refusal"] is None

    @pytest.mark.slow
    def test_for_the_hub_load_with_timm_alone(self, tmp_path: Path) -> None:
        import timm

        size: tuple[str, dict[str, Any], Input] = ("timm/test_resnet", {}, SCENE)
        made(tmp_path, *size, "classification", format="hub")
        loaded: Any = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(loaded(images), built(*size)(images))
        assert list(loaded.pretrained_cfg["mean"]) == [0.4] * 3
        readme = (tmp_path / "export" / "README.md").read_text()
        assert readme.startswith("---\nlibrary_name: ")
        config = json.loads((tmp_path / "export" / "config.json").read_text())
        assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}

    def test_for_the_hub_come_with_the_source_of_our_own_networks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made(tmp_path, *CONVNET, "classification", format="hub")
        monkeypatch.syspath_prepend(tmp_path / "export")
        monkeypatch.delitem(sys.modules, "model", raising=False)
        import model  # type: ignore[import-not-found]  # what was just written

        network, config = model.load(tmp_path / "export")
        images = torch.rand(2, 1, 8, 8)
        torch.testing.assert_close(network(images), built(*CONVNET)(images))
        assert config["classes"] == ["a", "b", "c"]
        monkeypatch.delitem(sys.modules, "model")


@pytest.mark.slow
class TestHalfPrecision:
    @pytest.mark.parametrize("form", ["torch_state_dict", "hub", "torch_export"])
    def test_keeps_variances_that_it_cannot_hold(self, tmp_path: Path, form: str) -> None:
        write_scenes(tmp_path / "dataset", "segmentation")
        segmenter = with_large_variances(built(*SEGMENTER), torch.rand(4, 3, 32, 32))
        variance = segmenter.get_submodule("head.1").get_buffer("running_var")
        assert float(variance.max()) > half_precision.LARGEST
        report = made(
            tmp_path,
            *SEGMENTER,
            "segmentation",
            built_before=segmenter,
            format=form,
            precision="float16",
        )
        found = report["measured"]["checks"]
        assert found["decisions_equal"] / found["decisions"] > 0.99
        if form in ("torch_state_dict", "hub"):
            assert any("running variances of batch norms" in note for note in report["notes"])

    def test_of_weights_that_it_cannot_hold_is_told(self, tmp_path: Path) -> None:
        network = built(*CONVNET)
        name, large = next(iter(network.named_parameters()))
        with torch.no_grad():
            large.view(-1)[0] = 1e5

        def exported(form: str) -> dict[str, Any]:
            shutil.rmtree(tmp_path / "export", ignore_errors=True)
            return made(
                tmp_path,
                *CONVNET,
                "classification",
                built_before=network,
                format=form,
                precision="float16",
            )

        report = exported("torch_state_dict")
        assert any(f"{name} stay float32: they have values" in one for one in report["notes"])
        state = torch.load(tmp_path / "export" / "model.pth", weights_only=True)
        assert state[name].flatten()[0] == 1e5
        with pytest.raises(errors.NotExportable, match=f"{name} have values beyond 65,504"):
            exported("torch_export")
        report = exported("onnx")
        assert any("compute in float32" in one for one in report["notes"])
        assert report["measured"]["checks"]["decisions_equal"] == checks.NOISE_IMAGES


class TestComputeInHalf:
    def test_takes_infinite_constants_as_they_are(self) -> None:
        module = nn.Linear(2, 2)
        module.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        half_precision.compute_in_half(module)
        assert module.get_buffer("mask").tolist() == [0, -math.inf]

    def test_refuses_large_constants_that_no_file_holds(self) -> None:
        module = nn.Linear(2, 2)
        module.register_buffer("scale", torch.tensor([1e6]), persistent=False)
        with pytest.raises(errors.NotExportable, match="scale have values beyond 65,504"):
            half_precision.compute_in_half(module)


class TestRefusals:
    def test_name_what_is_lost_and_the_way_out(self) -> None:
        choice = ExportChoice(format="onnx", precision="int8", max_drop=0.01)
        assert program.refusal(choice, FOUND) is None
        lost = program.refusal(choice, {**FOUND, "accuracy": 0.88, "drop": 0.02})
        assert lost is not None
        assert "0.0200 of accuracy: 0.8800 instead of 0.9000" in lost["message"]
        unmeasured = {**FOUND, "drop": None, "decisions_equal": 9}
        assert program.refusal(choice, unmeasured) is None
        differing = program.refusal(ExportChoice(format="onnx"), unmeasured)
        assert differing is not None
        assert differing["code"] == "answers_differ"

    def test_come_before_any_work_with_the_sentence_of_the_api(self, tmp_path: Path) -> None:
        with pytest.raises(errors.NotExportable, match="choose onnx, or float16"):
            made(tmp_path, *CONVNET, "classification", format="hub", precision="int8")
        with pytest.raises(errors.NotExportable, match="no data set is known; choose float16"):
            made(tmp_path, *CONVNET, "classification", format="onnx", precision="int8")
        with pytest.raises(errors.NotExportable, match="task 'embedding'"):
            made(tmp_path, *CONVNET, "embedding", format="hub")


class TestBounds:
    def test_cut_the_images_to_what_there_is_time_for_and_tell(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "MOST_SECONDS", 1e-9)
        report = made(tmp_path, *CONVNET, "classification", format="torch_state_dict")
        assert report["measured"]["checks"]["images"] == 1
        assert any(f"1 of {checks.NOISE_IMAGES} images, because" in x for x in report["notes"])

    def test_refuse_a_graph_that_no_file_of_onnx_holds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_graph, "MOST_WEIGHTS_BYTES", 100)
        with pytest.raises(errors.NotExportable, match="holds 100; choose format torch_export"):
            made(tmp_path, *CONVNET, "classification", format="onnx")


@pytest.mark.parametrize("network", ["retort/fcos", "retort/retinanet"])
def test_the_documented_steps_give_the_detections_of_the_network(network: str) -> None:
    size = SCENE
    detector = built(network, NARROW, size)
    module = graph.ExportedGraph(detector, size, include_preprocessing=False)
    images = torch.rand(2, 3, 32, 32)
    steps = graph.post_processing(detector)
    assert steps is not None
    with torch.no_grad():
        expected, (scores, corners) = detector(images), module(images)
    for place in range(2):
        rows = chosen_boxes.choose(scores[place], corners[place], steps)
        found = expected[place][expected[place][:, 0] != boxes.NO_CLASS]
        assert len(rows) == len(found) > 0
        torch.testing.assert_close(rows, found, rtol=1e-4, atol=1e-4)
