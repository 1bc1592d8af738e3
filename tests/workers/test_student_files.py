import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories
from tests.workers.scenes import DESCRIPTION, SCORE
from workers import model_card, student_files

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
    "report_seconds": 3.5,
}


@pytest.fixture
def origin() -> student_files.StudentOrigin:
    spec = factories.spec(
        student={"network": "retort/resnet8", "register_as": "digits-student"},
        method={"name": "kd", "alpha": 0.5},
    )
    digests = {"teacher_digest": "sha256:aa", "initial_digest": None, "dataset_digest": "sha256:bb"}
    now = datetime.now(UTC)
    job = tables.JobRow(id="job_1", attempt=2, spec={**spec, **digests}, created_at=now)
    told = model_card.JobFacts("job_1", 2, JobSpec.model_validate(spec), dataset=None, teacher=None)
    return student_files.StudentOrigin(job, told.spec, told)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text(json.dumps(DESCRIPTION))
    (tmp_path / "student.safetensors").write_bytes(b"weights")
    (tmp_path / "metrics.json").write_text("{}")
    return tmp_path


class TestMake:
    def test_gives_five_files_by_the_path_they_get(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        kit = student_files.make(origin, REPORT, workdir)
        assert {path: Path(file).name for path, file in kit.files.items()} == {
            "model.safetensors": "student.safetensors",
            "config.json": "model.json",
            "metrics.json": "metrics.json",
            "card.md": "card.md",
            "manifest.json": "manifest.json",
        }
        assert all((workdir / file).is_file() for file in kit.files.values())

    def test_keeps_the_networks_own_source_beside_the_weights(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        (workdir / "model.py").write_text("")
        files = student_files.make(origin, REPORT, workdir).files
        assert files["model.py"] == "model.py"

    def test_describes_the_version(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        version = student_files.make(origin, REPORT, workdir).version
        assert (version.name, version.job_id) == ("digits-student", "job_1")
        assert version.classes == ["zero", "one"]
        assert version.parameters == 78_042
        assert version.scores == SCORE
        assert version.card == (workdir / "card.md").read_text()
        assert version.lineage == json.loads((workdir / "manifest.json").read_text())

    def test_tells_where_the_student_comes_from(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        lineage = student_files.make(origin, REPORT, workdir).version.lineage
        assert lineage["job"] == "job_1"
        assert lineage["attempt"] == 2
        assert (lineage["teacher"], lineage["teacher_digest"]) == ("digits-teacher@1", "sha256:aa")
        assert (lineage["dataset"], lineage["dataset_digest"]) == ("digits@1", "sha256:bb")
        assert lineage["method"] == {"name": "kd", "alpha": 0.5}
        assert lineage["versions"] == {"torch": "2.0"}

    def test_keeps_what_is_the_reports_own_business_out_of_the_result(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        result = student_files.make(origin, REPORT, workdir).result
        assert result == {name: REPORT[name] for name in REPORT.keys() - {"type", "files"}}

    def test_keeps_synthetic_images_beside_the_student(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        (workdir / "synthetic").mkdir()
        (workdir / "synthetic" / "dataset.json").write_text("{}")
        (workdir / "synthetic" / "train.safetensors").write_bytes(b"images")
        files = student_files.make(origin, REPORT, workdir).files
        assert files["synthetic/dataset.json"] == "synthetic/dataset.json"
        assert (workdir / files["synthetic/train.safetensors"]).read_bytes() == b"images"

    def test_keeps_other_epochs_beside_the_student_and_the_card_says_so(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        path = "epochs/epoch-0001.safetensors"
        (workdir / "epochs").mkdir()
        (workdir / path).write_bytes(b"weights of another epoch")
        kept = [{"epoch": 2, "score": 0.9}, {"epoch": 1, "score": 0.875, "path": path}]
        kit = student_files.make(origin, {**REPORT, "kept_epochs": kept}, workdir)
        assert kit.files[path] == path
        assert f"The next best are kept as files: `{path}` (87.50%)." in kit.version.card
        assert kit.result["kept_epochs"][1] == kept[1]

    def test_of_a_student_that_nothing_could_measure_has_no_scores(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        facts = {
            "scores": {"teacher": None, "student": None, "baseline": None},
            "training_images_read": 0,
            "evaluated_on": None,
            "synthesis": {
                "calls": 2,
                "steps": 4,
                "images": 8,
                "synthesis_seconds": 1.0,
                "distillation_seconds": 2.0,
            },
            "validation": {},
        }
        kit = student_files.make(origin, {**REPORT, **facts}, workdir)
        assert kit.version.scores == {}
        assert {name: kit.result[name] for name in facts} == facts

    def test_puts_a_card_beside_the_pictures_as_well(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        (workdir / "report").mkdir()
        (workdir / "report" / "tsne.png").write_bytes(b"a picture")
        stored = student_files.report_files(workdir)
        assert stored == {"report/tsne.png": "report/tsne.png"}
        kit = student_files.make(origin, REPORT, workdir, stored=stored)
        assert "](report/tsne.png)" in (workdir / kit.files["card.md"]).read_text()
        assert "](tsne.png)" in (workdir / kit.files["report/card.md"]).read_text()

    def test_shows_no_picture_that_is_not_stored(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        assert student_files.report_files(workdir) == {}
        kit = student_files.make(origin, REPORT, workdir)
        assert "![" not in kit.version.card
        assert "report/card.md" not in kit.files

    def test_keeps_the_student_when_its_card_cannot_be_written(
        self, origin: student_files.StudentOrigin, workdir: Path
    ) -> None:
        description = json.loads((workdir / "model.json").read_text())
        description["task"] = "a task that no card knows"
        (workdir / "model.json").write_text(json.dumps(description))
        kit = student_files.make(origin, REPORT, workdir)
        assert (workdir / kit.files["model.safetensors"]).read_bytes() == b"weights"
        (warning,) = kit.warnings
        assert "could not be written (KeyError" in warning
        assert warning in kit.version.card
        without = student_files.StudentOrigin(origin.job, origin.spec, None)
        assert "could not be read" in student_files.make(without, REPORT, workdir).warnings[0]


class TestOrigin:
    def test_names_the_inputs_of_a_job(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            factories.teacher(session, storage, project_id=project.id)
            job = factories.job(session, project_id=project.id)
            found = student_files.origin(session, job.id).facts
        assert found is not None
        assert found.dataset is not None
        assert found.teacher is not None
        assert (found.dataset.reference, found.dataset.splits["test"]) == ("digits@1", 360)
        assert (found.teacher.reference, found.teacher.network) == (
            "digits-teacher@1",
            "retort/resnet8x4",
        )
        assert found.spec.student.register_as == "digits-kd"
