"""Synthetic images that a job has kept, as a data set for others."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import datasets, lineage, models, synthetic_datasets
from models_registry.jobs import actions
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.retention import blobs
from tests import factories
from tests.databases import SQLITE_ONLY

pytestmark = pytest.mark.usefixtures("teacher")


@pytest.fixture
def job(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> tables.JobRow:
    """A data-free job that has kept its images."""
    with sessions.begin() as session:
        return factories.synthetic_job(session, storage, project_id=project.id)


def register(
    session: Session, storage: Storage, job: tables.JobRow, **changes: Any
) -> tables.DatasetVersionRow:
    new = synthetic_datasets.NewSyntheticDataset(**{"name": "dreams", "job_id": job.id, **changes})
    return synthetic_datasets.register(session, storage, project_id=job.project_id, new=new)


def refusal(
    sessions: database.Sessions, storage: Storage, job: tables.JobRow, **changes: Any
) -> tuple[str, str, str]:
    """Return where, why and in which words a job's images are refused; nothing may be stored."""
    with pytest.raises(errors.Refused) as refused, sessions.begin() as session:
        register(session, storage, job, **changes)
    with sessions() as session, pytest.raises(errors.NotFound):
        datasets.get(session, project_id=job.project_id, name="dreams")
    (fault,) = refused.value.faults
    return fault.pointer, fault.code, fault.detail


class TestRegister:
    def test_makes_a_version_that_is_ready_and_says_what_it_is(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = register(session, storage, job, tags={"site": "b"})
            record = factories.IMAGES_RECORD
            assert (row.state, row.format, row.version) == ("ready", "synthetic", 1)
            assert (row.task, row.classes) == (record["task"], record["classes"])
            assert (row.splits, row.input) == (record["splits"], record["input"])
            assert (row.tags, row.job_id, row.upload_id) == ({"site": "b"}, job.id, None)
            assert "dafl" in row.card
            assert "digits-teacher@1" in row.card

    def test_says_where_the_images_come_from(
        self,
        sessions: database.Sessions,
        storage: Storage,
        job: tables.JobRow,
        teacher: tables.ModelVersionRow,
    ) -> None:
        with sessions.begin() as session:
            told = register(session, storage, job).lineage
        assert (told["job"], told["student"]) == (job.id, "digits-student@1")
        assert told["teacher"] == "digits-teacher@1"
        assert told["teacher_digest"] == f"sha256:{teacher.sha256}"
        assert told["method"] == job.spec["method"]
        assert "synthetic" in told["images"]
        assert "teacher" in told["labels"]

    def test_refers_to_the_bytes_that_the_student_has(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            before = set(session.scalars(sa.select(tables.BlobRow.sha256)))
            row = register(session, storage, job)
            assert set(session.scalars(sa.select(tables.BlobRow.sha256))) == before
            files = session.query(tables.DatasetFileRow).filter_by(version_id=row.id).all()
            assert {file.path for file in files} == set(factories.IMAGES)
            assert row.sha256 == datasets.digest({file.path: file.sha256 for file in files})
            student = session.get_one(tables.ModelVersionRow, job.student_version_id)
            kept = models.files_under(session, student, folder=synthetic_datasets.FOLDER)
            assert {file.sha256 for file in kept} == {file.sha256 for file in files}

    def test_again_makes_another_version_of_the_same_content(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            first, second = (register(session, storage, job) for _ in range(2))
            assert (first.version, second.version) == (1, 2)
            assert first.sha256 == second.sha256

    def test_lets_other_jobs_train_on_it(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = register(session, storage, job)
            user = factories.job(session, project_id=job.project_id, dataset="dreams")
            assert user.state == State.QUEUED
            assert user.spec["dataset"] == "dreams@1"
            assert user.spec["dataset_digest"] == f"sha256:{row.sha256}"


class TestSweep:
    def test_leaves_the_images_when_their_student_goes(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        job: tables.JobRow,
    ) -> None:
        with sessions.begin() as session:
            row = register(session, storage, job)
            student = session.get_one(tables.ModelVersionRow, job.student_version_id)
            weights = models.file(session, student, path=models.WEIGHTS)
            actions.delete(session, project_id=project.id, job_id=job.id)
            models.delete_version(session, project_id=project.id, name="digits-student", version=1)
        assert blobs.sweep(sessions, storage, grace=timedelta(seconds=-1)) == 1
        assert not storage.exists(weights.storage_key)
        with sessions() as session:
            for file in session.query(tables.DatasetFileRow).filter_by(version_id=row.id):
                blob = session.get_one(tables.BlobRow, file.sha256)
                assert storage.exists(blob.storage_key)


@SQLITE_ONLY
class TestRefusals:
    def test_of_a_job_that_has_not_succeeded(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=project.id, method={"name": "dafl"})
        where, code, detail = refusal(sessions, storage, job)
        assert (where, code) == ("/job", "job_not_succeeded")
        assert "queued" in detail

    def test_of_a_job_that_does_not_exist_or_is_somebody_elses(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            other = tables.ProjectRow(id="prj_x", name="x", created_at=database.now(session))
            session.add(other)
            session.flush()
            factories.teacher(session, storage, project_id="prj_x")
            job = factories.synthetic_job(session, storage, project_id="prj_x")
        job.project_id = project.id  # who asks
        assert refusal(sessions, storage, job)[:2] == ("/job", "not_found")

    @pytest.mark.parametrize(
        ("method", "hint"),
        [
            ({"name": "kd"}, "is not data-free"),
            ({"name": "dafl"}, "held too few"),
            ({"name": "dafl", "synthesis": {"keep_images": False}}, "keep_images true"),
        ],
    )
    def test_of_a_job_that_has_kept_none(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        method: dict[str, Any],
        hint: str,
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=project.id, method=method)
            factories.succeeded(session, storage, job)
        where, code, detail = refusal(sessions, storage, job)
        assert (where, code) == ("/job", "no_images")
        assert hint in detail

    def test_of_a_student_that_was_deleted(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            version = session.get_one(tables.ModelVersionRow, job.student_version_id)
            version.deleted_at = version.created_at
        assert refusal(sessions, storage, job)[:2] == ("/job", "student_deleted")

    @pytest.mark.parametrize(
        ("changes", "where", "code"),
        [
            ({"name": "Dreams"}, "/name", "bad_name"),
            ({"task": "segmentation"}, "/task", "wrong_task"),
            ({"card": "x" * 100_001}, "/card", "too_long"),
        ],
    )
    def test_of_what_the_caller_says(
        self,
        sessions: database.Sessions,
        storage: Storage,
        job: tables.JobRow,
        changes: dict[str, Any],
        where: str,
        code: str,
    ) -> None:
        assert refusal(sessions, storage, job, **changes)[:2] == (where, code)


@SQLITE_ONLY
class TestLineage:
    def test_finds_the_data_sets_that_a_teacher_and_a_student_have_led_to(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        teacher: tables.ModelVersionRow,
        job: tables.JobRow,
    ) -> None:
        with sessions.begin() as session:
            made = register(session, storage, job)
            other = factories.teacher(session, storage, project_id=project.id, name="other")
            student = session.get_one(tables.ModelVersionRow, job.student_version_id)
            for version, found in ((teacher, [made.id]), (student, [made.id]), (other, [])):
                assert [row.id for row in lineage.synthetic_datasets(session, version)] == found
