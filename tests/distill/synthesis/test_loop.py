"""Jobs that invent their images, through the engine: what they read, leave, and go on from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders
from workers.distill.data import catalog as datasets
from workers.distill.data import dataset
from workers.distill.files import tensorfile
from workers.distill.methods.datafree.base import SynthesisBatch
from workers.distill.runtime import signals
from workers.distill.synthesis.synthesizers.base import SynthesisContext

pytestmark = pytest.mark.slow

BUDGET = {
    "steps": 3,
    "batch_size": 6,
    "student_steps": 2,
    "calls_per_epoch": 1,
    "buffer_images": 10,
    "data_scale": None,
}
GENERATOR = {**BUDGET, "latent_size": 8, "width": 4, "warmup_calls": 1}
TRAINING = {"epochs": 3, "batch_size": 5, "checkpoint_seconds": 1000}
METHODS: dict[str, dict[str, Any]] = {
    "noise": {"name": "noise", "synthesis": BUDGET},
    "a stream with an average": {
        "name": "mad",
        "synthesis": {**GENERATOR, "calls_per_epoch": 2},
    },
    "a stream that reuses its latent vectors": {
        "name": "dafl",
        "synthesis": {**GENERATOR, "reuse": "latent"},
    },
    "a generator that lives for some calls": {
        "name": "nayer",
        "code_size": 8,
        "synthesis": GENERATOR,
    },
    "features exchanged in the last step": {
        "name": "spaceshipnet",
        "synthesis": GENERATOR,
    },
    "a new generator for each call": {"name": "cmi", "synthesis": GENERATOR},
    "a generator that learns by fomaml": {
        "name": "fast",
        "synthesis": {**GENERATOR, "restart_epoch": 2},
    },
    "a generator that learns by reptile": {
        "name": "fast",
        "synthesis": {**GENERATOR, "meta": "reptile"},
    },
    "priorities": {"name": "ssdkd", "synthesis": GENERATOR},
    "pixels": {"name": "deepinversion", "synthesis": BUDGET},
}


def prepare(workdir: Path, method: dict[str, Any], **changes: Any) -> Path:
    training = {**TRAINING, **changes.pop("training", {})}
    return folders.prepare(workdir, method=method, training=training, **changes)


def done(path: Path) -> dict[str, Any]:
    code, lines = folders.run_here(path)
    assert code == 0, lines[-1]
    return lines[-1]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> dict[str, Any]:
    return METHODS[request.param]


class TestResume:
    def test_goes_on_exactly_from_anywhere(self, tmp_path: Path, method: dict[str, Any]) -> None:
        whole = prepare(tmp_path / "whole", method)
        expected = done(whole)
        left = prepare(tmp_path / "left", method)
        # Inside a call, before its first and after its last step, and between the student's.
        stops = [2, 1, 3, 2, 4]
        for look in stops:
            code, _ = folders.run_here(left, folders.StopsAt(look))
            assert code == signals.EXIT_CODE
        result = done(left)
        for name in ("student.safetensors", "synthetic/train.safetensors"):
            assert (left.parent / name).read_bytes() == (whole.parent / name).read_bytes()
        for key in ("calls", "steps", "images", "buffer"):
            assert result["synthesis"][key] == expected["synthesis"][key]

    def test_a_checkpoint_inside_a_call_is_one_of_the_same_student_step(
        self, tmp_path: Path
    ) -> None:
        path = prepare(tmp_path, METHODS["priorities"], training={"checkpoint_seconds": 1e-6})
        code, lines = folders.run_here(path, folders.StopsAt(2))
        assert code == signals.EXIT_CODE
        assert {line["step"] for line in folders.of_type(lines, "checkpoint")} == {0}
        assert done(path)["synthesis"]["calls"] == 4


class TestWarmUp:
    @pytest.mark.parametrize(
        ("kind", "first"),
        [
            ("a generator that learns by fomaml", 2),  # counted from 1: ep >= warmup
            ("a generator that lives for some calls", 3),  # ep > warmup
        ],
    )
    def test_uses_the_student_from_the_call_on_that_the_authors_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, first: int
    ) -> None:
        calls: dict[int, set[bool]] = {}
        forward = SynthesisContext.forward

        def watched(context: SynthesisContext, *images: Any, **how: Any) -> SynthesisBatch:
            batch = forward(context, *images, **how)
            if torch.is_grad_enabled():  # not the look at what a call has made
                calls.setdefault(batch.call, set()).add(batch.student is not None)
            return batch

        monkeypatch.setattr(SynthesisContext, "forward", watched)
        method = METHODS[kind]
        method = {**method, "synthesis": {**method["synthesis"], "warmup_calls": 2}}
        done(prepare(tmp_path, method))
        assert calls == {call: {call >= first} for call in range(1, 6)}


class TestWhatIsRead:
    def test_the_training_split_is_never_opened(self, tmp_path: Path) -> None:
        path = prepare(tmp_path, METHODS["priorities"], baseline=True, report=True)
        train = tmp_path / "dataset" / "train.safetensors"
        train.unlink()
        train.mkdir()  # cannot be opened, whoever asks
        result = done(path)
        assert result["training_images_read"] == 0
        assert result["evaluated_on"] == "dataset"
        assert result["scores"]["student"]["samples"] == folders.COUNTS["test"]
        index = json.loads((tmp_path / "report" / "index.json").read_text())
        assert index["training_images_read"] == 0

    def test_a_supervised_method_needs_it(self, tmp_path: Path) -> None:
        path = prepare(tmp_path, {"name": "kd"})
        (tmp_path / "dataset" / "train.safetensors").unlink()
        code, lines = folders.run_here(path)
        assert (code, lines[-1]["code"]) == (1, "bad_dataset")

    def test_says_how_many_images_a_supervised_method_has_read(self, tmp_path: Path) -> None:
        path = prepare(tmp_path, {"name": "kd"}, training={"epochs": 1})
        assert done(path)["training_images_read"] == folders.COUNTS["train"]

    def test_the_student_is_the_same_whatever_it_is_evaluated_on(self, tmp_path: Path) -> None:
        with_data = prepare(tmp_path / "with", METHODS["priorities"])
        without = prepare(tmp_path / "without", METHODS["priorities"])
        for file in (tmp_path / "without" / "dataset").iterdir():
            file.unlink()
        (tmp_path / "without" / "dataset").rmdir()
        judged, unjudged = done(with_data), done(without)
        tensors = [
            tensorfile.read(path.parent / "student.safetensors") for path in (with_data, without)
        ]
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
        assert unjudged["scores"] == {"teacher": None, "student": None, "baseline": None}
        assert unjudged["evaluated_on"] is None
        assert "validation" not in unjudged
        assert judged["validation"]["best_epoch"] in range(1, 4)
        assert judged["best_epoch"] == 3  # the last one is delivered, whichever was best

    def test_the_teacher_stays_as_it_is(self, tmp_path: Path) -> None:
        path = prepare(tmp_path, METHODS["a stream with an average"])
        file = tmp_path / "teacher" / "model.safetensors"
        before = file.read_bytes()
        done(path)
        assert file.read_bytes() == before


class TestBaseline:
    def test_is_the_same_student_on_noise(self, tmp_path: Path) -> None:
        method = {**METHODS["priorities"], "temperature": 7.0}
        result = done(prepare(tmp_path / "one", method, baseline=True))
        noise = {
            "name": "noise",
            "temperature": 7.0,
            "synthesis": {key: BUDGET[key] for key in ("student_steps", "calls_per_epoch")},
        }
        alone = done(prepare(tmp_path / "other", noise))
        assert result["scores"]["baseline"] == {
            **alone["scores"]["student"],
            "agreement": alone["scores"]["student"]["agreement"],
        }


class TestSynthetic:
    def test_the_buffer_is_a_data_set_that_another_job_can_train_on(self, tmp_path: Path) -> None:
        made = prepare(tmp_path / "made", METHODS["priorities"])
        result = done(made)
        stored = dataset.load(made.parent / "synthetic")
        assert sum(stored.record.splits.values()) == result["synthesis"]["buffer"]["images"] == 10
        assert any("synthesized" in note for note in stored.record.notes)
        again = prepare(tmp_path / "again", {"name": "kd"})
        for file in (made.parent / "synthetic").iterdir():
            (again.parent / "dataset" / file.name).write_bytes(file.read_bytes())
        assert done(again)["training_images_read"] == stored.record.splits["train"]

    def test_too_few_images_are_no_data_set(self, tmp_path: Path) -> None:
        budget = {**BUDGET, "batch_size": 2, "buffer_images": 2}
        path = prepare(tmp_path, {"name": "noise", "synthesis": budget}, training={"epochs": 1})
        code, lines = folders.run_here(path)
        assert code == 0, lines[-1]
        # The teacher was hardly trained, which is told too.
        told = folders.of_type(lines, "warning")
        (warning,) = [one for one in told if one["code"] != "teacher_weak"]
        assert (warning["code"], "2 images" in warning["message"]) == ("images_not_kept", True)
        assert not (tmp_path / "synthetic").exists()

    def test_is_left_out_where_it_is_not_wanted(self, tmp_path: Path) -> None:
        method = {"name": "noise", "synthesis": {**BUDGET, "keep_images": False}}
        result = done(prepare(tmp_path, method))
        assert not (tmp_path / "synthetic").exists()
        assert not any("synthetic" in file["path"] for file in result["files"])


class TestBudget:
    def test_the_data_scale_sets_steps_and_buffer(self, tmp_path: Path) -> None:
        wanted = {**GENERATOR, "student_steps": None, "buffer_images": None, "data_scale": 0.25}
        path = prepare(tmp_path, {"name": "ssdkd", "synthesis": wanted})
        result = done(path)
        # A quarter of 41 images: 10, two batches of 5.
        assert result["steps"] == 2 * TRAINING["epochs"]
        assert result["synthesis"]["buffer"]["images"] == 10

    def test_max_steps_counts_the_students_steps(self, tmp_path: Path) -> None:
        result = done(prepare(tmp_path, METHODS["priorities"], training={"max_steps": 3}))
        assert result["steps"] == 3
        assert result["synthesis"]["calls"] == 3  # one to warm up, and one for every two steps

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"training": {"label_noise": 0.1}}, "label_noise"),
            ({"training": {"teacher_cache": {}}}, "teacher_cache"),
            ({"training": {"augmentation": "randaugment"}}, "augmentation"),
            ({"training": {"patience_epochs": 2}}, "patience_epochs"),
            ({"training": {"mixing": {"name": "mixup"}}}, "mixing"),
            ({"training": {"optimizer": {"name": "dot"}}}, "optimizer"),
        ],
    )
    def test_refuses_what_needs_real_images(
        self, tmp_path: Path, changes: dict[str, Any], field: str
    ) -> None:
        code, lines = folders.run_here(prepare(tmp_path, METHODS["priorities"], **changes))
        assert (code, lines[-1]["code"]) == (1, "bad_recipe")
        assert lines[-1]["details"]["field"].startswith(f"training/{field}")

    def test_refuses_a_scale_of_an_unknown_number(self, tmp_path: Path) -> None:
        path = prepare(tmp_path, {"name": "ssdkd"})
        for file in (tmp_path / "dataset").iterdir():
            file.unlink()
        (tmp_path / "dataset").rmdir()
        code, lines = folders.run_here(path)
        assert (code, lines[-1]["code"]) == (1, "bad_recipe")
        assert "original_images" in lines[-1]["message"]

    @pytest.mark.parametrize(
        ("name", "budget"),
        [
            ("ssdkd", {"student_steps": 3}),
            ("fast", {"data_scale": 0.1}),
            ("fast", {"student_steps": None}),
        ],
    )
    def test_refuses_steps_that_are_given_twice_or_not_at_all(
        self, tmp_path: Path, name: str, budget: dict[str, Any]
    ) -> None:
        code, lines = folders.run_here(prepare(tmp_path, {"name": name, "synthesis": budget}))
        assert (code, lines[-1]["code"]) == (1, "bad_recipe")
        assert "student_steps" in lines[-1]["message"]

    def test_refuses_a_loss_that_moves_nothing(self, tmp_path: Path) -> None:
        weights = {"onehot_weight": 0, "balance_weight": 0, "activation_weight": 0}
        path = prepare(tmp_path, {"name": "dafl", **weights, "synthesis": GENERATOR})
        code, lines = folders.run_here(path)
        assert (code, lines[-1]["code"]) == (1, "bad_recipe")
        assert "raise one of them" in lines[-1]["message"]

    def test_refuses_a_group(self, tmp_path: Path) -> None:
        path = prepare(tmp_path, METHODS["noise"])
        recipe = json.loads(path.read_text())
        members = [{"key": key, "recipe": recipe} for key in "ab"]
        path.write_text(json.dumps({"version": 1, "members": members}))
        code, lines = folders.run_here(path)
        assert code == 1
        assert "run it alone" in lines[-1]["message"]


class TestProgress:
    def test_rises_through_synthesis_and_distillation(self, tmp_path: Path) -> None:
        _, lines = folders.run_here(prepare(tmp_path, METHODS["pixels"]))
        shares = [line["progress"] for line in folders.of_type(lines, "progress")]
        assert shares == sorted(shares)
        assert 0 < shares[0] <= shares[-1] < 1

    def test_tells_losses_buffer_and_time_of_every_epoch(self, tmp_path: Path) -> None:
        _, lines = folders.run_here(prepare(tmp_path, METHODS["priorities"]))
        points = [point for line in folders.of_type(lines, "metrics") for point in line["points"]]
        for key in ("synthesis/bn", "buffer/effective_share", "seconds/synthesis"):
            assert [p["epoch"] for p in points if p["key"] == key] == [1, 2, 3], key


DIGITS = {"channels": 1, "height": 8, "width": 8, "mean": [0.305338], "std": [0.376186]}


def convnet(*widths: int) -> dict[str, Any]:
    return {
        "network": "retort/convnet",
        "arguments": {"widths": list(widths)},
        "classes": 10,
        "input": DIGITS,
    }


class TestDigits:
    def test_a_student_learns_digits_that_it_never_saw(self, tmp_path: Path) -> None:
        datasets.DATASETS["digits"].write(tmp_path / "dataset")
        optimizer = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
        training = {"batch_size": 64, "optimizer": optimizer, "schedule": {"name": "cosine"}}

        def carried_out(name: str, **changes: Any) -> dict[str, Any]:
            workdir = tmp_path / name
            (workdir / "teacher").mkdir(parents=True)
            (workdir / "dataset").symlink_to(tmp_path / "dataset")
            if name != "taught":
                weights = workdir / "teacher" / "model.safetensors"
                weights.symlink_to(tmp_path / "taught" / "student.safetensors")
            recipe = {"version": 1, "report": False, "accelerator": "cpu", **changes}
            (workdir / "recipe.json").write_text(json.dumps(recipe))
            return done(workdir / "recipe.json")

        teacher = carried_out(
            "taught",
            student=convnet(16, 32, 64),
            method={"name": "ce"},
            training={**training, "epochs": 8},
        )
        assert teacher["scores"]["student"]["accuracy"] > 0.95
        budget = {
            "steps": 10,
            "batch_size": 64,
            "student_steps": 20,
            "data_scale": None,
            "warmup_calls": 3,
            "buffer_images": 640,
            "latent_size": 64,
            "width": 24,
            "learning_rate": 2e-3,
        }
        weights = {"bn_weight": 1.0, "onehot_weight": 1.0, "temperature": 4.0}
        result = carried_out(
            "ssdkd",
            teacher=convnet(16, 32, 64),
            student=convnet(8, 16, 32),
            method={"name": "ssdkd", **weights, "synthesis": budget},
            training={**training, "epochs": 7},
            baseline=True,
        )
        scores = result["scores"]
        assert scores["student"]["accuracy"] > 0.5
        assert scores["student"]["accuracy"] > scores["baseline"]["accuracy"] + 0.2
