"""Jobs whose teacher and student have no classifier, with labels for the scores and without."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distill import folders, graphs
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.evaluation import evaluate
from workers.distill.networks import catalog, weights

BACKBONE = folders.network(0)
SMALL = folders.network(0, network="retort/convnet", arguments={"widths": [4, 8]})


def prepare(workdir: Path, *, labelled: tuple[str, ...] | None = None, **changes: Any) -> Path:
    """Write a job for a backbone; `labelled` are the splits with labels, None: all."""
    recipe = folders.prepare(
        workdir,
        **{
            "task": "embedding",
            "teacher": BACKBONE,
            "student": SMALL,
            "method": {"name": "embedkd"},
            "training": {"epochs": 2, **changes.pop("training", {})},
            **changes,
        },
    )
    if labelled is not None:
        record = dataset.DatasetRecord(
            classes=[f"row {number}" for number in range(3)] if labelled else [],
            splits=folders.COUNTS,
            input=Input.model_validate(folders.INPUT),
            labelled={name: folders.COUNTS[name] * (name in labelled) for name in folders.COUNTS},
        )
        splits = {n: folders.images(c, 3, len(n)) for n, c in folders.COUNTS.items()}
        for name, (_, labels) in splits.items():
            if name not in labelled:
                labels.fill_(dataset.UNLABELLED)
        for file in (workdir / "dataset").iterdir():
            file.unlink()
        dataset.write(workdir / "dataset", record, splits)
    return recipe


def run(recipe: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the result, and the messages of the warnings by code."""
    code, lines = folders.run_here(recipe)
    assert code == 0, lines[-1]
    told = {line["code"]: line["message"] for line in folders.of_type(lines, "warning")}
    return lines[-1], told


class TestLabelled:
    def test_scores_teacher_student_and_the_student_before_training(self, tmp_path: Path) -> None:
        result, told = run(prepare(tmp_path, baseline=True))
        assert told == {}
        scores = result["scores"]
        assert set(scores["student"]) - set(scores["teacher"]) == {
            "cka",
            "cosine",
            "shared_neighbours",
        }
        for role in ("teacher", "student", "baseline"):
            assert scores[role]["reference_images"] == 41
            assert 0 <= scores[role]["knn_interval"][0] <= scores[role]["knn"] <= 1
            assert 0.5 < scores[role]["linear_probe"] <= 1  # rows are easy to tell apart
        # Widths differ, so no angle is there between the embeddings.
        assert scores["student"]["cosine"] is None
        assert scores["student"]["cka"] != scores["baseline"]["cka"]
        assert "before training" in result["conclusion"]
        # The file alone has the same scores, but for those beside a teacher.
        file, images = tmp_path / "student.safetensors", tmp_path / "dataset"
        again = evaluate.evaluate_file(file, images, "test")
        assert {key: again[key] for key in scores["teacher"]} == {
            key: scores["student"][key] for key in scores["teacher"]
        }
        history = json.loads((tmp_path / "metrics.json").read_text())["history"]
        assert list(history) == ["student"]
        assert {"validation/knn", "validation/cka", "loss/embed"} <= set(history["student"][0])

    @pytest.mark.slow  # another process that loads torch
    def test_delivers_a_file_that_answers_with_embeddings_outside(self, tmp_path: Path) -> None:
        run(prepare(tmp_path))
        (tmp_path / "student.safetensors").rename(tmp_path / "model.safetensors")
        (tmp_path / "model.json").rename(tmp_path / "config.json")
        program = (
            "import model, torch\n"
            "network, config = model.load()\n"
            "print(list(network(torch.zeros(2, 1, 8, 8)).shape), config['classes'])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=folders.ENVIRONMENT | {"PYTHONPATH": ""},
        )
        assert done.stdout == "[2, 8] []\n", done.stderr
        network, header = weights.rebuild(tmp_path / "model.safetensors")
        assert (header["task"], network.task, network.classes) == ("embedding", "embedding", 0)

    def test_a_classifier_teaches_by_its_embedding(self, tmp_path: Path) -> None:
        result, told = run(prepare(tmp_path, teacher=folders.network()))
        assert list(told) == ["classifier_not_used"]
        assert result["scores"]["teacher"]["knn"] == 1

    def test_the_baseline_is_the_student_as_it_started(self, tmp_path: Path) -> None:
        start = folders.network(0, class_names=["a", "b", "c"])
        recipe = prepare(
            tmp_path,
            student=start,
            initial=True,
            baseline=True,
            # So small a rate leaves it where it was.
            training={"optimizer": {"name": "sgd", "learning_rate": 1e-12, "weight_decay": 0}},
        )
        folders.teacher(tmp_path / "initial")  # a classifier of three classes
        result, told = run(recipe)
        assert set(told) == {"classifier_not_used"}
        whole = load_file(tmp_path / "initial" / "model.safetensors")
        delivered = load_file(tmp_path / "student.safetensors")
        assert set(whole) - set(delivered) == {"fc.weight", "fc.bias"}
        assert torch.allclose(delivered["conv1.weight"], whole["conv1.weight"], atol=1e-8)
        student, baseline = result["scores"]["student"], result["scores"]["baseline"]
        assert student["knn"] == baseline["knn"]
        # Rows that are easy to tell apart are so to any weights; this likeness is to these alone.
        # The statistics of the batch norms have moved a little.
        assert student["cka"] == pytest.approx(baseline["cka"], abs=0.03)


class TestUnlabelled:
    def test_is_scored_by_the_neighbours_it_shares_with_its_teacher(self, tmp_path: Path) -> None:
        result, told = run(prepare(tmp_path, labelled=(), baseline=True, report=True))
        assert list(told) == ["scored_by_teacher"]
        assert "nearest by the teacher" in told["scored_by_teacher"]
        scores = result["scores"]
        assert scores["teacher"]["knn"] == 1
        assert scores["student"]["knn"] == scores["student"]["shared_neighbours"] < 1
        assert scores["student"]["linear_probe"] is scores["student"]["knn_interval"] is None
        assert result["labels"]["scored_by"] == {"validation": "teacher", "test": "teacher"}
        assert result["conclusion"].startswith("Of the nearest images of a test image, ")
        assert "untrained" in result["conclusion"]

    def test_neighbours_are_of_the_split_where_no_training_image_has_a_label(
        self, tmp_path: Path
    ) -> None:
        result, told = run(prepare(tmp_path, labelled=("test",)))
        assert set(told) == {"scored_by_teacher", "no_labelled_references"}
        student = result["scores"]["student"]
        assert student["reference_images"] == 0
        assert student["linear_probe"] is None
        assert student["knn_interval"][0] < student["knn_interval"][1]


class TestClassifierFromABackbone:
    def test_starts_with_its_weights_and_a_classifier_of_its_own(self, tmp_path: Path) -> None:
        recipe = prepare(
            tmp_path,
            task="classification",
            teacher=None,
            student=folders.network(class_names=[]),
            initial=True,
            method={"name": "linear_probe"},
        )
        folders.teacher(tmp_path / "initial", 0)
        _, told = run(recipe)
        assert set(told) == {"start_without_classifier"}
        start = load_file(tmp_path / "initial" / "model.safetensors")
        delivered = load_file(tmp_path / "student.safetensors")
        assert all(torch.equal(delivered[key], start[key]) for key in start if "weight" in key)
        assert delivered["fc.weight"].shape == (3, 64)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"method": {"name": "kd"}}, "a backbone has no logits or labels to learn from"),
            (
                {"method": {"name": "mmd", "compare": "logits"}},
                "method mmd with compare logits compares logits, which a backbone has none of",
            ),
            ({"student": folders.network()}, "student.classes is 3; set it to 0"),
            (
                {"task": "classification", "student": folders.network()},
                "the teacher retort/resnet8 has no classifier, and the task is classification",
            ),
            ({"training": {"label_noise": 0.1}}, "got label_noise 0.1; set it to 0"),
            ({"training": {"pseudo_labels": {"threshold": 0}}}, "leave pseudo_labels out"),
            (
                {"method": {"name": "embedkd", "projector": "none"}},
                "student's has 8 numbers, the teacher's 64; choose projector linear",
            ),
        ],
    )
    def test_what_a_backbone_cannot_do(
        self, tmp_path: Path, changes: dict[str, Any], sentence: str
    ) -> None:
        code, lines = folders.run_here(prepare(tmp_path, **changes))
        assert code == 1
        assert sentence in lines[-1]["message"]

    def test_several_backbones_together(self, tmp_path: Path) -> None:
        recipe = prepare(tmp_path, teacher=None, teachers=[BACKBONE, BACKBONE])
        for place in (1, 2):
            folders.teacher(tmp_path / f"teacher-{place}", 0)
        code, lines = folders.run_here(recipe)
        assert code == 1
        assert lines[-1]["details"]["field"] == "teachers"
        assert "several teachers have logits in common, and no features" in lines[-1]["message"]
        assert lines[-1]["message"].endswith("; name one of them as teacher")

    def test_maps_of_a_graph_without_classes(self, tmp_path: Path) -> None:
        arguments: dict[str, Any] = {"widths": [12, 6]}
        mlp = catalog.build(
            "retort/mlp", classes=3, channels=1, height=8, width=8, arguments=arguments
        )
        prepare(tmp_path, teacher=None)
        made = graphs.of_mlp(mlp, outputs=("pooled",))
        graphs.save(made, tmp_path / "teacher" / "model.onnx")
        choice = folders.network(0, network="retort/onnx", arguments={"output": "pooled"})
        path = tmp_path / "recipe.json"
        for method, code in (("fitnet", 1), ("embedkd", 0)):
            changed = {"teacher": choice, "method": {"name": method}}
            path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
            ended, lines = folders.run_here(path)
            assert ended == code, lines[-1]
            if code:
                assert lines[-1]["details"]["field"] == "teacher"
                assert lines[-1]["message"].endswith(
                    "the teacher retort/onnx shows none (of a graph without classes, nothing but "
                    "its embedding is read); choose another teacher, or a method that compares "
                    "embeddings"
                )
