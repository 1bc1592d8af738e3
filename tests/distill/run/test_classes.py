"""The order of a teacher's classes is the data set's, and a teacher that knows nothing is named."""

from pathlib import Path
from typing import Any

import safetensors.torch

from tests.distill import folders

ROWS = ["row 0", "row 1", "row 2"]
NOT_TRAINED = {"epochs": 1, "optimizer": {"learning_rate": 1e-12, "weight_decay": 0}}


def warnings_of(lines: list[dict[str, object]]) -> dict[object, object]:
    return {line["code"]: line["message"] for line in folders.of_type(lines, "warning")}


def turned(path: Path) -> None:
    """Let the logits of a file of weights stand in the opposite order."""
    state = safetensors.torch.load_file(path)
    for key in ("fc.weight", "fc.bias"):
        state[key] = state[key].flip(0).contiguous()
    safetensors.torch.save_file(state, path)


class TestTeacher:
    def test_in_another_order_scores_the_same(self, tmp_path: Path) -> None:
        scores: list[dict[str, Any]] = []
        for names in (ROWS, ROWS[::-1]):
            folder = tmp_path / str(len(scores))
            folder.mkdir()
            recipe = folders.prepare(
                folder,
                teacher=folders.network(class_names=names),
                method={"name": "kd"},
                training={"epochs": 1},
            )
            if names != ROWS:
                turned(folder / "teacher" / "model.safetensors")
            code, lines = folders.run_here(recipe)
            assert code == 0
            told = warnings_of(lines)
            assert ("classes_reordered" in told) is (names != ROWS)
            # What was told is part of the result as well.
            repeated = {told["code"] for told in lines[-1].get("warnings", [])}
            assert repeated == set(told)
            scores.append(lines[-1]["scores"])
        assert scores[0]["teacher"] == scores[1]["teacher"]
        assert scores[0]["student"] == scores[1]["student"]

    def test_that_knows_nothing_is_named(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path, method={"name": "kd"}, training={"epochs": 1})
        _, lines = folders.run_here(recipe)
        assert "no more than the 33.3% of always giving" in str(warnings_of(lines)["teacher_weak"])
        assert lines[-1]["warnings"][0]["code"] == "teacher_weak"


class TestStart:
    def test_weights_are_put_in_order_too(self, tmp_path: Path) -> None:
        recipe = folders.prepare(
            tmp_path,
            initial=True,
            student=folders.network(class_names=ROWS[::-1]),
            training=NOT_TRAINED,
        )
        (tmp_path / "initial").mkdir()
        start = tmp_path / "teacher" / "model.safetensors"
        (tmp_path / "initial" / "model.safetensors").write_bytes(start.read_bytes())
        _, lines = folders.run_here(recipe)
        assert "classes_reordered" in warnings_of(lines)
        before = safetensors.torch.load_file(start)["fc.weight"]
        after = safetensors.torch.load_file(tmp_path / "student.safetensors")["fc.weight"]
        assert (before.flip(0) - after).abs().max() < 1e-6
