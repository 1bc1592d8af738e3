import contextlib
import errno
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests import waiting
from tests.distill import folders
from workers.distill import errors
from workers.distill.config.result import RunResult
from workers.distill.evaluation import evaluate
from workers.distill.networks import weights
from workers.distill.run import failures
from workers.engine_launcher import EngineLauncher
from workers.engine_process import EngineProcess

SLOW_ENOUGH = {"epochs": 12, "batch_size": 4, "checkpoint_seconds": 0.02}
"""About two seconds of training, so that a signal meets the engine at work."""


@pytest.fixture(scope="module")
def launcher() -> Iterator[EngineLauncher]:
    """Forks the engines, so that torch and its compiler are loaded once for them."""
    preload = ("torch._dynamo", "workers.distill.run.run", "--")
    with contextlib.closing(EngineLauncher(is_warm=True, preload=preload)) as made:
        yield made


def carry_out(
    launcher: EngineLauncher, recipe: Path, stop_by: signal.Signals | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Run an engine as the worker would; return its exit code and lines.

    It is sent the signal after its first checkpoint.
    """
    arguments = [str(recipe), "--workdir", str(recipe.parent)]
    lines: list[dict[str, Any]] = []
    with EngineProcess(
        "workers.distill", arguments, workdir=recipe.parent, launcher=launcher
    ) as engine:
        while not engine.has_ended:
            line = engine.next_report(waiting.PATIENCE_SECONDS)
            if line is None:
                assert engine.has_ended, engine.log_tail()
                continue
            lines.append(line)
            if line["type"] == "checkpoint" and stop_by is not None:
                os.kill(engine.pid, stop_by)
                stop_by = None
        return engine.wait(), lines


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, launcher: EngineLauncher
) -> tuple[Path, list[dict[str, Any]]]:
    """A run with a baseline, from start to end, as the worker would start it."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    recipe = folders.prepare(workdir, baseline=True, training=SLOW_ENOUGH)
    code, lines = carry_out(launcher, recipe)
    assert code == 0, (workdir / "engine.log").read_text()
    return workdir, lines


@pytest.mark.slow
class TestWholeRun:
    def test_ends_with_one_result(self, undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
        _, lines = undisturbed
        assert lines[0]["type"] == "started"
        assert lines[-1]["type"] == "result"
        assert folders.of_type(lines, "failure") == []

    def test_scores_everybody_on_the_test_split(
        self, undisturbed: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        scores = undisturbed[1][-1]["scores"]
        shared = {"accuracy", "accuracy_interval", "ece", "loss", "samples"}
        assert set(scores["teacher"]) == shared
        assert set(scores["student"]) == set(scores["baseline"]) == {*shared, "agreement"}
        assert all(score["samples"] == 20 for score in scores.values())

    def test_reports_the_agreed_curves(
        self, undisturbed: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        points = [
            point for line in folders.of_type(undisturbed[1], "metrics") for point in line["points"]
        ]
        student = {"loss/total", "loss/task", "loss/dkd", "learning_rate"}
        keys = {point["key"] for point in points}
        assert {
            *student,
            "train/accuracy",
            "validation/accuracy",
            "throughput/images_per_second",
            "teacher/validation/accuracy",
            "baseline/loss/total",
            "baseline/loss/task",
            "baseline/validation/accuracy",
        } <= keys
        steps = [point["step"] for point in points if point["key"] == "loss/total"]
        assert steps == sorted(set(steps))

    def test_progress_grows(self, undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
        shares = [line["progress"] for line in folders.of_type(undisturbed[1], "progress")]
        assert shares == sorted(shares)
        assert all(0 < share < 1 for share in shares)

    def test_the_student_can_be_rebuilt_from_its_file_alone(
        self,
        undisturbed: tuple[Path, list[dict[str, Any]]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        workdir, lines = undisturbed
        student, images = workdir / "student.safetensors", workdir / "dataset"
        assert evaluate.main([str(student), "--dataset", str(images)]) == 0
        counted = json.loads(capsys.readouterr().out)
        assert counted["accuracy"] == lines[-1]["scores"]["student"]["accuracy"]
        assert counted["samples"] == 20

    def test_the_header_tells_lineage_but_no_attempt(
        self, undisturbed: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        header = weights.read_header(undisturbed[0] / "student.safetensors")
        assert header["network"] == folders.NETWORK
        assert header["classes"] == ["row 0", "row 1", "row 2"]
        assert header["input"] == folders.INPUT
        assert header["job"] == "job_1"
        assert header["method"]["name"] == "dkd"
        assert "attempt" not in header

    def test_other_outputs_are_plain_json(
        self, undisturbed: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        workdir, lines = undisturbed
        model = json.loads((workdir / "model.json").read_text())
        metrics = json.loads((workdir / "metrics.json").read_text())
        assert model["scores"] == lines[-1]["scores"]
        assert len(metrics["history"]["student"]) == len(metrics["history"]["baseline"]) == 12

    def test_says_how_it_was_evaluated_and_how_to_load_it_without_retort(
        self, undisturbed: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        workdir, lines = undisturbed
        model = json.loads((workdir / "model.json").read_text())
        assert model["preprocessing"]["picture_size"] == [8, 8]
        assert model["needs"] == ["torch", "safetensors"]
        assert (model["needs_retort"], model["library_call"]) == (None, None)
        assert model["training"]["flip"] is False, "as it was, not as it was asked for"
        assert model["latency"] == lines[-1]["latency"]
        medians = {role: one["all_threads"]["p50_ms"] for role, one in model["latency"].items()}
        assert model["latency_ms"] == medians
        assert "def load(" in (workdir / "model.py").read_text()
        assert {"path": "model.py"} in lines[-1]["files"]
        assert lines[-1]["conclusion"].startswith("The student reaches ")

    def test_the_best_epoch_is_the_earliest_of_the_highest_validation_accuracy(
        self, undisturbed: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        workdir, lines = undisturbed
        history = json.loads((workdir / "metrics.json").read_text())["history"]["student"]
        highest = max(entry["validation/accuracy"] for entry in history)
        first = next(e["epoch"] for e in history if e["validation/accuracy"] == highest)
        assert lines[-1]["best_epoch"] == first

    def test_speed_is_measured(self, undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
        result = undisturbed[1][-1]
        # Of the worker, of runs with a report, of other families, of methods with facts or that
        # are balanced, of masks, of images without labels, of several devices, of encoded pictures.
        others = {"shared_with", "report_seconds", "synthesis", "validation", "method"}
        others |= {"federation", "balance", "class_weights", "labels", "kept_epochs", "parallel"}
        others |= {"decode_threads", "scores_by_size"}
        usual = RunResult.model_fields.keys() - others | {"type", "files"}
        assert set(result) | {"warnings"} == usual  # told only where there are any
        assert 0 < result["floor_share"] <= 1
        assert result["flops"]["student"] == result["flops"]["teacher"] > 0
        assert result["parameters"]["student"] == result["parameters"]["teacher"] > 0
        assert result["latency_ms"]["student"] > 0


@pytest.mark.slow
class TestResume:
    def test_a_run_that_is_stopped_and_then_killed_ends_with_the_same_bytes(
        self,
        undisturbed: tuple[Path, list[dict[str, Any]]],
        launcher: EngineLauncher,
        tmp_path: Path,
    ) -> None:
        recipe = folders.prepare(tmp_path, baseline=True, training=SLOW_ENOUGH)
        code, lines = carry_out(launcher, recipe, signal.SIGTERM)
        assert code == 75
        assert lines[-1]["type"] == "checkpoint"
        code, _ = carry_out(launcher, recipe, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (tmp_path / "student.safetensors").exists()
        code, lines = carry_out(launcher, recipe)
        assert code == 0
        assert lines[0]["resumed_from_step"] > 0
        whole = undisturbed[0] / "student.safetensors"
        assert (tmp_path / "student.safetensors").read_bytes() == whole.read_bytes()
        assert lines[-1]["scores"] == undisturbed[1][-1]["scores"]
        curves = (
            json.loads((folder / "metrics.json").read_text())["history"]
            for folder in (tmp_path, undisturbed[0])
        )
        assert next(curves) == next(curves)

    def test_a_signal_during_start_up_leaves_at_once(self, tmp_path: Path) -> None:
        process = folders.start(folders.prepare(tmp_path))
        # The handler stands before torch is imported, which takes seconds.
        wait_for_handler(process.pid)
        process.send_signal(signal.SIGTERM)
        code, lines = folders.finish(process)
        assert code == 75
        assert folders.of_type(lines, "failure") == []


def wait_for_handler(pid: int) -> None:
    """Wait until a process catches SIGTERM."""

    def catches() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1)))

    waiting.until(catches, "it catches SIGTERM", pause_seconds=0.01)


class TestFailures:
    def fails(self, recipe_path: Path) -> dict[str, Any]:
        code, lines = folders.run_here(recipe_path)
        assert code == 1
        assert lines[-1]["type"] == "failure"
        assert lines[-1]["code"] in errors.RUN_CODES
        return lines[-1]

    def test_a_huge_learning_rate_diverges_with_all_terms(self, tmp_path: Path) -> None:
        optimizer = {"learning_rate": 100, "momentum": 0.99}
        recipe = folders.prepare(tmp_path, training={"optimizer": optimizer, "epochs": 20})
        code, lines = folders.run_here(recipe)
        assert code == 1
        failure = lines[-1]
        assert failure["code"] == "diverged"
        assert set(failure["details"]["terms"]) == {"total", "task", "dkd"}
        values = [
            point["value"]
            for line in folders.of_type(lines, "metrics")
            for point in line["points"]
            if point["key"] == "loss/total"
        ]
        assert {"NaN", "Infinity"} & set(map(str, values))
        assert not (tmp_path / "student.safetensors").exists()

    def test_a_teacher_of_other_classes_is_named_with_both_numbers(self, tmp_path: Path) -> None:
        failure = self.fails(folders.prepare(tmp_path, teacher=folders.network(5)))
        assert failure["code"] == "incompatible_networks"
        assert "has 5 classes and the data set has 3" in failure["message"]

    def test_a_student_of_other_classes_is_refused(self, tmp_path: Path) -> None:
        failure = self.fails(folders.prepare(tmp_path, student=folders.network(4)))
        assert failure["code"] == "incompatible_networks"

    def test_an_unknown_network_is_refused(self, tmp_path: Path) -> None:
        unknown = folders.network(network="retort/nothing")
        failure = self.fails(folders.prepare(tmp_path, student=unknown))
        assert failure["code"] == "incompatible_networks"
        assert "retort/nothing" in failure["message"]

    def test_an_unknown_method_is_refused(self, tmp_path: Path) -> None:
        failure = self.fails(folders.prepare(tmp_path, method={"name": "magic"}))
        assert failure["code"] == "bad_recipe"
        assert "'magic'" in failure["message"]

    def test_a_hyperparameter_out_of_bounds_is_named(self, tmp_path: Path) -> None:
        method = {"name": "kd", "temperature": -1}
        failure = self.fails(folders.prepare(tmp_path, method=method))
        assert failure["code"] == "bad_recipe"
        assert "temperature" in failure["message"]
        assert "-1" in failure["message"]

    def test_a_training_that_does_not_fit_the_method_is_refused(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path, training={"mixing": {"name": "mixup"}})
        assert "method dkd needs one true class" in self.fails(recipe)["message"]

    def test_a_recipe_that_is_no_json_is_refused(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path)
        recipe.write_text("{")
        assert self.fails(recipe)["code"] == "bad_recipe"

    def test_a_missing_recipe_is_refused(self, tmp_path: Path) -> None:
        assert self.fails(tmp_path / "recipe.json")["code"] == "bad_recipe"

    def test_a_missing_teacher_is_named(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path)
        (tmp_path / "teacher" / "model.safetensors").unlink()
        assert self.fails(recipe)["code"] == "teacher_load"

    def test_another_networks_weights_are_refused(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path, teacher=folders.network(network="retort/resnet14"))
        failure = self.fails(recipe)
        assert failure["code"] == "teacher_load"
        assert failure["details"]["missing_keys"]

    def test_missing_start_weights_are_named(self, tmp_path: Path) -> None:
        assert self.fails(folders.prepare(tmp_path, initial=True))["code"] == "initial_load"

    def test_a_missing_set_is_named(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path)
        (tmp_path / "dataset" / "dataset.json").unlink()
        assert self.fails(recipe)["code"] == "bad_dataset"

    def test_a_single_training_image_is_refused(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path)
        folders.make_dataset(tmp_path / "dataset", counts={**folders.COUNTS, "train": 1})
        failure = self.fails(recipe)
        assert failure["code"] == "bad_dataset"
        assert "at least 2" in failure["message"]

    def test_a_label_outside_the_classes_is_refused(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path)
        path = tmp_path / "dataset" / "train.safetensors"
        content = safetensors.torch.load_file(path)
        content["labels"] = content["labels"].clone()
        content["labels"][3] = 3
        safetensors.torch.save_file(content, path)
        assert self.fails(recipe)["code"] == "bad_dataset"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
    def test_cuda_is_refused_where_there_is_none(self, tmp_path: Path) -> None:
        failure = self.fails(folders.prepare(tmp_path, accelerator="cuda"))
        assert (failure["code"], failure["retryable"]) == ("worker_failed", True)
        assert failure["details"] == {"fault": "no_device"}
        assert "no CUDA device" in failure["message"]


class TestTranslate:
    @pytest.mark.parametrize(
        ("error", "fault"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), "no_disk"),
            (OSError(errno.EIO, "Input/output error"), "disk_failed"),
            (RuntimeError("CUDA error: no CUDA-capable device is detected"), "no_device"),
        ],
    )
    def test_a_fault_of_the_machine(self, error: Exception, fault: str) -> None:
        failure = failures.translate(error)
        assert (failure.code, failure.retryable) == ("worker_failed", True)
        assert failure.details == {"fault": fault}

    def test_a_missing_file_is_no_fault_of_the_machine(self) -> None:
        error = FileNotFoundError(errno.ENOENT, "No such file")
        assert failures.translate(error).code == "internal_error"

    def test_memory_of_the_device(self) -> None:
        failure = failures.translate(torch.OutOfMemoryError("CUDA out of memory."), batch_size=512)
        assert failure.code == "out_of_memory"
        assert "batch_size 512" in failure.message

    @pytest.mark.parametrize(
        "error",
        [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 10 bytes")],
    )
    def test_memory_of_the_machine(self, error: Exception) -> None:
        failure = failures.translate(error)
        assert failure.code == "host_out_of_memory"
        assert failure.retryable

    def test_what_nobody_foresaw(self) -> None:
        failure = failures.translate(KeyError("weights"))
        assert failure.code == "internal_error"
        assert "KeyError" in failure.message

    def test_codes_stay_in_the_closed_list(self) -> None:
        refused = failures.translate(errors.UploadRefused("unreadable", "damaged"))
        assert refused.code in errors.RUN_CODES


class TestVariants:
    def test_a_method_without_a_teacher_needs_none(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path, teacher=None, method={"name": "ce"}, baseline=True)
        code, lines = folders.run_here(recipe)
        assert code == 0
        result = lines[-1]
        assert result["scores"]["teacher"] is None
        assert "agreement" not in result["scores"]["student"]
        # Plain training is its own baseline, and is not paid for twice.
        assert result["scores"]["baseline"] == result["scores"]["student"]
        assert lines[0]["phases"] == ["student"]

    @pytest.mark.slow
    def test_the_baseline_is_the_same_whatever_the_method(self, tmp_path: Path) -> None:
        results = []
        for name in ("kd", "dkd"):
            recipe = folders.prepare(tmp_path / name, method={"name": name}, baseline=True)
            code, lines = folders.run_here(recipe)
            assert code == 0
            results.append(lines[-1]["scores"]["baseline"])
        assert results[0] == results[1]
        alone = folders.prepare(tmp_path / "ce", method={"name": "ce"})
        _, lines = folders.run_here(alone)
        assert lines[-1]["scores"]["student"] == results[0]

    def test_other_epochs_are_kept_as_whole_students(self, tmp_path: Path) -> None:
        training = {"epochs": 3, "keep_best_epochs": 3}
        recipe = folders.prepare(tmp_path, method={"name": "kd"}, training=training)
        code, lines = folders.run_here(recipe)
        assert code == 0
        result, curve = lines[-1], []
        for line in json.loads((tmp_path / "metrics.json").read_text())["history"]["student"]:
            curve.append(line["validation/accuracy"])
        expected = sorted(range(1, 4), key=lambda epoch: (-curve[epoch - 1], epoch))
        assert [one["epoch"] for one in result["kept_epochs"]] == expected
        assert [one["score"] for one in result["kept_epochs"]] == sorted(curve, reverse=True)
        paths = [one["path"] for one in result["kept_epochs"]]
        assert paths == [None, *(f"epochs/epoch-{epoch:04d}.safetensors" for epoch in expected[1:])]
        assert {path for path in paths if path} <= {file["path"] for file in result["files"]}
        student, header = weights.rebuild(tmp_path / "student.safetensors")
        for path in paths[1:]:
            other, its_header = weights.rebuild(tmp_path / path)
            assert its_header == header
            assert not torch.equal(
                other.state_dict()["fc.weight"], student.state_dict()["fc.weight"]
            )
        # What the student is does not depend on what else is kept.
        alone = folders.prepare(tmp_path / "alone", method={"name": "kd"}, training={"epochs": 3})
        assert folders.run_here(alone)[0] == 0
        found = safetensors.torch.load_file(tmp_path / "alone" / "student.safetensors")
        assert torch.equal(found["fc.weight"], student.state_dict()["fc.weight"])

    def test_start_weights_are_used(self, tmp_path: Path) -> None:
        training = {"epochs": 1, "optimizer": {"learning_rate": 1e-12, "weight_decay": 0}}
        recipe = folders.prepare(tmp_path, initial=True, training=training)
        (tmp_path / "initial").mkdir()
        start = tmp_path / "teacher" / "model.safetensors"
        (tmp_path / "initial" / "model.safetensors").write_bytes(start.read_bytes())
        assert folders.run_here(recipe)[0] == 0
        before = safetensors.torch.load_file(start)["fc.weight"]
        after = safetensors.torch.load_file(tmp_path / "student.safetensors")["fc.weight"]
        assert torch.allclose(before, after, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_other_settings_run_through(self, tmp_path: Path, precision: str) -> None:
        training = {
            "precision": precision,
            "augmentation": "none",
            "clip_norm": 1.0,
            "optimizer": {"name": "adamw"},
            "schedule": {"name": "cosine", "warmup_epochs": 1},
            "evaluate_every_epochs": 2,
            "batch_size": 10,  # 41 images: the last one joins the batch before it
        }
        code, lines = folders.run_here(folders.prepare(tmp_path, training=training))
        assert code == 0
        assert lines[0]["precision"] == precision
        assert lines[0]["steps"] == 12
        assert math.isfinite(lines[-1]["scores"]["student"]["loss"])
