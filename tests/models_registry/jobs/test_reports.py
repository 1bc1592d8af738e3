import pytest

from models_registry import errors
from models_registry.artifacts import models
from models_registry.jobs import reports
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories

FILES = {"index.json": b"{}", "accuracy.png": b"picture"}


def finish(
    sessions: database.Sessions, storage: Storage, job: tables.JobRow, files: dict[str, bytes]
) -> None:
    with sessions.begin() as session:
        row = session.get_one(tables.JobRow, job.id)
        factories.succeeded(session, storage, row, report=files)


class TestReport:
    def test_lists_what_explains_the_student_and_nothing_else(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        finish(sessions, storage, job, FILES)
        with sessions() as session:
            found = reports.whole(session, job=session.get_one(tables.JobRow, job.id))
        assert [reports.name_of(file) for file in found] == ["accuracy.png", "index.json"]
        assert found[0].filename == "digits-student-1-report/accuracy.png"
        assert found[0].size_bytes == len(FILES["accuracy.png"])
        with storage.open(found[0].storage_key) as stream:
            assert b"".join(stream) == FILES["accuracy.png"]

    def test_gives_one_file_as_the_registry_does(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        finish(sessions, storage, job, FILES)
        with sessions() as session:
            row = session.get_one(tables.JobRow, job.id)
            listed = reports.files(session, job=row)
            assert reports.file(session, job=row, path="accuracy.png") == listed[0]
            for path in ("other.png", "../model.safetensors", models.WEIGHTS, ""):
                with pytest.raises(errors.NotFound, match="has no file"):
                    reports.file(session, job=row, path=path)

    def test_is_empty_where_none_was_made(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        finish(sessions, storage, job, {})
        with sessions() as session:
            row = session.get_one(tables.JobRow, job.id)
            assert reports.files(session, job=row) == []
            with pytest.raises(errors.NotFound, match="has no report"):
                reports.whole(session, job=row)

    def test_has_to_be_waited_for(self, sessions: database.Sessions, job: tables.JobRow) -> None:
        with sessions() as session:
            row = session.get_one(tables.JobRow, job.id)
            with pytest.raises(errors.Conflict, match="queued") as refused:
                reports.files(session, job=row)
        assert refused.value.code == "report_not_ready"

    def test_goes_with_its_student(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        finish(sessions, storage, job, FILES)
        with sessions.begin() as session:
            row = session.get_one(tables.JobRow, job.id)
            version = session.get_one(tables.ModelVersionRow, row.student_version_id)
            version.deleted_at = version.created_at
        with sessions() as session:
            row = session.get_one(tables.JobRow, job.id)
            with pytest.raises(errors.Gone):
                reports.files(session, job=row)
