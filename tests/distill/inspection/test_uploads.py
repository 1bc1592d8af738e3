"""Every upload ends in one line: what it became, or why it was refused."""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.distill import graphs
from workers.distill.data import dataset
from workers.distill.inspection import uploads
from workers.distill.networks import catalog, interface, weights
from workers.distill.runtime import events

INPUT = {"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.4]}


def a_network(seed: int = 1, name: str = "retort/resnet8") -> interface.Network:
    torch.manual_seed(seed)
    return catalog.build(name, classes=10, channels=1, height=8, width=8, arguments={})


def a_model_request(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "model",
        "source": "upload",
        "network": "retort/resnet8",
        "arguments": {},
        "classes": 10,
        "input": INPUT,
        "allow_pickle": True,
        **changes,
    }


def a_dataset_request(format_name: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "dataset",
        "source": "upload",
        "filename": "x.zip",
        "format": format_name,
        "task": "classification",
        "input": None,
        **changes,
    }


class Inspected:
    """What the report stream said, with the exit code."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.lines = [json.loads(line) for line in text.splitlines()]
        self.last = self.lines[-1]


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[[dict[str, Any]], Inspected]:
    def run(request: dict[str, Any]) -> Inspected:
        (tmp_path / "request.json").write_text(json.dumps(request))
        lines = tmp_path / "lines"
        with lines.open("wb") as stream:
            code = uploads.execute(
                tmp_path / "request.json", tmp_path, events.Reporter(stream.fileno())
            )
        return Inspected(code, lines.read_text())

    return run


Inspect = Callable[[dict[str, Any]], Inspected]


class TestModel:
    @pytest.mark.parametrize("kind", ["safetensors", "torch"])
    def test_weights_become_safetensors(self, tmp_path: Path, inspect: Inspect, kind: str) -> None:
        network = a_network()
        if kind == "torch":
            torch.save({"model": network.state_dict()}, tmp_path / "upload")
        else:
            safetensors.torch.save_file(network.state_dict(), tmp_path / "upload")
        outcome = inspect(a_model_request())
        assert outcome.code == 0
        assert outcome.last["type"] == "result"
        assert outcome.last["format"] == kind
        assert outcome.last["parameters"] == sum(p.numel() for p in network.parameters())
        assert outcome.last["flops"] > 0
        assert outcome.last["warnings"] == []
        twin = a_network(2)
        weights.load_into(twin, tmp_path / "model.safetensors")
        images = torch.rand(2, 1, 8, 8)
        assert torch.equal(twin.eval()(images), network.eval()(images))

    def test_a_network_without_classifier_is_told_what_it_shows(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        state = a_network().state_dict()
        kept = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
        torch.save(kept, tmp_path / "upload")
        outcome = inspect(a_model_request(task="embedding", classes=0))
        assert outcome.code == 0
        assert outcome.last["warnings"] == [
            "it has no classifier; its embedding has 64 numbers, and the maps of its stages are "
            "16 x 8 x 8, 32 x 4 x 4, 64 x 2 x 2 (channels, height, width)"
        ]
        assert "classifier" not in outcome.last["traits"]["shows"]
        safetensors.torch.save_file(state, tmp_path / "upload")
        outcome = inspect(a_model_request(task="embedding", classes=0))
        assert "2 unexpected (fc.bias, fc.weight)" in outcome.last["message"]
        assert "register it as task classification" in outcome.last["message"]

    def test_run_of_another_program_becomes_its_student_and_says_so(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        student, teacher = a_network(1), a_network(2)
        distiller = {
            f"module.{role}.{key}": tensor
            for role, network in (("student", student), ("teacher", teacher))
            for key, tensor in network.state_dict().items()
        }
        torch.save({"epoch": 1, "model": distiller, "best_acc": 70.0}, tmp_path / "upload")
        outcome = inspect(a_model_request())
        assert outcome.code == 0
        taken, others = outcome.last["warnings"]
        assert "the entry model.module.student were taken" in taken
        assert "fit as well: model.module.teacher" in others
        stored_state = safetensors.torch.load_file(tmp_path / "model.safetensors")
        for key, tensor in student.state_dict().items():
            assert torch.equal(stored_state[key], tensor)

    def test_namespace_of_options_is_no_obstacle(self, tmp_path: Path, inspect: Inspect) -> None:
        options = argparse.Namespace(lr=0.05, lr_decay_epochs=[150, 180, 210], model_s="resnet8")
        torch.save({"opt": options, "model": a_network().state_dict()}, tmp_path / "upload")
        assert inspect(a_model_request()).code == 0

    def test_every_difference_stands_in_the_line(self, tmp_path: Path, inspect: Inspect) -> None:
        state = dict(a_network().state_dict())
        state["fc.bias"] = torch.zeros(7)
        state["more"] = state.pop("conv1.weight")
        torch.save(state, tmp_path / "upload")
        outcome = inspect(a_model_request())
        assert outcome.code == 1
        assert outcome.last["type"] == "failure"
        assert outcome.last["code"] == "keys_mismatch"
        assert outcome.last["missing_keys"] == ["conv1.weight"]
        assert outcome.last["unexpected_keys"] == ["more"]
        assert outcome.last["shape_mismatches"] == [
            {"key": "fc.bias", "expected": [10], "got": [7]}
        ]
        assert not (tmp_path / "model.safetensors").exists()

    def test_pickle_with_code_is_refused_and_never_run(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        marker = tmp_path / "marker"

        class Evil:
            def __reduce__(self) -> tuple[Any, tuple[str, int]]:
                return os.mknod, (str(marker), 0o600)

        (tmp_path / "upload").write_bytes(pickle.dumps({"model": Evil()}))
        outcome = inspect(a_model_request())
        assert (outcome.code, outcome.last["code"]) == (1, "unsafe_pickle")
        assert not marker.exists()

    def test_pickle_is_refused_where_it_is_not_allowed(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        torch.save(a_network().state_dict(), tmp_path / "upload")
        assert inspect(a_model_request(allow_pickle=False)).last["code"] == "unsafe_pickle"

    def test_cut_file_is_unreadable(self, tmp_path: Path, inspect: Inspect) -> None:
        safetensors.torch.save_file(a_network().state_dict(), tmp_path / "upload")
        whole = (tmp_path / "upload").read_bytes()
        (tmp_path / "upload").write_bytes(whole[:-10])
        outcome = inspect(a_model_request())
        assert outcome.last["code"] == "unreadable"
        assert "cut short" in outcome.last["message"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"network": "retort/resnet9"},
            {"network": "torchvision/resnet19"},
            {"arguments": {"depth": 3}},
            {"input": {**INPUT, "height": 4}},
        ],
    )
    def test_network_that_cannot_be_built_is_named(
        self, inspect: Inspect, changes: dict[str, Any]
    ) -> None:
        outcome = inspect(a_model_request(**changes))
        assert (outcome.code, outcome.last["code"]) == (1, "bad_network")

    def test_weights_that_are_not_finite_fail(self, tmp_path: Path, inspect: Inspect) -> None:
        network = a_network()
        with torch.no_grad():
            next(network.parameters()).fill_(torch.nan)
        torch.save(network.state_dict(), tmp_path / "upload")
        outcome = inspect(a_model_request())
        assert outcome.last["code"] == "forward_failed"
        assert "not finite" in outcome.last["message"]

    def test_malformed_request_names_the_field(self, inspect: Inspect) -> None:
        outcome = inspect(a_model_request(classes=-1))
        assert (outcome.code, outcome.last["code"]) == (1, "internal_error")
        assert "classes" in outcome.last["message"]

    def test_missing_upload_ends_in_a_line_too(self, inspect: Inspect) -> None:
        assert inspect(a_model_request()).last["type"] == "failure"


class TestTeachers:
    """Graphs and tables, which are kept as they are and said in full."""

    def test_a_graph_is_kept_with_all_that_was_recognised(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        torch.manual_seed(1)
        network = catalog.build(
            "retort/mlp", classes=10, channels=1, height=8, width=8, arguments={"widths": [5, 4]}
        )
        made = graphs.with_softmax(graphs.of_mlp(network))
        uploaded = graphs.save(made, tmp_path / "upload")
        outcome = inspect(
            a_model_request(
                network="retort/onnx",
                arguments={"output": "logits", "embedding": "pooled"},
                filename="mine.onnx",
            )
        )
        assert outcome.code == 0
        assert (tmp_path / "model.onnx").read_bytes() == uploaded.read_bytes()
        assert outcome.last["arguments"]["outputs"] == "probabilities"
        assert outcome.last["arguments"]["input"] == "images"
        assert outcome.last["parameters"] == sum(p.numel() for p in network.parameters())
        assert "embedding" in outcome.last["traits"]["shows"]
        assert outcome.last["traits"]["gives_gradients"]
        assert any("holds probabilities" in note for note in outcome.last["warnings"])

    def test_a_graph_without_classes_is_its_embedding(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        network = catalog.build(
            "retort/mlp", classes=10, channels=1, height=8, width=8, arguments={"widths": [5, 4]}
        )
        graphs.save(graphs.of_mlp(network), tmp_path / "upload")
        request = a_model_request(
            network="retort/onnx", task="embedding", classes=0, arguments={"output": "pooled"}
        )
        outcome = inspect(request)
        assert outcome.code == 0
        assert outcome.last["traits"]["shows"] == ["embedding"]
        assert outcome.last["warnings"][-1] == "it has no classifier; its embedding has 4 numbers"

    def test_a_damaged_graph_is_refused_by_its_own_name(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        (tmp_path / "upload").write_bytes(b"\x08\x08\x12\x07pytorch")
        outcome = inspect(a_model_request(network="retort/onnx", filename="mine.onnx"))
        assert outcome.last["code"] == "unreadable"
        assert "mine.onnx" in outcome.last["message"]

    def test_a_table_is_written_in_stored_order(self, tmp_path: Path, inspect: Inspect) -> None:
        rows = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
        with (tmp_path / "upload").open("wb") as stream:
            np.savez(stream, logits=rows[::-1], index=np.array([3, 2, 1, 0]))
        outcome = inspect(
            a_model_request(
                network="retort/predictions",
                arguments={"dataset": "d@1"},
                images={"train": 4, "validation": 2, "test": 2},
            )
        )
        assert outcome.code == 0
        assert outcome.last["arguments"]["rows"] == {"train": 4}
        assert outcome.last["traits"]["shows"] == []
        kept = safetensors.torch.load_file(tmp_path / "predictions.safetensors")
        assert torch.equal(kept["train"][:, 0], torch.from_numpy(rows))


class TestDenseModel:
    def request(self, **changes: Any) -> dict[str, Any]:
        dense: dict[str, Any] = {"network": "retort/fcn", "arguments": {"widths": [4, 3]}}
        return a_model_request(**{**dense, "task": "segmentation", **changes})

    def upload(self, folder: Path) -> interface.Network:
        torch.manual_seed(1)
        network = catalog.build(
            "retort/fcn", classes=10, channels=1, height=8, width=8, arguments={"widths": [4, 3]}
        )
        torch.save(network.state_dict(), folder / "upload")
        return network

    def test_weights_become_safetensors(self, tmp_path: Path, inspect: Inspect) -> None:
        network = self.upload(tmp_path)
        outcome = inspect(self.request())
        assert outcome.code == 0
        assert outcome.last["parameters"] == sum(p.numel() for p in network.parameters())
        assert outcome.last["flops"] > 0

    @pytest.mark.parametrize(
        "changes",
        [{"task": "classification"}, {"network": "retort/resnet8", "arguments": {}}],
    )
    def test_network_of_another_task_is_refused(
        self, tmp_path: Path, inspect: Inspect, changes: dict[str, Any]
    ) -> None:
        self.upload(tmp_path)
        outcome = inspect(self.request(**changes))
        assert (outcome.code, outcome.last["code"]) == (1, "bad_network")
        assert "the model is said to be for" in outcome.last["message"]


class TestDenseDataset:
    def test_arrays_become_a_prepared_set(self, tmp_path: Path, inspect: Inspect) -> None:
        images = np.zeros((20, 1, 8, 8), dtype=np.uint8)
        with (tmp_path / "upload").open("wb") as stream:
            np.savez(stream, images=images, labels=np.arange(20 * 64).reshape(20, 8, 8) % 3)
        outcome = inspect(a_dataset_request("npz", task="segmentation"))
        assert outcome.code == 0
        assert outcome.last["dataset"]["task"] == "segmentation"
        assert dataset.load(tmp_path / "dataset").split("train").labels.shape == (14, 8, 8)

    def test_formats_without_masks_are_refused(self, tmp_path: Path, inspect: Inspect) -> None:
        (tmp_path / "upload").write_bytes(b"hello")
        outcome = inspect(a_dataset_request("imagefolder", task="segmentation"))
        assert outcome.last["code"] == "unsupported_format"
        assert "holds no labels for segmentation; upload npz, voc, masks" in outcome.last["message"]


class TestDataset:
    def test_arrays_become_a_prepared_set(self, tmp_path: Path, inspect: Inspect) -> None:
        images = np.zeros((20, 1, 8, 8), dtype=np.uint8)
        with (tmp_path / "upload").open("wb") as stream:
            np.savez(stream, images=images, labels=np.arange(20) % 2)
        outcome = inspect(a_dataset_request("npz"))
        assert outcome.code == 0
        described = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
        assert outcome.last["dataset"] == described
        assert dataset.load(tmp_path / "dataset").record.splits["train"] == 14

    def test_input_may_be_given_in_part(self, tmp_path: Path, inspect: Inspect) -> None:
        with (tmp_path / "upload").open("wb") as stream:
            images = np.zeros((20, 1, 8, 8), dtype=np.uint8)
            np.savez(stream, images=images, labels=np.arange(20) % 2)
        outcome = inspect(a_dataset_request("npz", input={"mean": [0.5], "std": [0.5]}))
        assert outcome.last["dataset"]["input"]["mean"] == [0.5]

    @pytest.mark.parametrize("format_name", ["imagefolder", "cifar10", "cifar100", "npz"])
    def test_other_files_are_refused(
        self, tmp_path: Path, inspect: Inspect, format_name: str
    ) -> None:
        (tmp_path / "upload").write_bytes(b"hello")
        outcome = inspect(a_dataset_request(format_name))
        assert outcome.code == 1
        assert outcome.last["code"] in ("unreadable", "unsupported_format")

    def test_archive_that_leads_elsewhere_is_refused(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        with zipfile.ZipFile(tmp_path / "upload", "w") as archive:
            archive.writestr("../evil.png", b"x")
        assert inspect(a_dataset_request("imagefolder")).last["code"] == "unsafe_archive"
        assert not (tmp_path.parent / "evil.png").exists()

    def test_folders_become_a_prepared_set_with_class_names(
        self, tmp_path: Path, inspect: Inspect
    ) -> None:
        generator = np.random.default_rng(0)
        with zipfile.ZipFile(tmp_path / "upload", "w") as archive:
            for number in range(40):
                picture = io.BytesIO()
                pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(picture, "PNG")
                archive.writestr(f"train/class-{number % 2}/{number}.png", picture.getvalue())
        outcome = inspect(a_dataset_request("imagefolder"))
        assert outcome.code == 0
        described = outcome.last["dataset"]
        assert described["classes"] == ["class-0", "class-1"]
        assert sum(described["splits"].values()) == 40
        assert described["input"]["channels"] == 3

    def test_archive_without_pictures_is_refused(self, tmp_path: Path, inspect: Inspect) -> None:
        with zipfile.ZipFile(tmp_path / "upload", "w") as archive:
            archive.writestr("cat/readme.txt", b"x")
        assert inspect(a_dataset_request("imagefolder")).last["code"] == "no_images"

    def test_unknown_format_lists_those_that_exist(self, inspect: Inspect) -> None:
        outcome = inspect(a_dataset_request("coco"))
        assert outcome.last["code"] == "unsupported_format"
        assert "imagefolder" in outcome.last["message"]

    def test_nothing_stays_behind_a_refusal(self, tmp_path: Path, inspect: Inspect) -> None:
        with zipfile.ZipFile(tmp_path / "upload", "w") as archive:
            for index in range(5):
                archive.writestr(f"a/{index}.png", b"x")
                archive.writestr(f"b/{index}.png", b"x")
        assert inspect(a_dataset_request("imagefolder")).last["code"] == "unreadable"
        assert {file.name for file in tmp_path.iterdir()} == {"upload", "request.json", "lines"}


class TestBuiltin:
    def test_digits_are_written(self, tmp_path: Path, inspect: Inspect) -> None:
        outcome = inspect({"kind": "builtin", "name": "digits"})
        assert outcome.code == 0
        assert outcome.last["dataset"]["splits"] == {"train": 1257, "validation": 180, "test": 360}
        assert dataset.load(tmp_path / "dataset").split("test").images.shape == (360, 1, 8, 8)

    def test_unknown_set_lists_those_that_exist(self, inspect: Inspect) -> None:
        assert "digits" in inspect({"kind": "builtin", "name": "letters"}).last["message"]


class TestMain:
    @pytest.mark.slow
    def test_standard_output_is_report_lines_only(self, tmp_path: Path) -> None:
        torch.save(a_network().state_dict(), tmp_path / "upload")
        (tmp_path / "request.json").write_text(json.dumps(a_model_request(classes=9)))
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "workers.distill.inspection.uploads",
                str(tmp_path / "request.json"),
                "--workdir",
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        (line,) = [json.loads(line) for line in ended.stdout.splitlines()]
        assert line["code"] == "keys_mismatch"
        assert "Traceback" in ended.stderr
