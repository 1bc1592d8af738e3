"""A student is the same whether its teacher is weights, a graph, or stored predictions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders, graphs
from workers.distill.data import dataset, stored_images
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.files import tensorfile
from workers.distill.networks import catalog, weights
from workers.distill.networks.interface import Network

MLP: dict[str, Any] = {"network": "retort/mlp", "arguments": {"widths": [12, 6]}}
KD = {"name": "kd"}
TRAINING = {"epochs": 2, "batch_size": 16, "augmentation": "none"}


def mlp(seed: int = 3) -> Network:
    torch.manual_seed(seed)
    built = catalog.build(
        "retort/mlp", classes=3, channels=1, height=8, width=8, arguments=MLP["arguments"]
    )
    return built.eval()


def native(folder: Path, seed: int = 3) -> dict[str, Any]:
    folder.mkdir(parents=True)
    weights.save_student(folder / "model.safetensors", mlp(seed), {"format": "pt"})
    return folders.network(**MLP)


def graph(folder: Path, seed: int = 3, *, softmax: bool = False, **arguments: Any) -> Any:
    made = graphs.of_mlp(mlp(seed))
    graphs.save(graphs.with_softmax(made) if softmax else made, folder / "model.onnx")
    chosen = {"output": "logits", "embedding": "pooled", **arguments}
    return folders.network(network="retort/onnx", arguments=chosen)


@torch.no_grad()
def predictions(folder: Path, images: Path, **arguments: Any) -> dict[str, Any]:
    network, stored = mlp(), dataset.load(images)
    size = stored.record.input
    preprocess = Preprocessor("teacher", size, size, torch.device("cpu"))
    tables = {
        name: network(preprocess(stored.split(name).images))[:, None] for name in dataset.SPLITS
    }
    folder.mkdir(parents=True)
    tensorfile.write(folder / "predictions.safetensors", tables, {})
    chosen = {"dataset": "rows@1", **arguments}
    return folders.network(network="retort/predictions", arguments=chosen)


def run(
    workdir: Path, teacher: dict[str, Any] | None, method: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """Carry a job out whose teacher lies in its folder already, and return its last line."""
    training = {**TRAINING, **changes.pop("training", {})}
    path = folders.prepare(workdir, teacher=None, method=method, training=training)
    recipe = {**json.loads(path.read_text()), "teacher": teacher, **changes}
    path.write_text(json.dumps(recipe))
    _, lines = folders.run_here(path)
    return lines[-1]


def student(workdir: Path) -> dict[str, torch.Tensor]:
    return tensorfile.read(workdir / "student.safetensors")


def differ(one: Path, other: Path) -> float:
    first, second = student(one), student(other)
    return max(float((first[key].float() - second[key].float()).abs().max()) for key in first)


def test_kd_gives_the_same_student_from_weights_a_graph_and_predictions(tmp_path: Path) -> None:
    kinds = {"weights": native, "graph": graph}
    for name, make in kinds.items():
        line = run(tmp_path / name, make(tmp_path / name / "teacher"), KD)
        assert line["type"] == "result", line
        (taught,) = line["teachers"]
        assert taught["kind"] == name
        assert taught["scores"] == line["scores"]["teacher"]
    folder = tmp_path / "predictions"
    folders.make_dataset(tmp_path / "data")
    line = run(folder, predictions(folder / "teacher", tmp_path / "data"), KD)
    assert line["type"] == "result", line
    assert line["teachers"][0]["kind"] == "predictions"
    assert line["parameters"]["teacher"] is None
    assert line["scores"]["teacher"]["accuracy"] is not None
    assert differ(tmp_path / "weights", tmp_path / "graph") < 1e-5
    assert differ(tmp_path / "weights", folder) < 1e-5
    other = tmp_path / "other"
    run(other, native(other / "teacher", seed=4), KD)
    assert differ(tmp_path / "weights", other) > 1e-3


def test_probabilities_teach_as_logits_do(tmp_path: Path) -> None:
    run(tmp_path / "logits", graph(tmp_path / "logits" / "teacher"), KD)
    soft = graph(tmp_path / "soft" / "teacher", softmax=True)
    run(tmp_path / "soft", soft, KD)
    assert differ(tmp_path / "logits", tmp_path / "soft") < 1e-5


@pytest.mark.parametrize("method", ["rkd", "srrl"])
def test_relations_and_features_of_a_graph_are_those_of_its_network(
    tmp_path: Path, method: str
) -> None:
    for name, make in {"weights": native, "graph": graph}.items():
        line = run(tmp_path / name, make(tmp_path / name / "teacher"), {"name": method})
        assert line["type"] == "result", line
    assert differ(tmp_path / "weights", tmp_path / "graph") < 1e-4


class TestSeveral:
    def several(self, workdir: Path, weighting: str | None = None, **changes: Any) -> Any:
        choices = [native(workdir / "teacher-1", 3), graph(workdir / "teacher-2", 4)]
        return run(workdir, None, KD, teachers=choices, teacher_weighting=weighting, **changes)

    def test_teach_together_and_are_scored_each(self, tmp_path: Path) -> None:
        line = self.several(tmp_path, "confidence", training={"augmentation": "flip"})
        assert line["type"] == "result", line
        assert [one["kind"] for one in line["teachers"]] == ["weights", "graph"]
        assert all(one["scores"]["accuracy"] is not None for one in line["teachers"])
        assert line["scores"]["teacher"]["accuracy"] is not None

    def test_two_that_are_equal_teach_as_one(self, tmp_path: Path) -> None:
        pair = tmp_path / "pair"
        choices = [native(pair / "teacher-1"), native(pair / "teacher-2")]
        assert run(pair, None, KD, teachers=choices)["type"] == "result"
        run(tmp_path / "one", native(tmp_path / "one" / "teacher"), KD)
        assert differ(pair, tmp_path / "one") < 1e-5

    def test_have_no_features(self, tmp_path: Path) -> None:
        line = run(
            tmp_path,
            None,
            {"name": "rkd"},
            teachers=[native(tmp_path / "teacher-1"), native(tmp_path / "teacher-2")],
        )
        assert line["code"] == "incompatible_networks"
        assert "several teachers have logits in common" in line["message"]


class TestPredictions:
    def refused(self, tmp_path: Path, method: dict[str, Any] = KD, **changes: Any) -> Any:
        folders.make_dataset(tmp_path / "data")
        arguments = changes.pop("arguments", {})
        chosen = predictions(tmp_path / "job" / "teacher", tmp_path / "data", **arguments)
        line = run(tmp_path / "job", chosen, method, **changes)
        assert line["type"] == "failure"
        return line

    def test_are_of_the_stored_images(self, tmp_path: Path) -> None:
        line = self.refused(tmp_path, training={"augmentation": "standard"})
        assert line["details"]["field"] == "training/augmentation"
        assert "set training.augmentation to none" in line["message"]

    def test_are_of_one_data_set(self, tmp_path: Path) -> None:
        line = self.refused(
            tmp_path,
            arguments={"digest": f"sha256:{'a' * 64}"},
            provenance={"dataset": "others@2", "dataset_digest": f"sha256:{'b' * 64}"},
        )
        assert "rows@1" in line["message"]
        assert "others@2" in line["message"]

    def test_have_no_embedding(self, tmp_path: Path) -> None:
        line = self.refused(tmp_path, {"name": "rkd"})
        assert "which holds logits alone" in line["message"]

    def test_of_views_teach_as_a_teacher_cache_of_those_views(self, tmp_path: Path) -> None:
        cached = {"augmentation": "standard", "seed": 5, "teacher_cache": {"views": 2}}
        own = tmp_path / "own"
        assert run(own, native(own / "teacher"), KD, training=cached)["type"] == "result"
        folders.make_dataset(tmp_path / "data")
        stored = dataset.load(tmp_path / "data")
        views = stored_images.views_of(stored, views=2, seed=5, augmentation="standard")
        size = stored.record.input
        preprocess = Preprocessor("teacher", size, size, torch.device("cpu"))
        with torch.no_grad():
            rows = mlp()(preprocess(torch.from_numpy(views).flatten(0, 1)))
        said = tmp_path / "said"
        (said / "teacher").mkdir(parents=True)
        table = {"train": rows.unflatten(0, (-1, 2))}
        tensorfile.write(said / "teacher" / "predictions.safetensors", table, {})
        arguments = {"dataset": "rows@1", "views": 2, "seed": 5, "augmentation": "standard"}
        choice = folders.network(network="retort/predictions", arguments=arguments)
        line = run(said, choice, KD, training=cached)
        assert line["type"] == "result", line
        assert line["scores"]["teacher"] is None
        assert differ(own, said) < 1e-5

    def test_of_several_views_need_those_views(self, tmp_path: Path) -> None:
        line = self.refused(
            tmp_path,
            arguments={"views": 2, "seed": 5, "augmentation": "flip"},
            training={"augmentation": "flip", "teacher_cache": {"views": 2}},
        )
        assert line["details"]["field"] == "training/seed"
        assert "set it to 5" in line["message"]


def test_a_graph_is_never_a_student(tmp_path: Path) -> None:
    workdir = tmp_path / "job"
    choice = native(workdir / "teacher")
    as_student = folders.network(network="retort/onnx", arguments={})
    line = run(workdir, choice, KD, student=as_student)
    assert line["details"]["field"] == "student/network"
    assert "never trained" in line["message"]
    shutil.rmtree(workdir)
