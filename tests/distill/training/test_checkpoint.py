import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.distill.runtime import events
from workers.distill.training import checkpoint


class Quiet(events.Reporter):
    """A reporter that keeps its warnings."""

    def __init__(self) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.codes: list[str] = []

    def warning(self, code: str, message: str) -> None:
        self.codes.append(code)


@pytest.fixture
def reporter():
    quiet = Quiet()
    yield quiet
    os.close(quiet._descriptor)


def a_state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((3,), float(number)), "names": ["a"]}


class TestWrite:
    def test_what_is_written_is_read_back(self, tmp_path: Path, reporter: Quiet) -> None:
        checkpoint.write(tmp_path, 5, "digest", a_state(5))
        state = checkpoint.newest(tmp_path, "digest", reporter)
        assert state is not None
        assert state["number"] == 5
        assert torch.equal(state["weights"], torch.full((3,), 5.0))

    def test_size_and_digest_are_those_of_the_file(self, tmp_path: Path) -> None:
        written = checkpoint.write(tmp_path, 5, "digest", a_state(5))
        content = written.path.read_bytes()
        assert written.path.name == "step-00000005.ckpt"
        assert written.size_bytes == len(content)
        assert written.sha256 == hashlib.sha256(content).hexdigest()

    def test_the_newest_two_are_kept(self, tmp_path: Path) -> None:
        for step in (1, 20, 3):
            checkpoint.write(tmp_path, step, "digest", a_state(step))
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["step-00000003.ckpt", "step-00000020.ckpt"]


class TestNewest:
    def test_there_may_be_none(self, tmp_path: Path, reporter: Quiet) -> None:
        assert checkpoint.newest(tmp_path / "checkpoints", "digest", reporter) is None

    @pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
    def test_a_damaged_one_gives_way_to_the_one_before(
        self, tmp_path: Path, reporter: Quiet, damage: bytes | None
    ) -> None:
        checkpoint.write(tmp_path, 1, "digest", a_state(1))
        newest = checkpoint.write(tmp_path, 2, "digest", a_state(2)).path
        newest.write_bytes(newest.read_bytes()[:-40] if damage is None else damage)
        state = checkpoint.newest(tmp_path, "digest", reporter)
        assert state is not None
        assert state["number"] == 1
        assert reporter.codes == ["checkpoint_unreadable"]

    def test_another_recipes_is_ignored_with_a_warning(
        self, tmp_path: Path, reporter: Quiet
    ) -> None:
        checkpoint.write(tmp_path, 1, "other", a_state(1))
        assert checkpoint.newest(tmp_path, "digest", reporter) is None
        assert reporter.codes == ["checkpoint_ignored"]

    def test_an_unfinished_one_is_swept_away(self, tmp_path: Path, reporter: Quiet) -> None:
        (tmp_path / "step-00000009.ckpt.tmp").write_bytes(b"half")
        assert checkpoint.newest(tmp_path, "digest", reporter) is None
        assert list(tmp_path.iterdir()) == []

    def test_code_in_a_file_is_never_run(self, tmp_path: Path, reporter: Quiet) -> None:
        torch.save(Danger(tmp_path / "ran"), tmp_path / "step-00000001.ckpt")
        assert checkpoint.newest(tmp_path, "digest", reporter) is None
        assert not (tmp_path / "ran").exists()


class Danger:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class TestFormerFormat:
    def write(self, folder: Path, version: int) -> None:
        """Write a checkpoint under the names of format 1, as an earlier version did."""
        synthesis = {
            "inverter": {"i": 1},
            "replay": {"r": 2},
            "gallery": {"g": 3},
            "tally": {"t": 4},
        }
        course = {
            "phase": "student",
            "step": 7,
            "closed_epoch": 2,
            "stepper": {"optimizer": {}},
            "tally": {"names": []},
            "best": {"epoch": 1, "accuracy": 0.5, "student": {}, "method": {}},
            "studio": synthesis,
        }
        ended = {"step": 9, "best": {"epoch": 3, "accuracy": 0.25}, "studio": None}
        state = {"course": course, "finished": {"student": ended}, "threads": 1}
        content = {"format": version, "recipe": "digest", "step": 7, "state": state}
        torch.save(content, folder / "step-00000007.ckpt")

    def test_is_read_under_the_new_names(self, tmp_path: Path, reporter: Quiet) -> None:
        self.write(tmp_path, 1)
        state = checkpoint.newest(tmp_path, "digest", reporter)
        assert state is not None
        assert reporter.codes == []
        assert state["threads"] == 1
        assert state["train_state"] == {
            "phase": "student",
            "step": 7,
            "finished_epoch": 2,
            "optimizer": {"optimizer": {}},
            "meter": {"names": []},
            "best": {"epoch": 1, "score": 0.5, "student": {}, "method": {}},
            "source": {
                "synthesizer": {"i": 1},
                "buffer": {"r": 2},
                "snapshots": {"g": 3},
                "meter": {"t": 4},
            },
        }
        assert state["finished"]["student"] == {
            "step": 9,
            "best": {"epoch": 3, "score": 0.25},
            "source": {},
        }

    def test_of_a_later_version_is_told_and_not_used(self, tmp_path: Path, reporter: Quiet) -> None:
        self.write(tmp_path, checkpoint.FORMAT + 1)
        assert checkpoint.newest(tmp_path, "digest", reporter) is None
        assert reporter.codes == ["checkpoint_ignored"]
