import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from workers.distill.config.job import JobConfig
from workers.distill.config.result import FederationSummary
from workers.distill.networks import weights
from workers.distill.runtime.signals import EXIT_CODE

MLP = {**folders.network(), "network": "retort/mlp"}
COUNTS = {"train": 60, "validation": 12, "test": 20}


def prepare(
    folder: Path, name: str, federation: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Write a working folder of a federated job."""
    choices = changes.pop("choices", {})
    settings = {"clients": 3, "rounds": 2, "partition": {"min_size": 2}, **(federation or {})}
    changes.setdefault("teacher", None)
    changes.setdefault("student", MLP)
    training = {"batch_size": 8, "schedule": {"name": "constant"}, **changes.pop("training", {})}
    recipe = folders.prepare(
        folder, method={"name": name, "federation": settings, **choices}, **changes
    )
    folders.make_dataset(folder / "dataset", counts=COUNTS)
    content = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**content, "training": training}))
    return recipe


def run(folder: Path, name: str, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Carry a job out, and return its result and all lines."""
    code, lines = folders.run_here(prepare(folder, name, **changes))
    assert code == 0, lines[-1]
    return lines[-1], lines


def refusal(folder: Path, name: str, **changes: Any) -> tuple[str, str]:
    """Return the field and the sentence with which a job fails."""
    code, lines = folders.run_here(prepare(folder, name, **changes))
    assert code == 1
    return lines[-1]["details"]["field"], lines[-1]["message"]


class TestJob:
    def test_a_round_is_a_step_and_an_epoch(self, tmp_path: Path) -> None:
        result, lines = run(tmp_path, "fedavg")
        assert (result["steps"], result["epochs"]) == (2, 2)
        summary = FederationSummary.model_validate(result["federation"])
        assert (summary.rounds, summary.clients, summary.delivered) == (2, 3, "server")
        assert summary.client_accuracy is not None
        assert [one.replies for one in summary.by_client] == [2, 2, 2]
        assert sum(one.images or 0 for one in summary.by_client) == COUNTS["train"]
        keys = {
            point["key"] for line in folders.of_type(lines, "metrics") for point in line["points"]
        }
        assert {"federation/client_accuracy_mean", "federation/bytes_up", "loss/task"} <= keys

    def test_the_partition_is_written_with_its_digest(self, tmp_path: Path) -> None:
        import hashlib

        result, _ = run(tmp_path, "dsfl", federation={"open_images": 9})
        text = (tmp_path / "partition.json").read_text().rstrip("\n")
        assert {"path": "partition.json"} in result["files"]
        assert hashlib.sha256(text.encode()).hexdigest() == result["federation"]["partition_sha256"]
        parts = json.loads(text)
        assert len(parts["open_set"]) == result["federation"]["open_images"] == 9
        assert sorted(sum(parts["clients"], parts["open_set"])) == list(range(COUNTS["train"]))

    def test_the_best_client_becomes_the_student(self, tmp_path: Path) -> None:
        result, _ = run(tmp_path, "fd")
        assert result["federation"]["delivered"] in {"client-000", "client-001", "client-002"}
        network, _ = weights.rebuild(tmp_path / "student.safetensors")
        assert network.reference == "retort/mlp"

    def test_centralised_training_has_the_images_of_all(self, tmp_path: Path) -> None:
        result, _ = run(tmp_path, "centralised", federation={"open_images": 10})
        (only,) = result["federation"]["by_client"]
        assert only["images"] == COUNTS["train"] - 10

    def test_the_baseline_is_local_training_on_the_same_images(self, tmp_path: Path) -> None:
        result, lines = run(tmp_path, "dsfl", baseline=True)
        assert result["scores"]["baseline"]["samples"] == COUNTS["test"]
        (started,) = folders.of_type(lines, "started")
        assert started["phases"] == ["student", "baseline"]

    def test_what_was_chosen_and_what_nobody_can_learn_is_told(self, tmp_path: Path) -> None:
        result, lines = run(
            tmp_path,
            "fedavg",
            federation={
                "clients": 2,
                "engine": "vmap",
                # The class of an image is its number modulo 3.
                "partition": {"kind": "given", "indices": [[0, 1, 3, 4], [6, 7, 9, 10]]},
            },
            student=folders.network(),
        )
        warnings = {line["code"]: line["message"] for line in folders.of_type(lines, "warning")}
        assert warnings["labels_without_holder"] == (
            "no client has images of row 2: nobody can learn them"
        )
        assert "has batch norms" in warnings["not_vectorised"]
        summary = result["federation"]
        assert summary["labels_without_holder"] == ["row 2"]
        assert summary["engines"] == {"loop": 2}
        assert summary["not_vectorised"] == [
            warnings["not_vectorised"].removeprefix("clients are trained one after the other: ")
        ]

    def test_epsilon_is_told(self, tmp_path: Path) -> None:
        result, _ = run(tmp_path, "fd", federation={"privacy": {"noise_multiplier": 4.0}})
        assert 0 < result["federation"]["epsilon"] < 10


class TestResume:
    @pytest.mark.parametrize("name", ["fedavg", "dsfl"])
    def test_a_job_stopped_inside_a_round_ends_with_the_same_bytes(
        self, tmp_path: Path, name: str
    ) -> None:
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        settings = {"engine": "loop"}
        run(whole, name, federation=settings)
        recipe = prepare(parts, name, federation=settings)
        # Units: the start, three who receive, then the clients of the first round.
        code, _ = folders.run_here(recipe, folders.StopsAt(6))
        assert code == EXIT_CODE
        code, lines = folders.run_here(recipe)
        assert code == 0
        (started,) = folders.of_type(lines, "started")
        assert started["resumed_from_step"] == 0
        one, other = ((folder / "student.safetensors").read_bytes() for folder in (whole, parts))
        assert one == other
        first, second = (
            json.loads((folder / "metrics.json").read_text()) for folder in (whole, parts)
        )
        assert first["history"] == second["history"]
        assert first["result"]["federation"] == second["result"]["federation"]

    @pytest.mark.slow
    def test_a_job_killed_inside_a_round_ends_with_the_same_bytes(self, tmp_path: Path) -> None:
        """A real engine, and a real kill, behind the third checkpoint: of a client's work."""
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        # Each client trains for a while, so that the kill comes before the end of the round.
        settings = {"engine": "loop", "local_epochs": 30}
        training = {"checkpoint_seconds": 0.001}
        _, undisturbed = run(whole, "fd", federation=settings, training=training)

        def killed_inside() -> bool:
            shutil.rmtree(parts, ignore_errors=True)
            recipe = prepare(parts, "fd", federation=settings, training=training)
            process = folders.start(recipe)
            assert process.stdout is not None
            checkpoints = 0
            for line in process.stdout:
                checkpoints += json.loads(line)["type"] == "checkpoint"
                if checkpoints == 3:
                    break
            process.kill()
            folders.finish(process)
            code, lines = folders.run_here(recipe)
            assert code == 0
            left, all_units = (
                len(folders.of_type(told, "checkpoint")) for told in (lines, undisturbed)
            )
            # Where this process was not served for a while, the round may have ended before.
            (started,) = folders.of_type(lines, "started")
            return started["resumed_from_step"] == 0 and left < all_units

        assert any(killed_inside() for _ in range(5)), "no kill met a round"
        one, other = ((folder / "student.safetensors").read_bytes() for folder in (whole, parts))
        assert one == other


class TestBadInput:
    def test_an_alpha_too_small_for_a_partition(self, tmp_path: Path) -> None:
        field, message = refusal(
            tmp_path,
            "fedavg",
            federation={"clients": 6, "partition": {"alpha": 1e-5, "min_size": 9, "tries": 5}},
        )
        assert field == "method/federation/partition/alpha"
        assert message.startswith("no partition with alpha 1e-05 gives each of 6 clients 9 of 60")

    def test_min_clients_above_the_clients(self, tmp_path: Path) -> None:
        field, message = refusal(tmp_path, "fd", federation={"min_clients": 4})
        assert field == "method/federation/min_clients"
        assert message.startswith("min_clients 4 is more than the 3 clients of a round")

    def test_rounds_and_epochs_that_differ(self, tmp_path: Path) -> None:
        field, message = refusal(tmp_path, "fd", training={"epochs": 7})
        assert field == "training/epochs"
        assert "federation.rounds 2 differs from epochs 7" in message

    def test_a_network_that_cannot_be_averaged(self, tmp_path: Path) -> None:
        field, _ = refusal(
            tmp_path, "fedavg", federation={"networks": [{"network": "retort/resnet8"}]}
        )
        assert field == "method/federation/networks"

    def test_no_client_with_the_students_network(self, tmp_path: Path) -> None:
        field, message = refusal(
            tmp_path, "fd", federation={"networks": [{"network": "retort/resnet8"}]}
        )
        assert field == "method/federation/networks"
        assert "student's network" in message


class TestConfig:
    def test_rounds_place_the_milestones(self) -> None:
        config = JobConfig.model_validate(
            {
                "student": MLP,
                "method": {"name": "fd", "federation": {"rounds": 100}},
                "training": {"schedule": {"name": "step"}},
            }
        )
        assert config.training.epochs == 100
        assert config.training.schedule.milestones == [50, 75, 90]  # type: ignore[union-attr]  # a step schedule
