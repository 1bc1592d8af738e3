"""Students side by side: each ends as it would alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from workers.distill.config import grouping
from workers.distill.run import run
from workers.distill.runtime import events, signals
from workers.distill.training import teachers
from workers.distill.training.progress import ProgressReporter

TRAINING = {"epochs": 3, "batch_size": 8, "checkpoint_seconds": 1000}
MEMBERS: dict[str, dict[str, Any]] = {
    "kd": {"method": {"name": "kd", "balance": 0.01}},
    "dkd": {
        "method": {"name": "dkd", "warmup_epochs": 2},
        "training": {"optimizer": {"name": "adamw"}, "ema_decay": 0.9},
    },
    "ce": {"method": {"name": "ce"}, "training": {"schedule": {"name": "constant"}}},
}


def recipe_of(**changes: Any) -> dict[str, Any]:
    """Return the recipe of one member."""
    return {
        "version": 1,
        "task": "classification",
        "teacher": folders.network(),
        "student": folders.network(),
        "method": {"name": "kd"},
        "accelerator": "cpu",
        "report": False,
        "provenance": {"teacher": "rows@1"},
        **changes,
        "training": {**TRAINING, **changes.get("training", {})},
    }


def test_a_method_that_synthesizes_its_images_shares_nothing() -> None:
    alone = recipe_of(method={"name": "noise", "synthesis": {"steps": 1}})
    assert grouping.refusal({"noise": alone}) is None
    refused = grouping.refusal({"kd": recipe_of(), "noise": alone})
    assert refused == "member noise synthesizes its own images; run it alone"


def test_of_such_a_method_the_engine_knows_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "group.json"
    members = [
        {"key": key, "recipe": recipe_of(method={"name": key})} for key in ("kd", "magic", "dafl")
    ]
    path.write_text(json.dumps({"version": 1, "members": members}))
    code, lines = folders.run_here(path)
    assert (code, lines[-1]["code"]) == (1, "bad_recipe")
    assert "member dafl synthesizes its own images; run it alone" in lines[-1]["message"]


def prepare(workdir: Path, members: dict[str, dict[str, Any]]) -> Path:
    """Write a group's folder, and return the path of its file."""
    folders.make_dataset(workdir / "dataset")
    folders.teacher(workdir / "teacher")
    content = {
        "version": 1,
        "members": [
            {"key": key, "recipe": recipe_of(**changes)} for key, changes in members.items()
        ],
    }
    path = workdir / "group.json"
    path.write_text(json.dumps(content))
    return path


def run_alone(workdir: Path, **changes: Any) -> bytes:
    """Carry one recipe out alone, and return its student."""
    folders.make_dataset(workdir / "dataset")
    folders.teacher(workdir / "teacher")
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe_of(**changes)))
    code, lines = folders.run_here(path)
    assert code == 0, lines[-1]
    return (workdir / "student.safetensors").read_bytes()


Alone = Callable[..., bytes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Return what makes a student alone; the same recipe is carried out once."""
    made: dict[str, bytes] = {}

    def student(**changes: Any) -> bytes:
        name = json.dumps(changes, sort_keys=True)
        if name not in made:
            made[name] = run_alone(tmp_path_factory.mktemp("alone"), **changes)
        return made[name]

    return student


def student_of(workdir: Path, key: str) -> bytes:
    return (workdir / "members" / key / "student.safetensors").read_bytes()


def last_lines(lines: list[dict[str, Any]]) -> dict[str | None, dict[str, Any]]:
    """Return the last line of each member."""
    return {line.get("member"): line for line in lines}


def interrupted(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> tuple[int, list[dict[str, Any]]]:
    """Run until one member has made a step, and ask the engine to stop there."""
    stop = signals.Stop()
    after_step = ProgressReporter.after_step

    def asks(self: ProgressReporter, course: Any, moment: Any, images: int) -> None:
        after_step(self, course, moment, images)
        if moment.step == step:
            stop._request(15, None)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReporter, "after_step", asks)
        with (path.parent / "lines.jsonl").open("wb") as file:
            code = run.execute(path, path.parent, events.Reporter(file.fileno()), stop)
    text = (path.parent / "lines.jsonl").read_text()
    return code, [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
class TestGroup:
    def test_each_student_is_the_one_it_would_be_alone(self, tmp_path: Path, alone: Alone) -> None:
        code, lines = folders.run_here(prepare(tmp_path / "group", MEMBERS))
        assert code == 0, lines[-1]
        for key, changes in MEMBERS.items():
            assert student_of(tmp_path / "group", key) == alone(**changes), key

    def test_every_line_carries_its_member(self, tmp_path: Path) -> None:
        code, lines = folders.run_here(prepare(tmp_path, MEMBERS))
        assert code == 0
        for key in MEMBERS:
            own = [line for line in lines if line["member"] == key]
            assert own[0]["type"] == "started"
            assert own[-1]["type"] == "result"
            assert 0 < own[-1]["floor_share"] <= 1
            scored = json.loads((tmp_path / "members" / key / "metrics.json").read_text())
            assert scored["result"]["scores"] == own[-1]["scores"]

    def test_a_group_of_one_is_a_run_alone(self, tmp_path: Path, alone: Alone) -> None:
        code, _ = folders.run_here(prepare(tmp_path / "group", {"kd": MEMBERS["kd"]}))
        assert code == 0
        assert student_of(tmp_path / "group", "kd") == alone(**MEMBERS["kd"])

    def test_one_that_wants_maps_changes_nothing_for_the_others(
        self, tmp_path: Path, alone: Alone
    ) -> None:
        training = {"augmentation": "none", "epochs": 2}  # what logits say is then remembered
        members: dict[str, dict[str, Any]] = {
            "kd": {"method": {"name": "kd"}, "training": training},
            "rkd": {"method": {"name": "rkd"}, "training": training},
            "at": {"method": {"name": "at"}, "training": training},
        }
        assert folders.run_here(prepare(tmp_path / "group", members))[0] == 0
        for key, changes in members.items():
            assert student_of(tmp_path / "group", key) == alone(**changes), key


@pytest.mark.slow
class TestInterruption:
    @pytest.mark.parametrize("step", [4, 10])
    def test_a_stopped_group_ends_with_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, alone: Alone
    ) -> None:
        path = prepare(tmp_path, MEMBERS)
        code, lines = interrupted(path, monkeypatch, step)
        assert code == signals.EXIT_CODE
        saved = folders.of_type(lines, "checkpoint")
        assert [(line["member"], line["step"]) for line in saved] == [
            (key, step) for key in MEMBERS
        ]
        code, lines = folders.run_here(path)
        assert code == 0
        assert {line["resumed_from_step"] for line in folders.of_type(lines, "started")} == {step}
        for key, changes in MEMBERS.items():
            assert student_of(tmp_path, key) == alone(**changes), key

    def test_a_member_can_go_on_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Alone
    ) -> None:
        path = prepare(tmp_path / "group", MEMBERS)
        assert interrupted(path, monkeypatch, 7)[0] == signals.EXIT_CODE
        kept = tmp_path / "group" / "members" / "dkd" / "checkpoints"
        shutil.copytree(kept, tmp_path / "dkd" / "checkpoints")
        assert run_alone(tmp_path / "dkd", **MEMBERS["dkd"]) == alone(**MEMBERS["dkd"])

    def test_members_at_different_steps_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = prepare(tmp_path, MEMBERS)
        assert interrupted(path, monkeypatch, 7)[0] == signals.EXIT_CODE
        shutil.rmtree(tmp_path / "members" / "ce" / "checkpoints")
        code, lines = folders.run_here(path)
        assert code == 1
        assert lines[-1]["type"] == "failure"
        assert "member" not in lines[-1]
        assert "kd: 7, dkd: 7, ce: 0" in lines[-1]["message"]
        assert "run them apart" in lines[-1]["message"]

    def test_goes_on_from_the_newest_step_that_all_have_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Alone
    ) -> None:
        members = {key: MEMBERS[key] for key in ("kd", "ce")}
        path = prepare(tmp_path / "group", members)
        for step in (4, 9):
            assert interrupted(path, monkeypatch, step)[0] == signals.EXIT_CODE
        newest = tmp_path / "group/members/kd/checkpoints/step-00000009.ckpt"
        newest.unlink()  # as if it had not arrived when the worker died
        code, lines = folders.run_here(path)
        assert code == 0
        assert {line["resumed_from_step"] for line in folders.of_type(lines, "started")} == {4}
        for key, changes in members.items():
            assert student_of(tmp_path / "group", key) == alone(**changes), key


@pytest.mark.slow
class TestLeaving:
    def test_one_that_diverges_leaves_the_others_alone(self, tmp_path: Path, alone: Alone) -> None:
        wild = {"optimizer": {"learning_rate": 100, "weight_decay": 1}}
        members = {"wild": {"training": wild}, **MEMBERS}
        code, lines = folders.run_here(prepare(tmp_path / "group", members))
        last = last_lines(lines)
        assert code == grouping.SOME_FAILED
        assert (last["wild"]["type"], last["wild"]["code"]) == ("failure", "diverged")
        assert not (tmp_path / "group/members/wild/student.safetensors").exists()
        for key in MEMBERS:
            assert last[key]["type"] == "result"
        assert student_of(tmp_path / "group", "kd") == alone(**MEMBERS["kd"])

    def test_one_that_ends_early_is_told_at_once(self, tmp_path: Path, alone: Alone) -> None:
        members = {"early": {"training": {"max_steps": 4}}, "kd": MEMBERS["kd"]}
        code, lines = folders.run_here(prepare(tmp_path / "group", members))
        assert code == 0
        line_types = [(line["member"], line["type"]) for line in lines]
        assert line_types.index(("early", "result")) < line_types.index(("kd", "result"))
        for key, changes in members.items():
            assert student_of(tmp_path / "group", key) == alone(**changes), key

    def test_one_that_cannot_be_built_leaves_the_others_alone(self, tmp_path: Path) -> None:
        members: dict[str, dict[str, Any]] = {
            "unknown": {"method": {"name": "magic"}},
            "classes": {"student": folders.network(4)},
            "start": {"initial": True},
            "kd": MEMBERS["kd"],
        }
        code, lines = folders.run_here(prepare(tmp_path, members))
        last = last_lines(lines)
        assert code == grouping.SOME_FAILED
        assert {key: last[key].get("code") for key in members} == {
            "unknown": "bad_recipe",
            "classes": "incompatible_networks",
            "start": "initial_load",
            "kd": None,
        }

    def test_what_concerns_all_is_told_once_without_a_member(self, tmp_path: Path) -> None:
        path = prepare(tmp_path, MEMBERS)
        (tmp_path / "teacher" / "model.safetensors").unlink()
        code, lines = folders.run_here(path)
        assert code == 1
        assert [line["code"] for line in folders.of_type(lines, "failure")] == ["teacher_load"]
        assert "member" not in lines[-1]


class TestRefusal:
    def members(self, **changes: Any) -> dict[str, dict[str, Any]]:
        return {"one": recipe_of(), "other": recipe_of(**changes)}

    @pytest.mark.parametrize(
        "changes",
        [
            {"method": {"name": "dkd"}},
            {"student": folders.network(network="retort/resnet14")},
            {"training": {"optimizer": {"name": "adamw"}, "clip_norm": 1.0, "max_steps": 3}},
            {"initial": True, "report": True},
        ],
    )
    def test_lets_differ_what_touches_neither_batches_nor_teacher(
        self, changes: dict[str, Any]
    ) -> None:
        assert grouping.refusal(self.members(**changes)) is None

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"teacher": folders.network(network="retort/resnet14")}, "differ in teacher"),
            ({"accelerator": "any"}, "differ in accelerator"),
            ({"provenance": {"teacher": "rows@2"}}, "differ in provenance.teacher"),
            ({"training": {"seed": 1}}, "differ in training.seed"),
            ({"training": {"batch_size": 4}}, "differ in training.batch_size"),
            ({"training": {"a_later_field": 1}}, "differ in training.a_later_field"),
            ({"devices": 2}, "other runs on 2 devices"),
            ({"baseline": True}, "other asks for a baseline"),
            ({"training": {"max_seconds": 5}}, "other has max_seconds"),
        ],
    )
    def test_names_what_differs(self, changes: dict[str, Any], said: str) -> None:
        refusal = grouping.refusal(self.members(**changes))
        assert refusal is not None
        assert said in refusal

    @pytest.mark.parametrize("key", ["", "../up", "a/b", ".hidden"])
    def test_refuses_a_key_that_is_no_folder(self, key: str) -> None:
        refusal = grouping.refusal({key: recipe_of()})
        assert refusal is not None
        assert "cannot name a folder" in refusal

    def test_refuses_nobody(self) -> None:
        assert grouping.refusal({}) == "a group needs at least one member"

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ({"version": 2, "members": []}, "version 1"),
            ({"version": 1, "members": []}, "at least one member"),
            ({"version": 1, "members": ["kd"]}, "objects of a key and a recipe"),
            ({"version": 1, "members": [{"key": "a", "recipe": {}}]}, "recipe of a is refused"),
            (
                {"version": 1, "members": [{"key": "a", "recipe": recipe_of()}] * 2},
                "the same key",
            ),
        ],
    )
    def test_a_file_that_is_no_group_is_refused(
        self, tmp_path: Path, content: dict[str, Any], said: str
    ) -> None:
        path = tmp_path / "group.json"
        path.write_text(json.dumps(content))
        code, lines = folders.run_here(path)
        assert code == 1
        assert lines[-1]["code"] == "bad_recipe"
        assert said in lines[-1]["message"]


CACHED = {"teacher_cache": {"views": 3, "per_visit": 2}, "epochs": 4}


@pytest.mark.slow
class TestTeacherCache:
    def test_learns_the_same_alone_and_in_a_group(self, tmp_path: Path, alone: Alone) -> None:
        members: dict[str, dict[str, Any]] = {
            "kd": {"method": {"name": "kd"}, "training": CACHED},
            "fkd": {"method": {"name": "fkd", "top_k": 2}, "training": CACHED},
        }
        code, lines = folders.run_here(prepare(tmp_path / "group", members))
        assert code == 0, lines[-1]
        phases = {line["phase"] for line in folders.of_type(lines, "progress")}
        assert "teacher_cache" in phases
        for key, changes in members.items():
            assert student_of(tmp_path / "group", key) == alone(**changes), key

    def test_one_that_wants_maps_is_refused_and_the_others_go_on(self, tmp_path: Path) -> None:
        members = {
            "at": {"method": {"name": "at"}, "training": CACHED},
            "kd": {"method": {"name": "kd"}, "training": CACHED},
        }
        code, lines = folders.run_here(prepare(tmp_path, members))
        last = last_lines(lines)
        assert code == grouping.SOME_FAILED
        assert last["at"]["code"] == "bad_recipe"
        assert "feature maps" in last["at"]["message"]
        assert last["kd"]["type"] == "result"

    def test_one_that_would_keep_too_much_is_told_how_many_views_fit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # resnet8 shows 3 logits and 64 pooled features: 268 bytes a view.
        monkeypatch.setattr(teachers, "STORE_BYTES", 2 * 41 * 268)
        members = {"kd": {"method": {"name": "kd"}, "training": CACHED}}
        code, lines = folders.run_here(prepare(tmp_path, members))
        assert code == grouping.SOME_FAILED
        said = lines[-1]["message"]
        assert f"3 views of 41 images would keep {3 * 41 * 268} bytes" in said
        assert "lower training.teacher_cache.views to 2" in said


@pytest.mark.slow
class TestRandomness:
    def test_methods_that_draw_have_numbers_of_their_own(
        self, tmp_path: Path, alone: Alone
    ) -> None:
        draws = {"method": {"name": "crd", "negatives": 8, "width": 4}}
        members = {"crd": draws, "kd": MEMBERS["kd"], "again": draws}
        code, lines = folders.run_here(prepare(tmp_path, members))
        assert code == 0, lines[-1]
        for key, changes in members.items():
            assert student_of(tmp_path, key) == alone(**changes), key

    def test_a_member_that_draws_goes_on_where_it_stopped(
        self, tmp_path: Path, alone: Alone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        members = {
            key: {"method": {"name": "crd", "negatives": 8, "width": width}}
            for key, width in (("narrow", 4), ("wide", 6))
        }
        path = prepare(tmp_path, members)
        assert interrupted(path, monkeypatch, 8)[0] == signals.EXIT_CODE
        assert folders.run_here(path)[0] == 0
        for key, changes in members.items():
            assert student_of(tmp_path, key) == alone(**changes), key
