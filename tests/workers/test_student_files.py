import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models_registry import tables
from tests import factories
from workers import student_files

SCORE = {
    "accuracy": 0.9,
    "accuracy_interval": [0.86, 0.93],
    "agreement": 0.95,
    "ece": 0.0321,
    "loss": 0.4,
    "samples": 360,
}
REPORT: dict[str, Any] = {
    "type": "result",
    "scores": {"teacher": {**SCORE, "accuracy": 0.97}, "student": SCORE, "baseline": None},
    "parameters": {"teacher": 1_234_567, "student": 78_042},
    "flops": {"teacher": 10, "student": 5},
    "images_per_second": 812.0,
    "floor_share": 0.6,
    "wall_seconds": 12.0,
    "epochs": 2,
    "steps": 40,
    "best_epoch": 2,
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "versions": {"torch": "2.0"},
    "latency_ms": {"teacher": 2.0, "student": 1.0},
    "files": [{"path": "student.safetensors"}],
}


@pytest.fixture
def job() -> tables.JobRow:
    spec = factories.spec(
        student={"network": "retort/resnet8", "register_as": "digits-student"},
        method={"name": "kd", "alpha": 0.5},
    )
    digests = {"teacher_digest": "sha256:aa", "initial_digest": None, "dataset_digest": "sha256:bb"}
    now = datetime.now(UTC)
    return tables.JobRow(id="job_1", attempt=2, spec={**spec, **digests}, created_at=now)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    description = {
        "network": "retort/resnet8",
        "arguments": {},
        "task": "classification",
        "classes": ["zero", "one"],
        "input": factories.DIGITS_INPUT,
    }
    (tmp_path / "model.json").write_text(json.dumps(description))
    (tmp_path / "student.safetensors").write_bytes(b"weights")
    (tmp_path / "metrics.json").write_text("{}")
    return tmp_path


class TestMake:
    def test_gives_five_files_by_the_path_they_get(self, job: tables.JobRow, workdir: Path) -> None:
        kit = student_files.make(job, REPORT, workdir)
        assert {path: file.name for path, file in kit.files.items()} == {
            "model.safetensors": "student.safetensors",
            "config.json": "model.json",
            "metrics.json": "metrics.json",
            "card.md": "card.md",
            "manifest.json": "manifest.json",
        }
        assert all(file.is_file() for file in kit.files.values())

    def test_describes_the_version(self, job: tables.JobRow, workdir: Path) -> None:
        version = student_files.make(job, REPORT, workdir).version
        assert (version.name, version.job_id) == ("digits-student", "job_1")
        assert version.classes == ["zero", "one"]
        assert version.parameters == 78_042
        assert version.scores == SCORE
        assert version.card == (workdir / "card.md").read_text()
        assert version.lineage == json.loads((workdir / "manifest.json").read_text())

    def test_tells_where_the_student_comes_from(self, job: tables.JobRow, workdir: Path) -> None:
        lineage = student_files.make(job, REPORT, workdir).version.lineage
        assert lineage["job"] == "job_1"
        assert lineage["attempt"] == 2
        assert (lineage["teacher"], lineage["teacher_digest"]) == ("digits-teacher@1", "sha256:aa")
        assert (lineage["dataset"], lineage["dataset_digest"]) == ("digits@1", "sha256:bb")
        assert lineage["method"] == {"name": "kd", "alpha": 0.5}
        assert lineage["versions"] == {"torch": "2.0"}

    def test_keeps_what_is_the_reports_own_business_out_of_the_result(
        self, job: tables.JobRow, workdir: Path
    ) -> None:
        result = student_files.make(job, REPORT, workdir).result
        assert result == {name: REPORT[name] for name in REPORT.keys() - {"type", "files"}}


class TestCard:
    def test_has_a_row_for_each_that_was_scored(self, job: tables.JobRow, workdir: Path) -> None:
        card = student_files.make(job, REPORT, workdir).version.card
        assert "| teacher | 97.00% (86.00% to 93.00%) | 0.0321 |" in card
        assert "| student | 90.00% (86.00% to 93.00%) | 0.0321 |" in card
        assert "| baseline |" not in card
        assert card.startswith("# digits-student\n")
        assert "from `digits-teacher@1` with the method `kd` on `digits@1` by job `job_1`" in card
        assert "Parameters: 78,042." in card

    def test_can_be_written_of_a_student_whose_calibration_is_no_number(
        self, job: tables.JobRow, workdir: Path
    ) -> None:
        """In JSON the engine has to write NaN as a word."""
        scores = {**REPORT["scores"], "student": {**SCORE, "ece": "NaN"}}
        card = student_files.make(job, {**REPORT, "scores": scores}, workdir).version.card
        assert "| student | 90.00% (86.00% to 93.00%) | nan |" in card
