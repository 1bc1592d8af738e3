"""A job on two devices, as whole processes: results, resume, and what is refused."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import waiting
from tests.distill import folders

TRAINING = {"epochs": 4, "checkpoint_seconds": 0.01, "sync_batch_norm": True}


def prepare(workdir: Path, **changes: Any) -> Path:
    training = {**TRAINING, **changes.pop("training", {})}
    return folders.prepare(workdir, **{"devices": 2, "training": training, **changes})


def rank_of(engine: int, number: int) -> int:
    """Return the process id of a rank, by the order in which the engine has started them."""
    children = Path(f"/proc/{engine}/task/{engine}/children")
    return int(waiting.until(lambda: children.read_text().split()[number:], "it runs")[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Run a job on two devices without interruption: its folder, and its lines."""
    path = prepare(tmp_path_factory.mktemp("whole"))
    code, lines = folders.finish(folders.start(path))
    assert code == 0, lines[-1]
    return path.parent, lines


@pytest.mark.slow
class TestTwoDevices:
    def test_report_once_and_say_how_they_shared_the_work(
        self, whole: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        _, lines = whole
        assert [len(folders.of_type(lines, kind)) for kind in ("started", "result")] == [1, 1]
        assert folders.of_type(lines, "result")[0]["parallel"] == {
            "devices": 2,
            "batch_size": 8,
            "loss": "whole_batch",
            "batch_norm": "synchronised",
        }

    def test_end_with_the_same_bytes_after_all_were_killed(
        self, tmp_path: Path, whole: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        path = prepare(tmp_path)
        process = folders.start(path)
        assert process.stdout is not None
        for line in process.stdout:
            if '"type": "checkpoint"' in line:
                break
        os.kill(rank_of(process.pid, 0), signal.SIGKILL)
        code, lines = folders.finish(process)
        (failure,) = folders.of_type(lines, "failure")
        assert (code, failure["code"], failure["retryable"]) == (1, "rank_lost", True)
        code, lines = folders.finish(folders.start(path))
        assert code == 0, lines[-1]
        (started,) = folders.of_type(lines, "started")
        assert started["resumed_from_step"] > 0
        student = "student.safetensors"
        assert (tmp_path / student).read_bytes() == (whole[0] / student).read_bytes()

    def test_stop_with_a_checkpoint_when_asked(self, tmp_path: Path) -> None:
        process = folders.start(prepare(tmp_path, training={"checkpoint_seconds": 3600}))
        assert process.stdout is not None
        for line in process.stdout:
            if '"name": "train"' in line:
                break
        process.send_signal(signal.SIGTERM)
        code, lines = folders.finish(process)
        assert (code, len(folders.of_type(lines, "checkpoint"))) == (75, 1)
        assert not folders.of_type(lines, "failure")


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "field", "said"),
        [
            ({"method": {"name": "dafl"}}, "resources/devices", "method dafl runs on one device"),
            ({"training": {"batch_size": 3}}, "training/batch_size", "set it to 4 or more"),
            ({"devices": 1}, "training/sync_batch_norm", "no effect on one device"),
            ({"training": {"compile": "on"}}, "training/compile", "cannot be compiled"),
        ],
    )
    def test_what_cannot_run_on_two_devices(
        self, tmp_path: Path, changes: dict[str, Any], field: str, said: str
    ) -> None:
        code, lines = folders.run_here(prepare(tmp_path, **changes))
        (failure,) = folders.of_type(lines, "failure")
        assert (code, failure["code"], failure["details"]["field"]) == (1, "bad_recipe", field)
        assert said in failure["message"]

    def test_fewer_images_than_the_devices_need(self, tmp_path: Path) -> None:
        path = prepare(tmp_path)
        small = {**folders.COUNTS, "train": 3}
        for file in (tmp_path / "dataset").iterdir():
            file.unlink()
        folders.make_dataset(tmp_path / "dataset", counts=small)
        code, lines = folders.finish(folders.start(path))
        assert (code, lines[-1]["code"]) == (1, "bad_dataset")
        assert "at least 4 are needed to learn on 2 devices" in lines[-1]["message"]
